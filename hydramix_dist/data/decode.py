"""From an encoded image of any kind to the stored square: 8-bit RGB, upright, digested, with a small thumbnail.

Rules (ours): EXIF orientation is applied; 16-bit grey is scaled by 1/257, its whole range to 0..255; transparent
pixels are laid on white; colour profiles are not applied. "crop" scales the short side and cuts the centre,
"letterbox" scales the long side and fills up with black; both bicubic with antialiasing. An image that has the
stored side already keeps its pixels exactly.
"""

import hashlib
import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from hydramix_dist.data.manifest import Fit

MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 2**20
THUMBNAIL_SIDE = 16

# Formats that hold one raster image. Others that Pillow knows start programs (EPS) or hold documents.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF")

Pixels = npt.NDArray[np.uint8]
Payload = bytes | Pixels


class Refusal(Exception):  # noqa: N818 - an answer about one image, listed in the report
    """Why an image does not come in; the text is the reason."""


@dataclass(frozen=True)
class StoredImage:
    """One image as stored: PNG, hex sha256 of its RGB bytes (row by row), thumbnail, original width and height."""

    png: bytes
    sha256: str
    thumbnail: bytes
    width: int
    height: int


def prepare(payload: Payload, side: int, fit: Fit) -> StoredImage:
    """Return an encoded image or uint8 pixels [H, W, 3] as stored. Raises Refusal."""
    image = Image.fromarray(payload) if isinstance(payload, np.ndarray) else decode(payload)
    square = fit_square(image, side, fit)
    pixels = np.asarray(square)
    return StoredImage(encode_png(pixels), pixel_digest(pixels), thumbnail(square), image.width, image.height)


def decode(data: bytes) -> Image.Image:
    """Return an upright RGB image, [H, W, 3] in 0..255. Raises Refusal: unreadable, truncated, animated, too large."""
    try:
        image = _opened(data)
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except Refusal:
        raise
    except Exception as error:  # the decoders raise nearly anything on broken bytes; each becomes a listed reason
        raise Refusal(f"broken image data ({_one_line(error)})") from error


def native_size(payload: Payload) -> tuple[int, int]:
    """Return (width, height) from the head of an encoded image, or of pixels. Raises Refusal."""
    if isinstance(payload, np.ndarray):
        return payload.shape[1], payload.shape[0]
    return _opened(payload).size


def _opened(data: bytes) -> Image.Image:
    if len(data) > MAX_BYTES:
        raise Refusal(f"absurdly large: {len(data)} bytes, at most {MAX_BYTES} are read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is judged below, broken metadata does not matter
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            # Phones store a preview as a second frame (MPO); the first one is the photograph.
            frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise Refusal(f"absurdly large: more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise Refusal(f"no image in a known format ({', '.join(_FORMATS)})") from error
    except Exception as error:  # as in decode()
        raise Refusal(f"broken image data ({_one_line(error)})") from error
    if image.width * image.height > MAX_PIXELS:
        raise Refusal(f"absurdly large: {image.width}x{image.height}, more than {MAX_PIXELS} pixels")
    if frames > 1:
        raise Refusal(f"animated or multi-page: {frames} frames, one is needed")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise Refusal("floating-point pixels have no declared range; store the image with 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise Refusal("pixel values outside 0..65535; store the image with 8 or 16 bits")
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def fit_square(image: Image.Image, side: int, fit: Fit) -> Image.Image:
    """Return the image brought to side x side by the declared rule; untouched where it has that size."""
    width, height = image.size
    if (width, height) == (side, side):
        return image
    if fit == "crop":
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
        return image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    scale = side / max(width, height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    square = Image.new("RGB", (side, side))
    square.paste(image.resize(inner, Image.Resampling.BICUBIC), ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return square


def resized(pixels: Pixels, side: int) -> Pixels:
    """Return stored pixels [s, s, 3] at another side, bilinear with antialiasing: [side, side, 3]."""
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def thumbnail(image: Image.Image) -> bytes:
    """Return box-averaged grey values, THUMBNAIL_SIDE squared bytes, for the search for near duplicates."""
    grey = image.convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return grey.tobytes()


def pixel_digest(pixels: Pixels) -> str:
    """Return the hex sha256 of RGB bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def encode_png(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> bytes:
    """Return a PNG without metadata of [H, W, 3] uint8 or [H, W] uint16 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def read_png(data: bytes | memoryview) -> Pixels:
    """Return the pixels of a stored PNG as they are, [s, s, 3] uint8. Raises Refusal where it is damaged."""
    try:
        # The class itself: Image.open asks each format first, a fifth of a small image's time.
        return np.asarray(PngImagePlugin.PngImageFile(io.BytesIO(data)))
    except Exception as error:  # as in decode()
        raise Refusal(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
