"""Images of every kind come out right, or are refused with a reason."""

import io
import zlib

import numpy as np
import pytest
from data_files import encoded, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hydramix_dist.data.decode import (
    MAX_PIXELS,
    Refusal,
    decode,
    encode_png,
    fit_square,
    pixel_digest,
    prepare,
    read_png,
)

GREY_STEPS = np.tile(np.arange(16, dtype=np.uint8) * 17, (16, 1))  # 0, 17 .. 255 from left to right


def test_grey_becomes_three_equal_channels() -> None:
    pixels = np.asarray(decode(encoded(Image.fromarray(GREY_STEPS))))
    assert pixels.shape == (16, 16, 3)
    assert all(np.array_equal(pixels[..., channel], GREY_STEPS) for channel in range(3))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    wide = Image.fromarray(GREY_STEPS.astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(decode(encoded(wide, kind)))[..., 0], GREY_STEPS)


def test_one_bit_image_is_black_and_white() -> None:
    pixels = np.asarray(decode(encoded(Image.fromarray(GREY_STEPS).point(lambda v: 255 * (v > 100)).convert("1"))))
    assert set(np.unique(pixels)) == {0, 255}


def test_palette_keeps_its_colours() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 200, 30, 60] + [0] * 762)
    assert np.asarray(decode(encoded(image))).reshape(-1, 3).tolist() == [[200, 30, 60]] * 256


def test_transparent_pixels_are_white_and_half_transparent_ones_half_way() -> None:
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, 4:8, 3] = 255
    rgba[:, 8:, 3] = 128
    row = np.asarray(decode(encoded(Image.fromarray(rgba))))[0, :, 0]
    assert row[:4].tolist() == [255] * 4 and row[4:8].tolist() == [0] * 4
    assert np.abs(row[8:].astype(int) - 127).max() <= 1


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([10, 20, 30] + [0] * 765)
    assert np.asarray(decode(encoded(image, transparency=0))).min() == 255


def test_cmyk_jpeg_keeps_its_colour() -> None:
    red = Image.new("RGB", (16, 16), (220, 20, 20)).convert("CMYK")
    r, g, b = np.asarray(decode(encoded(red, "JPEG", quality=95))).reshape(-1, 3).mean(0)
    assert r > 180 and g < 60 and b < 60


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(orientation: int, turn: int) -> None:
    upright = picture(1, 32)
    stored = Image.fromarray(np.rot90(upright, -turn).copy())
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(encoded(stored, exif=exif))), upright)


def test_truncated_image_is_refused() -> None:
    data = encoded(picture(2, 64), "JPEG")
    with pytest.raises(Refusal, match="truncated"):
        decode(data[: len(data) // 2])


def test_other_bytes_are_refused() -> None:
    with pytest.raises(Refusal, match="known format"):
        decode(b"not an image at all")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_animation_is_refused(kind: str) -> None:
    frames = [Image.fromarray(picture(seed)) for seed in (1, 2)]
    with pytest.raises(Refusal, match="2 frames"):
        decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))


@pytest.mark.parametrize("side", [8_100, 30_000])
def test_decompression_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    assert side**2 > MAX_PIXELS
    bomb = bytearray(encoded(Image.new("1", (8, 8))))
    bomb[16:24] = side.to_bytes(4, "big") * 2  # the size in the head; the body need not be there
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(Refusal, match="absurdly large"):
        decode(bytes(bomb))


@given(st.binary(max_size=300), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"]), st.integers(0, 200))
def test_broken_bytes_give_an_image_or_a_refusal_and_nothing_else(noise: bytes, kind: str, place: int) -> None:
    data = bytearray(encoded(picture(3, 16), kind))
    data[place : place + len(noise)] = noise
    try:
        assert decode(bytes(data)).mode == "RGB"
    except Refusal as refusal:
        assert str(refusal)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(8, 40), st.sampled_from(["crop", "letterbox"]))
def test_fit_gives_the_side_whatever_the_shape(width: int, height: int, side: int, fit: str) -> None:
    assert fit_square(Image.new("RGB", (width, height), "red"), side, fit).size == (side, side)  # type: ignore[arg-type]


def test_crop_keeps_the_centre_and_letterbox_keeps_all() -> None:
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20, 0], pixels[:, 20:40, 1], pixels[:, 40:, 2] = 255, 255, 255
    image = Image.fromarray(pixels)
    middle = np.asarray(fit_square(image, 20, "crop"))
    assert np.array_equal(middle, pixels[:, 20:40])
    whole = np.asarray(fit_square(image, 60, "letterbox"))
    assert np.array_equal(whole[20:40], pixels) and not whole[:20].any() and not whole[40:].any()


def test_image_of_the_stored_side_keeps_its_pixels() -> None:
    pixels = picture(4, 32)
    stored = prepare(encoded(pixels), 32, "crop")
    assert np.array_equal(read_png(stored.png), pixels)
    assert stored.sha256 == pixel_digest(pixels) == prepare(pixels, 32, "letterbox").sha256
    assert stored.sha256 != pixel_digest(picture(5, 32))


def test_label_maps_survive_as_16_bit_png() -> None:
    labels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(np.array(Image.open(io.BytesIO(encode_png(labels)))), labels)
