"""Decodes JPEG tiles of a TIFF and JPEG photos and refuses damaged ones; knows no page and no file.

Most decoders, tifffile's among them, guess what a damaged stream may have held and say nothing. OpenSlide refuses it,
and so must we.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray

JPEG = 7
"""Value of TIFF's tag Compression (TIFF Technical Note 2)."""
GRAY, RGB, YCBCR = 1, 2, 6
"""Values of TIFF's tag PhotometricInterpretation."""
_SAMPLES = {GRAY: 1, RGB: 3, YCBCR: 3}
_START = b"\xff\xd8"


def understands(compression: int, photometric: int, samples: int, planes: int, dtype: np.dtype[Any]) -> bool:
    """Say whether `decode` knows tiles with these tags; `planes` is PlanarConfiguration, where 1 is interleaved."""
    fits = _SAMPLES.get(photometric) == samples and planes == 1 and dtype == np.uint8
    return compression == JPEG and fits


def decode(
    tile: bytes, tables: bytes | None, photometric: int, shape: tuple[int, int], largest: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the (h, w, samples) pixels of one tile.

    Args:
        tile: a JPEG stream, which may lack its tables.
        tables: the page's JPEGTables, a stream of nothing but tables.
        photometric: GRAY, RGB or YCBCR; a JFIF or Adobe marker in the tile itself wins, as in libjpeg.
        shape: (h, w) of the tile's part inside the image, which the stream must cover.
        largest: (h, w) of a whole tile, which the stream must not exceed.

    Raises:
        ValueError: the stream is damaged, smaller than `shape` or larger than a tile.
    """
    if not tile.startswith(_START):
        raise ValueError("not a JPEG stream")
    # An Adobe marker says what the samples are: without one libjpeg guesses from the components' names.
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(4) + bytes([photometric == YCBCR])
    stream = _START + (b"" if photometric == GRAY else adobe) + (tables[2:-2] if tables else b"") + tile[2:]
    return _decode(stream, photometric == GRAY, shape, largest)[: shape[0], : shape[1]]


def decode_photo(stream: bytes, gray: bool, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the (h, w, 1 or 3) pixels of a JPEG file of 1 or 3 components that says it has this shape (h, w).

    Raises:
        ValueError: the stream is damaged, or its scan has another shape.
    """
    return _decode(stream, gray, shape, shape)


def _decode(stream: bytes, gray: bool, least: tuple[int, int], largest: tuple[int, int]) -> NDArray[np.uint8]:
    # A few bytes can claim 65,500 pixels each way, so the size is read before there is memory for it.
    height, width, *_ = simplejpeg.decode_jpeg_header(stream)
    if height > largest[0] or width > largest[1]:
        raise ValueError(f"a JPEG of {height} x {width} pixels, where at most {largest[0]} x {largest[1]} fit")
    if height < least[0] or width < least[1]:
        raise ValueError(f"a JPEG of {height} x {width} pixels, not {least[0]} x {least[1]}")
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(stream, "GRAY" if gray else "RGB")
    return pixels
