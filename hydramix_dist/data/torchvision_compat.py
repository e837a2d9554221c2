"""The package's only door to torchvision, which also opens where torchvision's native operators do not load.

PyPI's torchvision wheels are built for CUDA; beside a CPU-only torch their library cannot be loaded and
`import torchvision` fails as a whole, since it attaches shape rules to operators that then do not exist. Declaring
those operators first, with a plain torch implementation of `nms`, lets models and transforms import. Where the
native library loads, nothing is declared.

Letters: N boxes.
"""

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor


def torchvision_models() -> ModuleType:
    """Return `torchvision.models`. Its networks are only ever built without weights here: nothing is downloaded."""
    _declare_operators()
    return importlib.import_module("torchvision.models")


def transforms_functional() -> ModuleType:
    """Return `torchvision.transforms.v2.functional`."""
    _declare_operators()
    return importlib.import_module("torchvision.transforms.v2.functional")


def nms(boxes_N4: Tensor, scores_N: Tensor, iou_threshold: float) -> Tensor:
    """Return the int64 indices of the boxes that survive greedy suppression, best score first.

    Boxes are (x1, y1, x2, y2). A box falls when its intersection over union with a better surviving box is above
    the threshold. Same answer as torchvision's own kernel; one pass of tensor code for each survivor.
    """
    boxes_N4 = boxes_N4.detach().float()
    area_N = (boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1])
    waiting = torch.sort(scores_N.detach(), descending=True, stable=True).indices
    kept = []
    while waiting.numel():
        best, waiting = waiting[:1], waiting[1:]
        kept.append(best)
        corner_low = torch.maximum(boxes_N4[best, :2], boxes_N4[waiting, :2])
        corner_high = torch.minimum(boxes_N4[best, 2:], boxes_N4[waiting, 2:])
        shared = (corner_high - corner_low).clamp(min=0).prod(dim=1)
        # Compared as a product, so that boxes without area need no case of their own.
        waiting = waiting[shared <= iou_threshold * (area_N[best] + area_N[waiting] - shared)]
    return torch.cat(kept) if kept else scores_N.new_empty(0, dtype=torch.int64)


@cache
def _declare_operators() -> torch.library.Library | None:
    """Return the stand-in operators, or None where torchvision is already imported or its own operators load.

    Runs before the process's first import of torchvision; the cache keeps the declarations alive.
    """
    if "torchvision" in sys.modules or _native_library_loads():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", nms, "CPU")
    return library


def _native_library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")  # finds the package without importing it
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed", name="torchvision")
    libraries = [path for path in Path(spec.origin).parent.glob("_C*") if path.suffix in {".so", ".pyd", ".dylib"}]
    try:
        for path in libraries:
            torch.ops.load_library(path)
    except OSError:  # built for another torch: the symbols it needs are not there
        return False
    return bool(libraries)
