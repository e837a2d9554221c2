"""Say what is wrong with files for a cluster before anything is started: `python cluster/check.py FILE...`.

FILE is a file for Ray's launcher, or rendered manifests: `kubectl kustomize FOLDER > FILE`. The exit code is 2 where
something is wrong or is still to be filled in. Nothing is started, and nobody is asked. Needs the development extras.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from kuberay_check import kuberay_problems
from launcher_check import launcher_problems

PLACEHOLDER = "FILL-IN"


def main() -> int:
    """Check the files of the command line; print a line a problem; return the exit code."""
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    code = 0
    for name in sys.argv[1:]:
        found = checked(Path(name))
        for problem in found:
            print(f"{name}: {problem}")
        if not found:
            print(f"{name}: nothing is wrong that can be seen from here")
        code = max(code, 2 if found else 0)
    return code


def checked(path: Path) -> list[str]:
    """Return what is wrong with a file, placeholders last."""
    try:
        objects = [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return [f"it cannot be read: {' '.join(str(error).split())}"]
    if not objects or not all(isinstance(one, dict) for one in objects):
        return ["it holds no mapping, and so neither a file for Ray's launcher nor manifests"]
    is_launcher = "cluster_name" in objects[0] or "provider" in objects[0]
    try:
        problems = launcher_problems(objects[0]) if is_launcher else kuberay_problems(objects)
        return [*problems, *placeholders(objects)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # what a schema lets be left out, we ask for
        return [f"it lacks something that is looked at, or has it in another form ({error!r}); compare it with ours"]


def placeholders(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each value that is still to be filled in, with the first place where it stands."""
    places: dict[str, list[str]] = {}
    for one in objects:
        name = f"{one['kind']} {one['metadata']['name']}: " if "kind" in one else ""
        for where, value in _texts(one):
            if PLACEHOLDER in value:
                places.setdefault(value, []).append(name + where)
    others = {value: f" (and {len(found) - 1} more)" if len(found) > 1 else "" for value, found in places.items()}
    return [f"{found[0]}{others[value]} is still to be filled in: {value}" for value, found in places.items()]


def _texts(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts of a tree with their paths."""
    if isinstance(tree, str):
        yield where, tree
    elif isinstance(tree, dict | list):
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _texts(value, f"{where}.{name}" if where else str(name))


if __name__ == "__main__":
    sys.exit(main())
