"""Draws `masks.png` beside this file: one mask of each kind, by the code that training uses, on the built-in images.

Run: python docs/img/masks.py
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from hydramix_dist.config.schema import MaskSettings, MixSettings, SegmentSettings
from hydramix_dist.data.builtin import build_photo_patches
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import import_dataset
from hydramix_dist.data.shots import ShotSet, load_shots
from hydramix_dist.mixing.compose import Composer
from hydramix_dist.mixing.masks import masks_from_regions
from hydramix_dist.report.sheets import segment_picture, source_colour, source_picture

SIDE, CELLS, TILE, GAP, LABEL = 64, 16, 96, 12, 18  # pixels, feature cells, and pixels of the picture
CLASS, NUMBER = "cat", 2  # which class is mixed, and the global sample number: any other gives other draws
KINDS = {
    "grid, K = 3": MixSettings(count=3, mask=MaskSettings(kind="grid")),
    "segments-independent, K = 3": MixSettings(count=3, mask=MaskSettings(kind="segments-independent")),
    "segments-contiguous, K = 3": MixSettings(count=3, mask=MaskSettings(kind="segments-contiguous")),
    "chimera-grid, K = 2": MixSettings(count=2, mask=MaskSettings(kind="chimera-grid")),
    "chimera-segments, K = 2": MixSettings(count=2, mask=MaskSettings(kind="chimera-segments")),
}
HEADINGS = ("source 1", "source 2", "source 3", "segments", "giver by pixel", "cells: nearest", "cells: area")


def main() -> None:
    """Write the picture."""
    shots = five_images()
    canvas = Image.new("RGB", (GAP + 7 * (TILE + GAP), 2 * GAP + LABEL + 5 * (TILE + GAP + LABEL)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for column, heading in enumerate(HEADINGS):
        draw.text((GAP + column * (TILE + GAP), GAP // 2), heading, "#1c2430", font)
    for row, (name, mix) in enumerate(KINDS.items()):
        top = GAP + LABEL + row * (TILE + GAP + LABEL)
        draw.text((GAP, top), name, "#1c2430", font)
        for column, tile in pictures(shots, mix).items():
            canvas.paste(tile, (GAP + column * (TILE + GAP), top + LABEL))
    canvas.quantize(64).save(Path(__file__).with_suffix(".png"), optimize=True)


def five_images() -> ShotSet:
    """Return the first five training images of the class, with their segments at the method's default settings."""
    with tempfile.TemporaryDirectory() as folder:
        build_photo_patches(Path(folder) / "photos")
        import_dataset(Path(folder) / "photos", f"{folder}/set")
        dataset = Dataset.open(f"{folder}/set")
        rows = np.flatnonzero(dataset.labels("train") == dataset.classes.index(CLASS))[:5]
        return load_shots(dataset, rows, SIDE, SegmentSettings())


def pictures(shots: ShotSet, mix: MixSettings) -> dict[int, Image.Image]:
    """Return the tiles of one row by column."""
    # The same draws twice: a grid that is averaged is drawn finer than one that is not.
    made, averaged = (
        Composer(shots, with_cells(mix, rule), CELLS, seed=0, stage="picture").compose(
            shots.labels_N.new_zeros(1), np.array([NUMBER]), step=NUMBER
        )
        for rule in ("nearest", "area")
    )
    sources = made.images_NCHW.permute(0, 2, 3, 1).numpy()
    tiles = {k: framed(image_HWC, source_colour(k)) for k, image_HWC in enumerate(sources)}
    if "segments" in mix.mask.kind:
        assert shots.segments_NHW is not None
        view_1 = made.sources_BK[0, made.layout_B]
        map_HW = made.draws.at(view_1).apply_to_maps(shots.segments_NHW[made.rows_N[view_1]])[0]
        tiles[3] = framed(segment_picture(map_HW.numpy()), source_colour(int(made.layout_B[0])))
    by_pixel_KHW = masks_from_regions(averaged.regions, mix, averaged.regions.map_BHW.shape[-1])[0]
    weights = {4: by_pixel_KHW, 5: made.mask_BKhw[0], 6: averaged.mask_BKhw[0]}
    return tiles | {column: framed(source_picture(w_Khw.numpy()), "#d5dae1") for column, w_Khw in weights.items()}


def with_cells(mix: MixSettings, rule: str) -> MixSettings:
    """Return the settings with that rule from pixels to feature cells."""
    return mix.model_copy(update={"mask": mix.mask.model_copy(update={"downsample": rule})})


def framed(pixels_HWC: np.ndarray, colour: str) -> Image.Image:
    """Return the picture at a tile's size, each pixel equally large, in a frame."""
    enlarged = Image.fromarray(pixels_HWC).resize((TILE - 6, TILE - 6), Image.Resampling.NEAREST)
    return ImageOps.expand(enlarged, 3, colour)


if __name__ == "__main__":
    main()
