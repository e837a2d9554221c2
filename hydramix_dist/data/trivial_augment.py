"""TrivialAugment (wide space) on batches: our keyed draws, torchvision's operations, label maps carried along.

One operation of 14 and one of 31 strengths for each image, all equally likely (Müller and Hutter, "TrivialAugment",
ICCV 2021; the space and the operations of torchvision's transforms.v2.TrivialAugmentWide with nearest interpolation
and no fill). Images that drew the same operation, strength and sign are transformed in one call.

Legend: B batch, K slots (images of one mix), H W pixels; "..." stands for B or B, K.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydramix_dist.data.draws import integers, uniform
from hydramix_dist.data.torchvision_compat import transforms_functional as tv

_LEVELS = 31


@dataclass(frozen=True)
class Operation:
    """One image operation: its strength at each of the 31 levels, and how to apply it to a batch [b, c, H, W]."""

    name: str
    apply: Callable[[Tensor, float], Tensor]
    magnitudes: tuple[float, ...] = ()  # empty: no strength to choose
    signed: bool = False  # the strength is negated for half of the draws
    geometric: bool = False  # moves pixels, so label maps follow


def _linear(first: float, last: float) -> tuple[float, ...]:
    return tuple(torch.linspace(first, last, _LEVELS).tolist())


def _affine(x: Tensor, **change: list[int] | list[float]) -> Tensor:
    still: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    moved: Tensor = tv().affine(x, **{**still, **change})
    return moved


def _shear(x: Tensor, along_x: float, along_y: float) -> Tensor:
    # The magnitude is a slope, torchvision takes degrees; about the top left corner, as in AutoAugment.
    return _affine(x, shear=[math.degrees(math.atan(along_x)), math.degrees(math.atan(along_y))], center=[0, 0])


_SLOPE, _PIXELS, _DEGREES, _CHANGE = _linear(0.0, 0.99), _linear(0.0, 32.0), _linear(0.0, 135.0), _linear(0.0, 0.99)
_BITS = tuple(float(8 - round(6 * level / (_LEVELS - 1))) for level in range(_LEVELS))
_THRESHOLD = tuple(255.0 * share for share in _linear(1.0, 0.0))

OPERATIONS: tuple[Operation, ...] = (
    Operation("Identity", lambda x, m: x),
    Operation("ShearX", lambda x, m: _shear(x, m, 0.0), _SLOPE, signed=True, geometric=True),
    Operation("ShearY", lambda x, m: _shear(x, 0.0, m), _SLOPE, signed=True, geometric=True),
    Operation("TranslateX", lambda x, m: _affine(x, translate=[int(m), 0]), _PIXELS, signed=True, geometric=True),
    Operation("TranslateY", lambda x, m: _affine(x, translate=[0, int(m)]), _PIXELS, signed=True, geometric=True),
    Operation("Rotate", lambda x, m: tv().rotate(x, m), _DEGREES, signed=True, geometric=True),
    Operation("Brightness", lambda x, m: tv().adjust_brightness(x, 1.0 + m), _CHANGE, signed=True),
    Operation("Color", lambda x, m: tv().adjust_saturation(x, 1.0 + m), _CHANGE, signed=True),
    Operation("Contrast", lambda x, m: tv().adjust_contrast(x, 1.0 + m), _CHANGE, signed=True),
    Operation("Sharpness", lambda x, m: tv().adjust_sharpness(x, 1.0 + m), _CHANGE, signed=True),
    Operation("Posterize", lambda x, m: tv().posterize(x, int(m)), _BITS),
    Operation("Solarize", lambda x, m: tv().solarize(x, m), _THRESHOLD),
    Operation("AutoContrast", lambda x, m: tv().autocontrast(x)),
    Operation("Equalize", lambda x, m: tv().equalize(x)),
)


@dataclass(frozen=True)
class TrivialDraws:
    """What happens to each image; three tensors of one shape, [B, K] as drawn.

    `operation` (int64) counts in OPERATIONS, `level` (int64) in 0..30 and 0 where the operation has no strength,
    `negative` (bool) negates the strength and is false where the operation has no sign.
    """

    operation: Tensor
    level: Tensor
    negative: Tensor

    def at(self, index: Tensor) -> "TrivialDraws":
        """Return the draws of these images, shaped like the index into the flattened draws."""
        fields = (self.operation, self.level, self.negative)
        return TrivialDraws(*(field.flatten()[index.to(field.device)] for field in fields))


def draw_trivial(seed: int, purpose: str, numbers: Sequence[int] | npt.NDArray[np.int64], slots: int) -> TrivialDraws:
    """Return draws [B, slots], independent for each (sample number, slot), on the CPU.

    A slot's draw does not depend on how many slots are drawn.
    """
    u_BK3 = uniform(seed, purpose, numbers, 3 * slots).view(len(numbers), slots, 3)
    operation = integers(u_BK3[..., 0], len(OPERATIONS))
    has_level = torch.tensor([bool(entry.magnitudes) for entry in OPERATIONS])[operation]
    has_sign = torch.tensor([entry.signed for entry in OPERATIONS])[operation]
    level = torch.where(has_level, integers(u_BK3[..., 1], _LEVELS), 0)
    return TrivialDraws(operation, level, (u_BK3[..., 2] < 0.5) & has_sign)


def apply_trivial(images: Tensor, draws: TrivialDraws) -> Tensor:
    """Return the augmented images [..., 3, H, W], uint8. The draws belong to the leading dimensions in order."""
    images_BCHW = images.flatten(0, -4)
    result_BCHW = images_BCHW.clone()
    for operation, magnitude, rows in _groups(draws):
        at = rows.to(images.device)
        result_BCHW[at] = operation.apply(images_BCHW[at], magnitude)
    return result_BCHW.reshape(images.shape)


def apply_trivial_to_maps(maps: Tensor, draws: TrivialDraws) -> Tensor:
    """Return label maps [..., H, W] moved as `apply_trivial` moves their images (nearest), same dtype.

    Every label is one higher than before, because 0 becomes the label of the area that the image left uncovered.
    """
    moved_B1HW = maps.flatten(0, -3).unsqueeze(1) + 1
    for operation, magnitude, rows in _groups(draws):
        if operation.geometric:
            at = rows.to(maps.device)
            moved_B1HW[at] = operation.apply(moved_B1HW[at], magnitude)
    return moved_B1HW.reshape(maps.shape)


def _groups(draws: TrivialDraws) -> Iterator[tuple[Operation, float, Tensor]]:
    """Yield (operation, strength, image numbers) for each combination that was drawn."""
    codes = ((draws.operation * _LEVELS + draws.level) * 2 + draws.negative).flatten()
    for code in sorted(set(codes.tolist())):
        number, rest = divmod(code, 2 * _LEVELS)
        level, negative = divmod(rest, 2)
        operation = OPERATIONS[number]
        magnitude = operation.magnitudes[level] if operation.magnitudes else 0.0
        yield operation, -magnitude if negative else magnitude, (codes == code).nonzero().flatten()
