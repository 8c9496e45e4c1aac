"""JPEG tiles and photos: libjpeg's own pixels for every colour, with and without tables of its own."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from unetpp.io import jpeg


@pytest.mark.parametrize("kind", ["RGB", "YCBCR"])
@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_colours_are_what_the_page_says(kind: str, subsampling: str) -> None:
    pixels = astronaut()[:97, :131]
    tile = imagecodecs.jpeg8_encode(pixels, level=90, colorspace="RGB", outcolorspace=kind, subsampling=subsampling)
    bare = tile if kind == "RGB" else _without_jfif(tile)
    expected = imagecodecs.jpeg8_decode(bare, colorspace=kind, outcolorspace="RGB")
    photometric = jpeg.RGB if kind == "RGB" else jpeg.YCBCR
    np.testing.assert_array_equal(jpeg.decode(bare, None, photometric, (97, 131), (97, 131)), expected)
    assert np.abs(expected.astype(int) - pixels).mean() < 5


def test_grey_and_the_part_inside_the_image() -> None:
    grey = np.ascontiguousarray(astronaut()[:64, :80, 1])
    tile = imagecodecs.jpeg8_encode(grey, level=95)
    expected = imagecodecs.jpeg8_decode(tile)
    np.testing.assert_array_equal(jpeg.decode(tile, None, jpeg.GRAY, (50, 60), (64, 80))[..., 0], expected[:50, :60])


def test_tables_of_the_page_are_used() -> None:
    pixels = astronaut()[:64, :64]
    tile = _without_jfif(imagecodecs.jpeg8_encode(pixels, level=75))
    tables, bare = _split_tables(tile)
    expected = imagecodecs.jpeg8_decode(tile)
    np.testing.assert_array_equal(jpeg.decode(bare, tables, jpeg.YCBCR, (64, 64), (64, 64)), expected)
    with pytest.raises(ValueError):
        jpeg.decode(bare, None, jpeg.YCBCR, (64, 64), (64, 64))


def test_damaged_and_small_tiles_are_refused() -> None:
    tile = imagecodecs.jpeg8_encode(astronaut()[:64, :64], level=75)
    for broken in (tile[: len(tile) // 2], b"", b"II*", tile[:-2]):
        with pytest.raises(ValueError):
            jpeg.decode(broken, None, jpeg.YCBCR, (64, 64), (64, 64))
    with pytest.raises(ValueError, match="64 x 64 pixels, not 65 x 64"):
        jpeg.decode(tile, None, jpeg.YCBCR, (65, 64), (65, 64))


def test_a_tile_that_claims_more_than_a_tile_is_refused_before_it_decodes() -> None:
    tile = bytearray(imagecodecs.jpeg8_encode(np.zeros((16, 16, 3), np.uint8)))
    size = tile.index(b"\xff\xc0") + 5
    tile[size : size + 4] = (65_000).to_bytes(2, "big") * 2
    tracemalloc.start()
    with pytest.raises(ValueError, match="65000 x 65000 pixels, where at most 16 x 16 fit"):
        jpeg.decode(bytes(tile), None, jpeg.YCBCR, (16, 16), (16, 16))
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 60, "subsampling": 0}, {"keep_rgb": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_photos_have_the_pixels_of_pillow_or_none(mode: str, options: dict[str, Any]) -> None:
    file = io.BytesIO()
    Image.fromarray(astronaut()[:201, :299]).convert(mode).save(file, "JPEG", **options)
    expected = np.asarray(Image.open(file))
    found = jpeg.decode_photo(file.getvalue(), mode == "L", (201, 299))
    np.testing.assert_array_equal(found.squeeze(), expected)
    half = file.getvalue()[: len(file.getvalue()) // 2]
    # With the mark of a stream's end Pillow reads even that, and makes up the rest.
    for broken in (half, half + file.getvalue()[-2:]):
        with pytest.raises(ValueError):
            jpeg.decode_photo(broken, mode == "L", (201, 299))


def _segments(tile: bytes) -> list[tuple[int, bytes]]:
    """Return (marker, bytes) of the stream's segments up to the scan, which is one with all that follows."""
    found, at = [], 2
    while tile[at + 1] != 0xDA:
        size = 2 + int.from_bytes(tile[at + 2 : at + 4], "big")
        found.append((tile[at + 1], tile[at : at + size]))
        at += size
    return [*found, (0xDA, tile[at:])]


def _without_jfif(tile: bytes) -> bytes:
    return tile[:2] + b"".join(part for marker, part in _segments(tile) if marker not in (0xE0, 0xEE))


def _split_tables(tile: bytes) -> tuple[bytes, bytes]:
    tables = b"".join(part for marker, part in _segments(tile) if marker in (0xDB, 0xC4))
    rest = b"".join(part for marker, part in _segments(tile) if marker not in (0xDB, 0xC4))
    return tile[:2] + tables + b"\xff\xd9", tile[:2] + rest
