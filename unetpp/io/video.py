"""Reads single frames of a video file through PyAV (FFmpeg); knows frame numbers, and no audio."""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError, ImageTooLargeError
from unetpp.geometry import Box
from unetpp.io.base import Mask, Pixels
from unetpp.io.reader import MAX_DECODED_PIXELS, RGB, ReaderBase, first_line, make_levels

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm")
_FRAME = re.compile(r"(.*)#(\d+)")


class FrameRaster(ReaderBase):
    """One frame of a video as 8-bit RGB, named FILE#NUMBER with frames counted from 0 in the order they are shown.

    The frame is found by its time stamp, from the key frame before it, so it is the one that playing all would give.
    """

    kind = "image"
    format = "video frame"
    bands = RGB
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path, number: int) -> None:
        self.uri, self.file, self.frame = f"{path}#{number}", path, number
        self._lock = threading.Lock()
        self._pixels: Pixels | None = None
        with _opened(path) as container:
            stream = container.streams.video[0]
            height, width = stream.codec_context.height, stream.codec_context.width
        if height * width > MAX_DECODED_PIXELS:
            raise ImageTooLargeError(f"{path}: frames of {width}x{height} pixels exceed {MAX_DECODED_PIXELS}")
        self.levels = make_levels([(height, width)])

    def _read_inside(self, box: Box, level: int) -> tuple[Pixels, Mask | None]:
        with self._lock:
            if self._pixels is None:
                self._pixels = self._decode()
        return self._pixels[box.slices()].copy(), None

    def _decode(self) -> Pixels:
        times = _times(self.file)
        if self.frame >= len(times):
            raise ImageNotFoundError(f"{self.uri}: the video has frames 0 to {len(times) - 1}")
        # A seek may land behind the frame where frames are stored in another order than shown; then from the start.
        for start in (times[self.frame], times[0]):
            with _opened(self.file) as container:
                stream = container.streams.video[0]
                container.seek(start, stream=stream, backward=True)
                number: int | None = None
                for frame in _whole_frames(container, stream):
                    number = bisect_left(times, frame.pts) if number is None else number + 1
                    if times[number : number + 1] != [frame.pts]:
                        raise ImageFormatError(
                            f"{self.uri}: the video shows its frames in another order than their time stamps say, as "
                            "H.264 in AVI does; write it as MP4 anew, or its frames as PNG files"
                        )
                    if number == self.frame:
                        return np.asarray(frame.to_ndarray(format="rgb24"))
                    if number > self.frame:
                        break
        raise CorruptImageError(f"{self.uri}: the frame does not decode; copy the file again")

    def close(self) -> None:
        self._pixels = None


def is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def split_frame(uri: str) -> tuple[Path, int] | None:
    """Return file and number of a frame's name, None where it is none."""
    match = _FRAME.fullmatch(uri)
    return (Path(match[1]), int(match[2])) if match and is_video(Path(match[1])) else None


def frame_count(path: Path) -> int:
    """Return how many frames a video shows; nothing is decoded. Errors as `open_raster`'s."""
    return len(_times(path))


def _whole_frames(container: Any, stream: Any) -> Iterator[Any]:
    """Yield frames from the first key frame on, shown or not: those before it may lack what they are predicted from."""
    key = None
    for packet in container.demux(stream):
        if key is None and packet.is_keyframe:
            key = packet.pts
        yield from (frame for frame in packet.decode() if key is not None and frame.pts >= key)


def _times(path: Path) -> list[int]:
    """Return the time stamps of all frames in the order they are shown.

    What was cut off the beginning without encoding anew is still there, and not shown.
    """
    with _opened(path) as container:
        packets = container.demux(container.streams.video[0])
        times = sorted(packet.pts for packet in packets if packet.pts is not None and not packet.is_discard)
    if len(set(times)) != len(times):
        raise ImageFormatError(f"{path}: two of its frames have one time stamp; write the frames as PNG files")
    return times


def _opened(path: Path) -> Any:
    try:
        import av
    except ImportError:
        raise ImageFormatError(f"{path}: videos need PyAV; install it with `pip install unetpp[video]`") from None
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise CorruptImageError(f"{path}: video does not open ({first_line(error)}); copy it again") from None
    if not container.streams.video:
        container.close()
        raise ImageFormatError(f"{path}: holds no video stream")
    return container
