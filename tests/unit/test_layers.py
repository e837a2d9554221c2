"""The shape of the package: imports run one way, heavy libraries have one place each, modules stay small.

Imports inside functions count like those at the top: a cycle hidden in a function is a cycle.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hydramix_dist"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A layer may import itself and those to its left.
LAYERS = ["errors", "config", "telemetry", "store", "checkpoint", "data", "models", "mixing", "training"]
LAYERS += ["evaluation", "report", "orchestration", "cli"]

# Each of these is named in one place only, so that the core runs without it and one module knows its ways.
PLACES = {
    "torchvision": "data/torchvision_compat.py",
    "ray": "orchestration/",
    "deepspeed": "training/",
    "s3fs": "store/",
    "prometheus_client": "telemetry/",
}

# What `hydramix --help` must not load.
HEAVY = {
    "torch",
    "torchvision",
    "ray",
    "deepspeed",
    "pyarrow",
    "matplotlib",
    "skimage",
    "scipy",
    "pydantic",
    "numpy",
    "PIL",
}


def imported(path: Path) -> Iterator[str]:
    """Yield the absolute dotted name of everything that a module imports, at its top or later."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def layer(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def inner(path: Path) -> bool:
    """Whether a module belongs to a layer, unlike the package's own __init__ and __main__."""
    return path.parent != PACKAGE or not path.stem.startswith("__")


def test_every_module_lies_in_a_known_layer() -> None:
    strangers = {layer(path.relative_to(PACKAGE).parts) for path in MODULES if inner(path)} - set(LAYERS)
    assert not strangers, "a new layer needs a place in LAYERS and in docs/architecture.md"


@pytest.mark.parametrize("path", [path for path in MODULES if inner(path)], ids=name)
def test_imports_run_to_the_left(path: Path) -> None:
    here = LAYERS.index(layer(path.relative_to(PACKAGE).parts))
    for target in imported(path):
        root, *parts = target.split(".")
        if root == PACKAGE.name and parts and parts[0] in LAYERS:
            assert LAYERS.index(parts[0]) <= here, f"{name(path)} imports {target}"


@pytest.mark.parametrize("library", PLACES)
def test_a_library_with_a_place_is_named_there_only(library: str) -> None:
    users = [name(path) for path in MODULES if library in {target.split(".")[0] for target in imported(path)}]
    assert [user for user in users if not user.startswith(PLACES[library])] == []
    if library == "deepspeed":
        assert len(users) <= 1


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_the_checker_sees_every_way_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / "hydramix_dist")
    path = tmp_path / "hydramix_dist" / "data" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import a.b\nfrom c import d\nfrom . import e\nfrom .f import g\nfrom ..store import h\n"
        "def later():\n    import i\n    import importlib\n    importlib.import_module('j.k')\n"
    )
    assert sorted(imported(path)) == [
        "a.b",
        "c.d",
        "hydramix_dist.data.e",
        "hydramix_dist.data.f.g",
        "hydramix_dist.store.h",
        "i",
        "importlib",
        "j.k",
    ]


HELP = """
import resource, sys
from hydramix_dist.cli import main
sys.argv = ["hydramix", *sys.argv[1:]]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
used = resource.getrusage(resource.RUSAGE_SELF)
print("loaded", *sorted({module.partition(".")[0] for module in sys.modules}), file=sys.stderr)
print("seconds", used.ru_utime + used.ru_stime, file=sys.stderr)
"""


def ask_for_help(*command: str) -> tuple[set[str], float]:
    """Return the top-level modules that `hydramix COMMAND --help` loads and the processor seconds it takes."""
    done = subprocess.run([sys.executable, "-c", HELP, *command, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    *_, loaded, seconds = done.stderr.splitlines()
    return set(loaded.split()[1:]), float(seconds.split()[1])


def test_help_loads_no_heavy_library() -> None:
    assert not ask_for_help()[0] & HEAVY


@pytest.mark.parametrize("command", [("pilot",), ("predict",), ("data",), ("data", "import")], ids=" ".join)
def test_help_of_a_command_loads_no_heavy_library(command: tuple[str, ...]) -> None:
    # typer itself loads pydantic once a command has parameters.
    assert not ask_for_help(*command)[0] & (HEAVY - {"pydantic"})


def test_help_answers_in_under_half_a_second() -> None:
    # Processor seconds and the best of three: what other programs do on this machine does not count.
    assert min(ask_for_help()[1] for _ in range(3)) < 0.5


def test_trainings_and_pilots_begin_without_what_only_their_ends_need() -> None:
    program = "import sys, hydramix_dist.orchestration.pilot; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not {"scipy", "skimage", "matplotlib", "pandas", "ray", "deepspeed"} & {*loaded}
