"""The pilot's profile books time where it is spent."""

import sys
from pathlib import Path
from types import FrameType

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import pilot_profile
from pilot_profile import check_stages, stage


def stack(*calls: tuple[str, str]) -> FrameType:
    """Return the innermost frame of real calls of functions (file, name), outermost first."""
    found: dict[str, FrameType] = {}

    def look() -> None:
        found["frame"] = sys._getframe(1)

    call = look
    for file, name in reversed(calls):
        space = {"inner": call}
        exec(compile(f"def {name}():\n    inner()\n", file, "exec"), space)
        call = space[name]  # type: ignore[assignment]
    call()
    return found["frame"]


PLACE = "/any/where/hydramix_dist/"


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("/x/hydramix_dist/training/loop.py", "run"), (PLACE + "training/loop.py", "save")], "checkpoints: gather"),
        ([(PLACE + "training/classifier.py", "batch"), (PLACE + "mixing/mixer.py", "mix")], "batch of mixes"),
        ([(PLACE + "training/loop.py", "save"), ("/lib/json/encoder.py", "batch")], "checkpoints: gather"),
        ([(PLACE + "data/importer.py", "import_dataset"), (PLACE + "data/decode.py", "anything")], "decode"),
        ([(PLACE + "training/loop.py", "_step"), ("<frozen importlib._bootstrap>", "_find_and_load")], "modules"),
        ([("/lib/anything.py", "batch")], "the rest"),
    ],
)
def test_the_innermost_known_function_decides(calls: list[tuple[str, str]], expected: str) -> None:
    assert expected in stage(stack(*calls))


def test_a_step_is_booked_on_the_model_that_learns() -> None:
    class Phase:
        engine = "discriminator"

    space = {"look": lambda: stage(sys._getframe(1)), "phase": Phase}
    exec(compile("def _step(phase):\n    return look()\n", PLACE + "training/loop.py", "exec"), space)
    assert "discriminator" in space["_step"](Phase)  # type: ignore[operator]


def test_every_function_of_the_table_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    check_stages()
    monkeypatch.setitem(pilot_profile.STAGES, ("training/loop.py", "renamed"), "gone")
    with pytest.raises(SystemExit, match="names renamed in training"):
        check_stages()
