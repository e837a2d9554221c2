"""torchvision imports whether or not its native operators load, quietly, and `nms` gives the greedy answer."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hydramix_dist.data import torchvision_compat
from hydramix_dist.data.torchvision_compat import nms, torchvision_models, transforms_functional


def run(program: str) -> str:
    """Run a program in a fresh interpreter where every warning is an error."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def native_library_loads() -> bool:
    spec = find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    try:
        for path in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(path)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("before", ["", "try:\n  import torchvision\nexcept RuntimeError:\n  pass\n"])
def test_a_fresh_process_gets_both_doors_without_a_warning(before: str) -> None:
    """Also where something else has already tried, and failed, to import torchvision.

    Nothing is imported before it is asked for, and nothing declared where the native operators load.
    """
    program = before + (
        "import sys\n"
        "from hydramix_dist.data import torchvision_compat as door\n"
        "print('torchvision' in sys.modules)\n"
        "print(door.torchvision_models().__name__, door.transforms_functional().__name__)\n"
        "print(door._declare_operators() is None)\n"
    )
    native = native_library_loads()
    assert run(program).splitlines() == [
        str(bool(before) and native),
        "torchvision.models torchvision.transforms.v2.functional",
        str(native),
    ]


def test_models_and_transforms_work() -> None:
    network = torchvision_models().resnet18(weights=None, num_classes=3).eval()
    x_BCHW = torch.arange(3 * 32 * 32, dtype=torch.uint8).reshape(1, 3, 32, 32)
    assert torch.equal(transforms_functional().horizontal_flip(x_BCHW), x_BCHW.flip(-1))
    with torch.no_grad():
        assert network(x_BCHW.float()).shape == (1, 3)


def test_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="torchvision"):
        torchvision_compat._native_library_loads()


def greedy(boxes: list[list[float]], scores: list[float], threshold: float) -> list[int]:
    """Plain Python: best score first, drop what overlaps a kept box too much."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        overlaps = []
        for j in kept:
            width = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0])
            height = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1])
            shared = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (boxes[i], boxes[j])]
            overlaps.append(shared > threshold * (sum(areas) - shared))
        if not any(overlaps):
            kept.append(i)
    return kept


corner = st.integers(0, 12)
box = st.tuples(corner, corner, st.integers(0, 8), st.integers(0, 8)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@settings(deadline=None, max_examples=60)
@given(boxes=st.lists(box, max_size=12), threshold=st.sampled_from([0.0, 0.3, 0.5, 0.75]), data=st.data())
def test_nms_equals_the_greedy_rule(boxes: list[list[float]], threshold: float, data: st.DataObject) -> None:
    scores = data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=len(boxes), max_size=len(boxes)))
    boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    kept: Tensor = nms(boxes_N4, torch.tensor(scores), threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == greedy(boxes, scores, threshold)


def test_nms_equals_torchvisions_own_kernel() -> None:
    if not native_library_loads():
        pytest.skip("torchvision's native operators do not load beside this torch")
    torchvision_models()
    generator = torch.Generator().manual_seed(0)
    low_N2 = torch.rand(500, 2, generator=generator)
    boxes_N4 = torch.cat((low_N2, low_N2 + torch.rand(500, 2, generator=generator) / 3), dim=1)
    scores_N = torch.rand(500, generator=generator)
    for threshold in (0.3, 0.5, 0.7):
        assert torch.equal(nms(boxes_N4, scores_N, threshold), torch.ops.torchvision.nms(boxes_N4, scores_N, threshold))
