"""From YAML files and `key=value` overrides to settings, with errors that name file, key, value and way out."""

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hydramix_dist.config.base import Settings
from hydramix_dist.errors import UserError, nearest

S = TypeVar("S", bound=Settings)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with two traps closed: `1e-3` is a number, and a key that stands twice is refused."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Looked at here and not while values are built: by then merge keys (<<) have been laid under the own keys.
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if str(key.value) in lines:
                first = lines[str(key.value)]
                raise yaml.composer.ComposerError(
                    None, None, f"the key '{key.value}' stands twice, first in line {first}; keep one", key.start_mark
                )
            lines[str(key.value)] = key.start_mark.line + 1
        return node


# YAML 1.1 asks for a dot and a signed exponent; 1e-3, 1E5 and 1.5e3 are numbers to everybody else.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def configs_root() -> Path:
    """Return the folder of the ready settings: the one in the installed package, else the checkout's `configs/`."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises UserError where the file is missing, broken or no mapping."""
    source = f"settings file {path}"
    return parse(_read(path, source), source)


def read_documents(path: Path, source: str) -> list[dict[str, Any]]:
    """Return the mappings in a file of YAML documents, as kubectl renders it.

    Raises UserError, naming `source`, where the file is missing or broken.
    """
    try:
        return [tree for tree in _parse_all(_read(path, source)) if isinstance(tree, dict)]
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_yaml_problem(error)}") from error


def parse(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML text. Raises UserError, naming `source`, where it is broken or no mapping."""
    try:
        tree = _parse(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {_yaml_problem(error)}") from error
    if not isinstance(tree, dict):
        found = "nothing" if tree is None else f"one value of type {type(tree).__name__}"
        raise UserError(f"{source} holds {found}, a mapping of keys is needed")
    # Keys starting with "x-" hold YAML anchors that several sections share.
    return {key: value for key, value in tree.items() if not str(key).startswith("x-")}


def override(tree: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return `tree` with each "a.b=value" laid over it, values read as YAML. The input is not changed."""
    result: dict[str, Any] = copy.deepcopy(dict(tree))
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key = key.strip()
        if not separator or not key:
            lack = "key before the '='" if separator else "'='"
            raise UserError(f"override '{assignment}' has no {lack}; write key=value, for instance classifier.batch=16")
        node = result
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"override '{assignment}': '{parent}' is a value, not a section")
        try:
            node[leaf] = _parse(text)
        except yaml.YAMLError as error:
            raise UserError(f"override '{assignment}': the value is not valid YAML: {_yaml_problem(error)}") from error
    return result


def _read(path: Path, source: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 text, the encoding of YAML files: {error}") from error


def _parse(text: str) -> Any:
    """Return the plain values that a YAML text of one document holds. Raises YAMLError."""
    trees = _parse_all(text)
    if len(trees) > 1:
        raise yaml.YAMLError(f"it holds {len(trees)} documents, one is needed")
    return trees[0] if trees else None


def _parse_all(text: str) -> list[Any]:
    """Return the plain values of each document of a YAML text, no two places sharing one. Raises YAMLError."""
    try:
        # A SafeLoader: builds plain values only.
        return [_unshared(tree) for tree in yaml.load_all(text, Loader=_Loader)]
    except ValueError as error:  # a date that does not exist, a number of thousands of digits
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply, or an anchor that holds itself") from error


def _unshared(value: Any) -> Any:
    # Anchors and merge keys put one object in several places; an override is to change the place it names alone.
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Return the problem with its line number, without the parser's excerpt of the text."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}: {problem}"


def build(model: type[S], tree: Mapping[str, Any], source: str) -> S:
    """Return validated settings. Raises UserError with one line a problem, naming `source`, key path and value."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A list whose entry is wrong is reported as too short as well, which is no news.
        inner = {problem["loc"][:-1] for problem in problems}
        lines = [_explain(model, p) for p in problems if not (p["type"] == "too_short" and p["loc"] in inner)]
        raise UserError(f"{source}: " + "\n".join(lines)) from error


def _explain(model: type[BaseModel], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "settings"
    if problem["type"] == "extra_forbidden":
        siblings = _fields_at(model, problem["loc"][:-1])
        hint = nearest(str(problem["loc"][-1]), siblings)
        return f"unknown key '{path}'{hint}; allowed here: {', '.join(siblings)}"
    value = problem["input"]
    given = repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}..."
    shown = "" if isinstance(value, dict | BaseModel) else f" (given: {given})"
    if problem["type"] in ("model_type", "dict_type"):
        return f"'{path}': a section of keys is needed, one value was given{shown}"
    if problem["type"] == "too_short":
        return f"'{path}': at least one is needed, none was given"
    message = problem["msg"].removeprefix("Value error, ")
    where = f"'{path}': " if problem["loc"] else ""  # a rule over several keys names them itself
    return f"{where}{message[0].lower()}{message[1:]}{shown}"


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Return the field names of the settings section that `path` leads to."""
    section: Any = model
    for part in path:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[part].annotation
            if isinstance(section, UnionType):  # Section | None
                section = section.__args__[0]
        else:  # dict[str, Section]: the part is a name the user chose
            section = section.__args__[1]
    return sorted(section.model_fields)


def dump(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain JSON-ready values, every default written out."""
    return settings.model_dump(mode="json")
