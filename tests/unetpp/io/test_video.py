"""Frames of videos: bit for bit those that were written, or that playing the file from its start gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from unetpp.errors import CorruptImageError, ImageFormatError, ImageNotFoundError
from unetpp.io import open_raster
from unetpp.io.base import fingerprint
from unetpp.io.video import frame_count


def _write(path: Path, frames: list[np.ndarray], codec: str, pixel_format: str, **options: Any) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=15)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def frames(make: Any) -> list[np.ndarray]:
    return [np.kron(make.noise((12, 16, 3), seed=i), np.ones((8, 8, 1), np.uint8)) for i in range(20)]


@pytest.mark.proves("frames of videos")
def test_lossless_frames_come_back_bit_for_bit(frames: list[np.ndarray], tmp_path: Path) -> None:
    path = _write(tmp_path / "clip.mkv", frames, "ffv1", "bgr0")
    assert frame_count(path) == 20
    for number in (0, 19, 7, 3):
        with open_raster(f"{path}#{number}") as raster:
            assert (raster.format, raster.uri) == ("video frame", f"{path}#{number}")
            np.testing.assert_array_equal(raster.read(raster.levels[0].box).pixels, frames[number])


def test_frames_between_key_frames_are_those_of_playing_it(frames: list[np.ndarray], tmp_path: Path) -> None:
    path = _write(tmp_path / "clip.mp4", frames, "mpeg4", "yuv420p", gop_size=6, max_b_frames=2)
    with av.open(str(path)) as container:
        played = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert frame_count(path) == len(played) == 20
    for number, truth in enumerate(played):
        with open_raster(f"{path}#{number}") as raster:
            np.testing.assert_array_equal(raster.read(raster.levels[0].box).pixels, truth)


def test_a_video_cut_without_encoding_anew_has_the_frames_that_it_shows(
    frames: list[np.ndarray], tmp_path: Path
) -> None:
    """As phones cut: the frames before the cut stay in the file, where others are predicted from them."""
    whole = _write(tmp_path / "whole.mp4", frames, "mpeg4", "yuv420p", gop_size=8, max_b_frames=2)
    path = tmp_path / "cut.mp4"
    options = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    with av.open(str(whole)) as source, av.open(str(path), "w", container_options=options) as target:
        given = source.streams.video[0]
        stream = target.add_stream_from_template(given)
        cut = round(3 / 15 / given.time_base)
        for packet in source.demux(given):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - cut, packet.dts - cut, stream
                target.mux(packet)
    with av.open(str(path)) as container:
        played = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert frame_count(path) == len(played) == 17
    for number, truth in enumerate(played):
        with open_raster(f"{path}#{number}") as raster:
            np.testing.assert_array_equal(raster.read(raster.levels[0].box).pixels, truth)


def test_time_stamps_that_are_not_in_the_order_of_the_frames_are_refused(
    frames: list[np.ndarray], tmp_path: Path
) -> None:
    path = _write(tmp_path / "clip.avi", frames, "libx264", "yuv420p", max_b_frames=2)
    with (
        pytest.raises(ImageFormatError, match=r"clip\.avi#3: the video shows its frames in another order than their"),
        open_raster(f"{path}#3") as raster,
    ):
        raster.read(raster.levels[0].box)


def test_missing_frames_damaged_files_and_fingerprints(frames: list[np.ndarray], tmp_path: Path) -> None:
    path = _write(tmp_path / "clip.mkv", frames[:3], "ffv1", "bgr0")
    assert len({fingerprint(f"{path}#{number}") for number in range(3)}) == 3
    with (
        pytest.raises(ImageNotFoundError, match=r"#3: the video has frames 0 to 2"),
        open_raster(f"{path}#3") as raster,
    ):
        raster.read(raster.levels[0].box)
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(CorruptImageError, match="video does not open"):
        open_raster(f"{tmp_path}/bad.mp4#0")
