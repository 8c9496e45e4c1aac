"""The commands `unetpp models export` and `import`; knows their options and which library function each calls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unetpp_workflows.cli_options import Tracking, reported


@reported()
def models_export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="models:/name@alias, a bundled name or a folder.")],
    to: Annotated[str, typer.Option("--to", help="onnx, openvino, torch-export or wsinfer.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; a folder for wsinfer.")],
    tracking_uri: Tracking = None,
) -> None:
    """Write a model for other programs, with a JSON file that says what goes in and what comes out.

    [bold]Examples[/]

        unetpp models export models:/nuclei@champion --to onnx -o nuclei.onnx
        unetpp models export nuclei --to openvino -o nuclei.xml
    """
    from unetpp.errors import ConfigError
    from unetpp.export import FORMS, export_package
    from unetpp.package import load_package
    from unetpp_workflows.registry import resolve

    form = next((known for known in FORMS if known == to), None)
    if form is None:
        raise ConfigError(f"--to {to!r}: choose one of {', '.join(FORMS)}")
    ending = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "wsinfer": ""}[form]
    if ending and output.suffix != ending:
        raise ConfigError(f"--output {output}: a file of this form ends in {ending}")
    package = load_package(resolve(model, tracking_uri=tracking_uri).folder)
    typer.echo(f"wrote {export_package(package, form, output)}")


@reported()
def models_import(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="State dict: .pth, .pt or .safetensors.")],
    name: Annotated[str, typer.Option("--name", help="Name of the model.")],
    classes: Annotated[str, typer.Option("--classes", help="Names in the order of the logits: background,nucleus.")],
    mean: Annotated[str, typer.Option("--mean", help="Per band, in raw sample units: 123.7,116.3,103.5.")],
    std: Annotated[str, typer.Option("--std", help="Per band, in raw sample units: 58.4,57.1,57.4.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new model package.")],
    spacing: Annotated[str | None, typer.Option("--spacing", help="Pixel size it was trained at: 0.25um.")] = None,
) -> None:
    """Make a model package from a plain UNet++ state dict of the usual PyTorch re-implementation.

    Names like conv0_0.conv1.weight and final1.weight; depth, filters, bands and classes are read from the shapes. The
    first class is the background; a network of one logit has two classes.

    [bold]Example[/]

        unetpp models import nested_unet.pth --name cells --classes background,cell --mean 123.7,116.3,103.5 \\
            --std 58.4,57.1,57.4 -o cells
    """
    from unetpp_workflows.exchange import import_weights

    package = import_weights(
        weights,
        name=name,
        classes=[part.strip() for part in classes.split(",")],
        mean=_numbers("--mean", mean),
        std=_numbers("--std", std),
        spacing=spacing,
        output=output,
    )
    network = package.load_model()
    parameters = sum(value.numel() for value in network.parameters())
    typer.echo(
        f"{package.folder}: UNet++ with filters {list(package.spec.architecture.filters)}, {parameters:,} parameters"
    )
    typer.echo(
        "not measured yet: unetpp evaluate; if its code upsamples with align_corners=True, figures move a little"
    )


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from unetpp.errors import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option} {text!r} is no list of numbers; write it like 123.7,116.3,103.5") from None
