"""The built-in image set: small grey patches of nine photographs that the installed scikit-image wheel carries.

It lets the pilot run offline on real pixels. One photograph is one class. The two splits are cut from separate halves
of each photograph with a gap between them, so no pixel is in both. Every patch is a turned square window of random
side, reduced to 32x32 pixels, set to a random brightness and contrast, with a little noise: neither colour, brightness
nor contrast tells the classes apart, though the shape of the grey levels' histogram (few bright spots, few dark
strokes) still says much. The ranges are our choice, made by a plain classifier's accuracy alone, before any mixing was
tried. Patches of one split overlap, so 100 test patches carry the information of fewer.

Shapes: H W pixels of a patch (32 each).
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from hydramix_dist.data.draws import uniform
from hydramix_dist.errors import UserError

SIDE = 32
PATCHES_PER_CLASS = {"train": 60, "test": 100}
GAP = 8  # pixels of the photograph between the halves

WINDOW = (0.75, 1.5)  # side of the window, as a factor on the photograph's usual one
TURN = 180.0  # degrees, to either side
BRIGHTNESS = (96.0, 160.0)  # mean grey level of a patch, 0..255
CONTRAST = (24.0, 56.0)  # standard deviation of a patch's grey levels
NOISE = 8.0  # grey levels, uniform, to either side
LEAST_CONTRAST = 8.0  # windows whose grey levels deviate less are near blank and passed over

_CANDIDATES = 12  # windows drawn for each patch needed
_FINE = 6  # samples across one pixel of the patch, averaged, so that a reduced window is not aliased

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the photograph


@dataclass(frozen=True)
class Photo:
    """One photograph of the wheel: its file, the class made of it, a window's usual side in its pixels, its licence.

    `frame` is the part that shows the subject, where the photograph also shows something else.
    """

    file: str
    label: str
    window: float
    licence: str
    frame: Box | None = None


# Only photographs that scikit-image's own documentation calls free of restrictions.
PHOTOS = (
    Photo("brick.png", "brick", 72, "CC0, from CC0Textures (Bricks25)"),
    Photo("chelsea.png", "cat", 72, "CC0 by the photographer, Stefan van der Walt", (0, 0, 392, 300)),
    Photo("coins.png", "coins", 64, "no known copyright restrictions, Brooklyn Museum Collection"),
    Photo("hubble_deep_field.jpg", "galaxies", 56, "NASA, from HubbleSite, free to use in the public domain"),
    Photo("grass.png", "grass", 56, "CC0, from DeviantArt (linolafett, Grass 01)"),
    Photo("gravel.png", "gravel", 56, "CC0, from CC0Textures (Gravel04)"),
    Photo("retina.jpg", "retina", 180, "CC0 1.0, Mikael Häggström, from Wikimedia Commons", (200, 240, 1110, 1170)),
    Photo("ihc.png", "tissue", 84, "no known copyright restrictions, Center for Microscopy And Molecular Imaging"),
    Photo("text.png", "writing", 64, "no known copyright restrictions, public domain, from Wikipedia (Corner.png)"),
)


@dataclass(frozen=True)
class Patch:
    """A patch's pixels (uint8, [32, 32]) and a box that holds every pixel of the photograph it was made of."""

    pixels_HW: npt.NDArray[np.uint8]
    box: Box


def build_photo_patches(folder: Path) -> None:
    """Return nothing; write the set as `train/CLASS/*.png` and `test/CLASS/*.png`, 8-bit grey, below `folder`.

    The bytes depend on the photographs and on Pillow's version alone; a second call writes the same files again.
    Raises UserError where the installed scikit-image lacks a photograph.
    """
    for photo in PHOTOS:
        grey = read_photo(photo)
        for split, count in PATCHES_PER_CLASS.items():
            target = folder / split / photo.label
            target.mkdir(parents=True, exist_ok=True)
            for i, patch in enumerate(cut_patches(photo, grey, split, count)):
                Image.fromarray(patch.pixels_HW).save(target / f"{photo.label}_{i:03d}.png")


def licence_text() -> str:
    """Return one line for each class: its photograph and the licence that scikit-image's documentation states."""
    return "\n".join(f"{photo.label}: {photo.file} of scikit-image; {photo.licence}" for photo in PHOTOS)


def photo_folder() -> Path:
    """Return the folder of the installed scikit-image that holds its photographs; UserError where none is installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("scikit-image is not installed, and the built-in image set is cut from its photographs")
    return Path(spec.submodule_search_locations[0]) / "data"


def read_photo(photo: Photo) -> Image.Image:
    """Return the photograph in grey levels 0..255 (mode F), cropped to its frame.

    Reads by path, as scikit-image's own loaders may download. Raises UserError naming the file where it is missing.
    """
    path = photo_folder() / photo.file
    try:
        with Image.open(path) as image:
            return image.convert("L").crop(photo.frame).convert("F")
    except FileNotFoundError:
        raise UserError(
            f"{path}: the installed scikit-image lacks this photograph, of which the built-in image set is cut; "
            "install scikit-image 0.26, or name a data set of your own"
        ) from None


def half(size: tuple[int, int], split: str) -> Box:
    """Return the box of a photograph of `size` (width, height) that `split` is cut from.

    The halves lie side by side along the longer side, train first, `GAP` pixels apart.
    """
    width, height = size
    length = max(size)
    start, end = (0, (length - GAP) // 2) if split == "train" else ((length + GAP + 1) // 2, length)
    return (start, 0, end, height) if width >= height else (0, start, width, end)


def cut_patches(photo: Photo, grey: Image.Image, split: str, count: int) -> list[Patch]:
    """Return `count` patches of the photograph's half for `split`, always the same ones.

    Raises UserError where that half holds too few windows that are not near blank.
    """
    purpose = f"photo patches/{photo.label}/{split}"
    draws = uniform(0, purpose, range(count * _CANDIDATES), 4).tolist()
    windows = (_cut_window(grey, half(grey.size, split), photo.window, row) for row in draws)
    chosen = list(islice((window for window in windows if window[0].std() >= LEAST_CONTRAST), count))
    if len(chosen) < count:
        raise UserError(f"{photo.file} of the installed scikit-image is too flat to cut {count} {split} patches of it")

    shades = uniform(0, f"{purpose}/shade", range(count), 2 + SIDE * SIDE).numpy()
    return [Patch(_shade(window_HW, shade), box) for (window_HW, box), shade in zip(chosen, shades, strict=True)]


def _cut_window(
    grey: Image.Image, region: Box, usual: float, draw: Sequence[float]
) -> tuple[npt.NDArray[np.float64], Box]:
    """Return a turned square window inside `region`, reduced to grey levels [32, 32], and the box it was cut from."""
    window = usual * _between(WINDOW, draw[0])
    angle = math.radians(_between((-TURN, TURN), draw[1]))
    cos, sin = math.cos(angle), math.sin(angle)

    # The turned window's half extent, and one pixel more for the interpolation between neighbours.
    reach = window / 2 * (abs(cos) + abs(sin)) + 1
    left, top, right, bottom = region
    x, y = _between((left + reach, right - reach), draw[2]), _between((top + reach, bottom - reach), draw[3])

    fine = SIDE * _FINE
    step, back = window / fine, window / 2
    affine = (
        cos * step,
        -sin * step,
        x - (cos - sin) * back,
        sin * step,
        cos * step,
        y - (sin + cos) * back,
    )
    cut = grey.transform((fine, fine), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR).reduce(_FINE)
    box = (math.floor(x - reach), math.floor(y - reach), math.ceil(x + reach), math.ceil(y + reach))
    return np.asarray(cut, np.float64), box


def _shade(window_HW: npt.NDArray[np.float64], draw: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return the window at a drawn brightness and contrast, with noise; `draw` holds 2 + 32 * 32 values in [0, 1)."""
    brightness, contrast = _between(BRIGHTNESS, draw[0]), _between(CONTRAST, draw[1])
    noise_HW = NOISE * (2 * draw[2:].reshape(SIDE, SIDE) - 1)
    shaded_HW = brightness + contrast * (window_HW - window_HW.mean()) / window_HW.std() + noise_HW
    rounded_HW: npt.NDArray[np.uint8] = np.rint(shaded_HW).clip(0, 255).astype(np.uint8)
    return rounded_HW


def _between(bounds: tuple[float, float], u: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * u
