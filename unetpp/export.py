"""Writes a package for programs that are not unetpp: ONNX, OpenVINO, torch.export, WSInfer; knows no registry.

onnx, openvino, torch-export   raw pixels (N, C, H, W) float32 -> logits (N, K, H, W) float32; H and W multiples of
                               `multiple`; normalisation is part of the graph
wsinfer                        TorchScript for WSInfer's patches, normalised RGB (N, 3, S, S) -> (N, K) whose softmax is
                               the share of each class in the patch, and config.json (WSInfer model zoo, 2023)

Beside each lies a JSON file that says what goes in and what comes out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from unetpp.durable import output_errors
from unetpp.errors import ConfigError, EngineError, SpacingError
from unetpp.model import UNet, UNetPlusPlus
from unetpp.model.fold import fold
from unetpp.package import SPEC, WEIGHTS, Package

Form = Literal["onnx", "openvino", "torch-export", "wsinfer"]
FORMS: tuple[Form, ...] = get_args(Form)
_WSINFER_SIDE = 512
_WSINFER_MODEL = "torchscript_model.pt"


class RawNetwork(nn.Module):
    """Normalise and run the folded network: raw (N, C, H, W) float32 -> logits (N, K, H, W)."""

    def __init__(self, package: Package) -> None:
        super().__init__()
        self.network = _folded(package)
        self.register_buffer("mean", torch.tensor(package.spec.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(package.spec.std)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network((image - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits


class PatchShares(nn.Module):
    """Normalised patches (N, C, S, S) -> (N, K): the logarithm of each class's mean probability."""

    def __init__(self, package: Package) -> None:
        super().__init__()
        self.network = _folded(package)

    def forward(self, patches: Tensor) -> Tensor:
        logits = self.network(patches)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        shares: Tensor = logits.softmax(1).mean((2, 3))
        return shares.clamp_min(1e-12).log()


def export_package(package: Package, form: Form, path: Path) -> Path:
    """Write the package in another form and return what was written.

    Args:
        path: of the file (.onnx, .xml with .bin beside it, .pt2); of a folder for wsinfer.

    Raises:
        EngineError: what writes the form is not installed, or fails.
        SpacingError, ConfigError: WSInfer needs RGB in uint8 and a pixel size in micrometres.
        ConfigError: the JSON file would replace the one of a model package.
        OutputError: the file cannot be written.
    """
    beside = path.with_suffix(".json")
    if form != "wsinfer" and beside.name == SPEC and (beside.parent / WEIGHTS).exists():
        raise ConfigError(f"{path} would replace the model package's own {beside.name}; choose another name or folder")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write: dict[Form, Callable[[Package, Path], None]] = {
        "onnx": _onnx,
        "openvino": _openvino,
        "torch-export": _torch_export,
        "wsinfer": _wsinfer,
    }
    # Parameters made inside inference mode could not be traced; the tracer warns that branches on shapes are fixed.
    with output_errors(path), torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write[form](package, path)
        if form != "wsinfer":
            text = json.dumps(description(package), indent=1, ensure_ascii=False) + "\n"
            beside.write_text(text, encoding="utf-8")
    return path


def description(package: Package) -> dict[str, object]:
    """Return what goes into an exported graph and what comes out."""
    spec, network = package.spec, package.load_model()
    return {
        "name": spec.name,
        "digest": package.digest,
        "input": {"name": "image", "layout": "NCHW", "dtype": "float32", "values": f"raw {spec.dtype} samples",
                  "bands": list(spec.bands), "multiple": network.multiple, "halo": network.halo},
        "output": {"name": "logits", "layout": "NKHW", "dtype": "float32",
                   "decision": "logit > 0 is the second class" if spec.architecture.classes == 1 else "largest logit",
                   "classes": [asdict(info) for info in spec.classes]},
        "spacing": asdict(spec.spacing) if spec.spacing else None,
    }  # fmt: skip


def _folded(package: Package) -> UNetPlusPlus | UNet:
    network = fold(package.load_model())  # type: ignore[type-var]  # either network, never a mixture
    return network.requires_grad_(False)


def _example(package: Package) -> Tensor:
    """Return a small batch; of two, because torch.export takes a size of one to be fixed."""
    multiple = package.spec.architecture.multiple
    return torch.zeros(2, len(package.spec.bands), 2 * multiple, 3 * multiple)


def _onnx(package: Package, path: Path) -> None:
    open_sizes = {0: "n", 2: "height", 3: "width"}
    try:
        torch.onnx.export(
            RawNetwork(package).eval(), (_example(package),), str(path), dynamo=False,
            input_names=["image"], output_names=["logits"], dynamic_axes={"image": open_sizes, "logits": open_sizes},
        )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        raise EngineError(f"cannot write ONNX: {error}; pip install unetpp[export]") from error


def _openvino(package: Package, path: Path) -> None:
    from unetpp.engine.openvino import import_openvino

    openvino = import_openvino()
    traced = torch.jit.trace(RawNetwork(package).eval(), _example(package), check_trace=False)  # type: ignore[no-untyped-call]
    graph = openvino.convert_model(traced, input=[-1, len(package.spec.bands), -1, -1])
    graph.input(0).set_names({"image"})
    graph.output(0).set_names({"logits"})
    openvino.save_model(graph, str(path), compress_to_fp16=False)


def _torch_export(package: Package, path: Path) -> None:
    size = torch.export.Dim.AUTO
    program = torch.export.export(
        RawNetwork(package).eval(), (_example(package),), dynamic_shapes=({0: size, 2: size, 3: size},), strict=False
    )
    torch.export.save(program, path)


def _wsinfer(package: Package, folder: Path) -> None:
    spec = package.spec
    if spec.spacing is None or spec.spacing.unit != "um":
        raise SpacingError(
            f"model {spec.name!r} was trained at {spec.spacing or 'no known pixel size'}, and WSInfer needs "
            "micrometres; train on images whose size is known, or with data.image_spacing in the recipe"
        )
    if len(spec.bands) != 3 or spec.dtype != "uint8":
        raise ConfigError(
            f"model {spec.name!r} takes {len(spec.bands)} bands of {spec.dtype}; WSInfer has RGB in uint8"
        )
    multiple = spec.architecture.multiple
    side = -(-_WSINFER_SIDE // multiple) * multiple
    example = torch.zeros(2, 3, side, side)
    traced = torch.jit.trace(PatchShares(package).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
    config = {
        "spec_version": "1.0",
        "architecture": spec.network,
        "num_classes": len(spec.classes),
        "class_names": [info.name for info in spec.classes],
        "name": spec.name,
        "patch_size_pixels": side,
        "spacing_um_px": spec.spacing.x,
        "transform": [
            {"name": "Resize", "arguments": {"size": side}},
            {"name": "ToTensor"},
            {
                "name": "Normalize",
                "arguments": {"mean": [v / 255 for v in spec.mean], "std": [v / 255 for v in spec.std]},
            },
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.save(traced, str(folder / _WSINFER_MODEL))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
