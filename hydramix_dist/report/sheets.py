"""Sheets of mixes: each row shows the sources, segments, who gave which part, the mix, and the nearest real image.

Legend: K images in a mix, C channels (3), H W pixels, h w feature cells.
"""

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from hydramix_dist.errors import UserError
from hydramix_dist.store import Store

SHEETS_FILE = "mixes.npz"

Pixels = npt.NDArray[np.uint8]

# One colour for each source, the same in frames, masks and text: Okabe and Ito's set, safe for colour-blind readers,
# in an order whose first members differ most.
SOURCE_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#5a5a5a")

_TILE, _GAP, _BORDER, _LABEL, _MARGIN = 110, 10, 3, 20, 14
_INK, _QUIET = "#1c2430", "#5b6675"


@dataclass(frozen=True)
class Sheet:
    """One mix with all that went into it.

    `segments_HW` are the segments that shaped the mask (int, labels 0..n-1; None for a mask without segments),
    `source_map_Khw` each source's weight per feature cell (float in [0, 1], sums to 1 over K), `nearest_HWC` the real
    training image closest to the mix, and `distance` how far off it is (root mean square difference of pixels, 0..255).
    """

    arm: str
    caption: str
    sources_KHWC: Pixels
    segments_HW: npt.NDArray[np.integer] | None
    source_map_Khw: npt.NDArray[np.floating]
    mix_HWC: Pixels
    nearest_HWC: Pixels
    distance: float


@dataclass(frozen=True)
class Tile:
    """One picture of a row: a short label, RGB pixels [H,W,3] at their own size, and a frame colour or None."""

    label: str
    pixels_HWC: Pixels
    colour: str | None = None


def tiles(sheet: Sheet) -> list[Tile]:
    """Return a sheet's pictures from left to right: sources, segments (where there are some), parts, mix, nearest."""
    side = sheet.mix_HWC.shape[0]
    sources = [Tile(f"source {k + 1}", image_HWC, source_colour(k)) for k, image_HWC in enumerate(sheet.sources_KHWC)]
    segments = [] if sheet.segments_HW is None else [Tile("segments", segment_picture(sheet.segments_HW))]
    return [
        *sources,
        *segments,
        Tile("taken from", _enlarged(source_picture(sheet.source_map_Khw), side)),
        Tile("mix", sheet.mix_HWC, _INK),
        Tile(f"nearest real, off by {sheet.distance:.0f}", sheet.nearest_HWC),
    ]


def source_colour(k: int) -> str:
    """Return the colour of source k, "#rrggbb"; colours come again after eight sources."""
    return SOURCE_COLOURS[k % len(SOURCE_COLOURS)]


def source_picture(source_map_Khw: npt.NDArray[np.floating]) -> Pixels:
    """Return uint8 [h,w,3]: each cell in its source's colour, or in the weighted blend where several share a cell."""
    palette_KC = np.array([_rgb(source_colour(k)) for k in range(len(source_map_Khw))], np.float64)
    blend_hwC = np.einsum("khw,kc->hwc", source_map_Khw.astype(np.float64), palette_KC)
    picture_hwC: Pixels = np.clip(blend_hwC.round(), 0, 255).astype(np.uint8)
    return picture_hwC


def segment_picture(segments_HW: npt.NDArray[np.integer]) -> Pixels:
    """Return uint8 [H,W,3]: a quiet colour for each segment, white lines between segments."""
    labels_HW = segments_HW.astype(np.int64)
    # Steps of the golden ratio spread hues so that neighbouring labels look different, however many there are.
    hue_HW = (labels_HW * 0.618033988749895) % 1.0
    angle_HWC = 2 * np.pi * (hue_HW[..., None] + np.array([0.0, -1 / 3, 1 / 3]))
    picture_HWC: Pixels = (165 + 55 * np.cos(angle_HWC)).astype(np.uint8)
    edge_HW = np.zeros(labels_HW.shape, bool)
    edge_HW[:, 1:] |= labels_HW[:, 1:] != labels_HW[:, :-1]
    edge_HW[1:] |= labels_HW[1:] != labels_HW[:-1]
    picture_HWC[edge_HW] = 255
    return picture_HWC


def sheet_png(sheets: Sequence[Sheet]) -> bytes:
    """Return one PNG with a labelled row for each sheet (at least one), pixels enlarged without smoothing."""
    rows = [(sheet, tiles(sheet)) for sheet in sheets]
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    side = sheets[0].mix_HWC.shape[0]
    # A whole multiple of the image's side, so that every pixel is shown equally large.
    inner = side * max(1, round(_TILE / side))
    tile_side = inner + 2 * _BORDER
    row_height = _LABEL + tile_side + _LABEL + _GAP
    width = 2 * _MARGIN + max(len(row) for _, row in rows) * (tile_side + _GAP) - _GAP
    canvas = Image.new("RGB", (width, 2 * _MARGIN + row_height * len(rows) - _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (sheet, row) in enumerate(rows):
        top = _MARGIN + number * row_height
        draw.text((_MARGIN, top), f"{sheet.arm}: {sheet.caption}", fill=_INK, font=font)
        for column, tile in enumerate(row):
            left = _MARGIN + column * (tile_side + _GAP)
            canvas.paste(_framed(tile, inner), (left, top + _LABEL))
            label = _fitted(tile.label, small, tile_side + _GAP - 2)
            draw.text((left, top + _LABEL + tile_side + 3), label, fill=_QUIET, font=small)
    return _png(canvas)


def tile_png(tile: Tile) -> bytes:
    """Return a tile's picture as PNG at its own size, for a page that enlarges it."""
    return _png(Image.fromarray(tile.pixels_HWC))


def save_sheets(store: Store, sheets: Sequence[Sheet]) -> None:
    """Write the sheets' arrays into a run folder, so that its page can be made again without the generator."""
    buffer = io.BytesIO()
    arrays = {
        f"{number}.{field.name}": np.asarray(getattr(sheet, field.name))
        for number, sheet in enumerate(sheets)
        for field in fields(Sheet)
        if getattr(sheet, field.name) is not None
    }
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    store.put(SHEETS_FILE, buffer.getvalue())


def load_sheets(store: Store) -> list[Sheet]:
    """Return the sheets of a run folder in order; none where none were saved. Raises UserError for a damaged file."""
    if not store.exists(SHEETS_FILE):
        return []
    try:
        return _read_sheets(store)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{store.path(SHEETS_FILE)} is damaged ({error}); delete it, the page is then written without mixes"
        ) from error


def _read_sheets(store: Store) -> list[Sheet]:
    with np.load(io.BytesIO(store.read(SHEETS_FILE)), allow_pickle=False) as arrays:
        count = len({name.split(".")[0] for name in arrays.files})
        return [
            Sheet(
                arm=str(arrays[f"{i}.arm"]),
                caption=str(arrays[f"{i}.caption"]),
                sources_KHWC=arrays[f"{i}.sources_KHWC"],
                segments_HW=arrays[f"{i}.segments_HW"] if f"{i}.segments_HW" in arrays.files else None,
                source_map_Khw=arrays[f"{i}.source_map_Khw"],
                mix_HWC=arrays[f"{i}.mix_HWC"],
                nearest_HWC=arrays[f"{i}.nearest_HWC"],
                distance=float(arrays[f"{i}.distance"]),
            )
            for i in range(count)
        ]


def _framed(tile: Tile, inner: int) -> Image.Image:
    frame = Image.new("RGB", (inner + 2 * _BORDER,) * 2, tile.colour or "#d5dae1")
    frame.paste(Image.fromarray(_enlarged(tile.pixels_HWC, inner)), (_BORDER, _BORDER))
    return frame


def _enlarged(pixels_HWC: Pixels, side: int) -> Pixels:
    """Return uint8 [side,side,3], each new pixel copied from the old one it lies in."""
    return np.asarray(Image.fromarray(pixels_HWC).resize((side, side), Image.Resampling.NEAREST))


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while font.getlength(text) > width:
        text = text[:-1]
    return text


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
