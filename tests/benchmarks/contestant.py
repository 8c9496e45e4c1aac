"""Segments one slide with one other library, from the slide on disk to labels on disk; imports nothing of unetpp.

    python tests/benchmarks/contestant.py monai --slide S.tif --output OUT --network same.pt2 --threads 2
    python tests/benchmarks/contestant.py sweep --network smp --threads 2 --bf16

plain        tiles side by side through OpenSlide and the network into Zarr: the loop that everybody writes first
monai        MONAI's sliding_window_inference over the whole slide, with its defaults (overlap 0.25, equal weights)
tiatoolbox   TIAToolbox's SemanticSegmentor without a tissue mask; its stride is the patch unless its model says other
whole        one call of the network over the whole slide: what the seams are compared with
sweep        times the network alone in several settings

Networks: a file of torch.export that takes raw pixels; `smp`, `monai` and `tiatoolbox`, those libraries' own of the
size class, with random weights; `tiny`, one convolution, which shows what the library itself needs. The
last line printed is JSON: seconds and memory until the network was ready.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from peers import NETWORKS
from timing import throughput
from torch import Tensor, nn

PEERS = {"smp": "smp UnetPlusPlus mobilenet_v2", "monai": "monai BasicUNetPlusPlus"}
LABELS = "labels.zarr"
STRIP = 1024
Logits = Callable[[Tensor], Tensor]
Runner = Callable[[argparse.Namespace], None]
Setting = tuple[str, str, int, int]
"""Precision, layout, side of a tile and batch."""
ROUNDS = 3


class Raw(nn.Module):
    """Normalises what a library's network gets: raw (N, 3, H, W) float32 -> its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        found = self.network((image - 127.5) / 60.0)
        return found[0] if isinstance(found, list) else found  # MONAI gives a list of heads


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "tiny":
        return Raw(nn.Conv2d(3, 2, 3, padding=1)).eval()
    if name == "tiatoolbox":
        from tiatoolbox.models.architecture.unet import UNetModel

        return UNetModel(3, 5, "resnet50", decoder_block=(3, 3)).eval()  # that of its fcn_resnet50_unet-bcss
    if name in PEERS:
        return Raw(NETWORKS[PEERS[name]]()).eval()
    network: nn.Module = torch.export.load(name).module()
    return network


def logits_of(network: nn.Module, precision: str, layout: str) -> Logits:
    """Return raw (N, 3, H, W) float32 -> logits (N, K, H, W) float32."""
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    network.to(memory_format=memory)  # type: ignore[call-overload]

    def run(image: Tensor) -> Tensor:
        lower = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()
        with torch.inference_mode(), lower:
            found: Tensor = network(image.contiguous(memory_format=memory))
        return found.float()

    return run


class Slide:
    """A slide through OpenSlide, level 0; what lies outside it reads as zeros."""

    def __init__(self, path: str) -> None:
        import openslide

        self._slide: Any = openslide.OpenSlide(path)
        self.width, self.height = self._slide.dimensions

    def read(self, y: int, x: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return (height, width, 3) uint8."""
        h, w = min(height, self.height - y), min(width, self.width - x)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:h, :w] = np.asarray(self._slide.read_region((x, y), 0, (w, h)))[..., :3]
        return pixels


def raw(pixels: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


def create_labels(folder: str, height: int, width: int) -> Any:
    import zarr

    return zarr.create_array(
        str(Path(folder, LABELS)), shape=(height, width), chunks=(STRIP, STRIP), dtype="uint8", overwrite=True
    )


def plain(arguments: argparse.Namespace) -> None:
    logits = logits_of(build(arguments.network), arguments.precision, arguments.layout)
    slide, side = Slide(arguments.slide), arguments.tile
    labels = create_labels(arguments.output, slide.height, slide.width)
    ready()
    for batch in _batches(slide, side, arguments.batch):
        found = logits(raw(np.stack([slide.read(y, x, side, side) for y, x in batch]))).argmax(1).byte().numpy()
        for (y, x), tile in zip(batch, found, strict=True):
            labels[y : y + side, x : x + side] = tile[: slide.height - y, : slide.width - x]


def _batches(slide: Slide, side: int, size: int) -> Iterator[list[tuple[int, int]]]:
    corners = [(y, x) for y in range(0, slide.height, side) for x in range(0, slide.width, side)]
    for first in range(0, len(corners), size):
        yield corners[first : first + size]


def monai(arguments: argparse.Namespace) -> None:
    from monai.inferers import sliding_window_inference

    logits = logits_of(build(arguments.network), arguments.precision, arguments.layout)
    slide = Slide(arguments.slide)
    labels = create_labels(arguments.output, slide.height, slide.width)
    ready()
    image = _whole_slide(slide)
    side = (arguments.tile, arguments.tile)
    with torch.inference_mode():
        found = sliding_window_inference(image, side, arguments.batch, logits, overlap=0.25, mode="constant")
    assert isinstance(found, Tensor)
    del image
    for y in range(0, slide.height, STRIP):  # in strips: argmax makes eight bytes of every pixel
        labels[y : y + STRIP] = found[0, :, y : y + STRIP].argmax(0).byte().numpy()


def _whole_slide(slide: Slide) -> Tensor:
    """Return (1, 3, H, W) float32, filled in strips: the uint8 pixels are never in memory as a whole."""
    image = torch.empty(1, 3, slide.height, slide.width)
    for y in range(0, slide.height, STRIP):
        rows = min(STRIP, slide.height - y)
        image[..., y : y + rows, :] = raw(slide.read(y, 0, rows, slide.width)[None])
    return image


def tiatoolbox(arguments: argparse.Namespace) -> None:
    from tiatoolbox.models.engine.io_config import IOSegmentorConfig
    from tiatoolbox.models.engine.semantic_segmentor import SemanticSegmentor
    from tiatoolbox.models.models_abc import ModelABC

    own = arguments.network == "tiatoolbox"
    network = build(arguments.network)
    logits = None if own else logits_of(network, arguments.precision, arguments.layout)

    class Wrapped(ModelABC):  # type: ignore[misc]  # without type information
        """Another network in TIAToolbox, as its documentation says to wrap one."""

        def forward(self, image: Tensor) -> Tensor:
            assert logits is not None
            return logits(image)

        @staticmethod
        def infer_batch(model: Any, batch_data: Tensor, *, device: str) -> NDArray[np.float32]:
            del device
            found = model(batch_data.permute(0, 3, 1, 2).float())
            return found.softmax(1).permute(0, 2, 3, 1).numpy()

        def postproc(self, image: Any) -> Any:
            return np.argmax(image, axis=-1)

    side = arguments.tile
    sides = {"patch_input_shape": (1024, 1024), "patch_output_shape": (512, 512), "stride_shape": (450, 450)}  # its own
    if not own:
        sides = {"patch_input_shape": (side, side), "patch_output_shape": (side, side), "stride_shape": (side, side)}
    full = [{"units": "baseline", "resolution": 1.0}]
    segmentor = SemanticSegmentor(
        network if own else Wrapped(), batch_size=arguments.batch, device="cpu", verbose=False
    )
    torch.set_num_threads(arguments.threads)
    ready()
    segmentor.run(
        images=[Path(arguments.slide)], patch_mode=False, auto_get_mask=False, output_type="zarr",
        save_dir=Path(arguments.output), overwrite=True,
        ioconfig=IOSegmentorConfig(input_resolutions=full, output_resolutions=full, save_resolution=full[0], **sides),
    )  # fmt: skip


def whole(arguments: argparse.Namespace) -> None:
    logits = logits_of(build(arguments.network), arguments.precision, arguments.layout)
    slide = Slide(arguments.slide)
    ready()
    create_labels(arguments.output, slide.height, slide.width)[:] = (
        logits(_whole_slide(slide))[0].argmax(0).byte().numpy()
    )


def sweep(arguments: argparse.Namespace) -> None:
    """Find Mpx/s of the network alone: first precision and layout at one tile of 512, then tile and batch.

    Settings that are compared take turns: a shared machine's speed changes within seconds.
    """
    network, speeds = build(arguments.network), dict[Setting, list[float]]()
    ready()

    def time_all(settings: Sequence[Setting]) -> Setting:
        found: dict[Setting, list[float]] = {setting: [] for setting in settings}
        for setting in ROUNDS * [*settings]:
            precision, layout, tile, batch = setting
            logits = logits_of(network, precision, layout)
            image = torch.randint(0, 256, (batch, 3, tile, tile)).float()
            speed = throughput(lambda call=logits, x=image: call(x), image[:, 0].numel(), 1)
            found[setting].append(round(speed, 4))
        speeds.update(found)
        return max(found, key=lambda setting: statistics.median(found[setting]))

    precisions = ("fp32", "bf16") if arguments.bf16 else ("fp32",)
    best = time_all([(name, layout, 512, 1) for name in precisions for layout in ("channels_last", "contiguous")])
    if not arguments.few:
        time_all([best, (*best[:2], 512, 4), (*best[:2], 1024, 1)])
    names = ("precision", "layout", "tile", "batch")
    rows = [
        {**dict(zip(names, setting, strict=True)), "mpx_s": statistics.median(found), "mpx_s_all": found}
        for setting, found in speeds.items()
    ]
    _FACTS.update(sweep=rows, parameters=sum(p.numel() for p in network.parameters()))


_BEGAN = psutil.Process().create_time()
_FACTS: dict[str, Any] = {}
"""What is printed at the end."""


def ready() -> None:
    """Note what it took until the network could begin."""
    process = psutil.Process()
    _FACTS["ready_seconds"] = round(time.time() - _BEGAN, 1)
    _FACTS["ready_pss_mb"] = round(process.memory_full_info().pss / 1e6)


RUNNERS: dict[str, Runner] = {
    "plain": plain, "monai": monai, "tiatoolbox": tiatoolbox, "whole": whole, "sweep": sweep,
}  # fmt: skip
DISTRIBUTIONS = {
    "plain": ("torch", "segmentation_models_pytorch", "openslide-python"),
    "monai": ("torch", "monai"),
    "tiatoolbox": ("torch", "tiatoolbox"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runner", choices=RUNNERS)
    parser.add_argument("--slide")
    parser.add_argument("--output", help="folder for the labels")
    parser.add_argument("--network", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--layout", choices=("contiguous", "channels_last"), default="contiguous")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="sweep: the CPU multiplies bf16")
    parser.add_argument("--few", action="store_true", help="sweep: one tile of 512 alone")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is pretrained, and a benchmark must not wait for a network
    torch.set_num_threads(arguments.threads)
    RUNNERS[arguments.runner](arguments)
    _FACTS["versions"] = {name: version(name) for name in DISTRIBUTIONS.get(arguments.runner, ())}
    print(json.dumps(_FACTS), flush=True)


if __name__ == "__main__":
    main()
