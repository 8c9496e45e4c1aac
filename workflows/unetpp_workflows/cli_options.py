"""The options that commands of `unetpp` share, and how errors become one line and an exit code; knows no command."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from unetpp.errors import ConfigError, ModelNotFoundError, ModelPackageError, OutputError, UnetppError

DONE, PART_FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
_NO_TERMINAL = 1000
"""Columns of a line that no terminal shows."""
_USAGE_ERRORS = (ConfigError, ModelNotFoundError, ModelPackageError)

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Images, folders, quoted globs, mosaics (.mosaic.toml), bands of several files or "
        "STAC assets (.bands.toml), or lists (CSV, Parquet, STAC items); also at s3://, gs://, "
        "http(s)://: a prefix that ends in / is a folder.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="models:/name@alias, models:/name/3, a bundled name (nuclei, nuclei-full, landcover) or a folder.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for results; one folder per image.")]
Outputs = Annotated[Path, typer.Argument(metavar="OUTPUT", help="The --output folder of a run.")]
Spacing = Annotated[
    str | None, typer.Option("--spacing", help="Pixel size where the file states none or a wrong one: 0.25um, 0.3m.")
]
Mpp = Annotated[float | None, typer.Option("--mpp", help="The same in micrometres per pixel: --mpp 0.25.")]
Mask = Annotated[
    str | None, typer.Option("--mask", help="Image, here or remote, whose non-zero pixels are to be segmented.")
]
Region = Annotated[
    str | None,
    typer.Option(
        "--region",
        help="Only this part: x0,y0,x1,y1 in level-0 pixels, x0,y0,x1,y1@crs in the image's CRS (or @EPSG:4326: lon, "
        "lat), or polygons: a GeoJSON, GeoPackage, GeoParquet or FlatGeobuf file, in pixels with FILE@px.",
    ),
]
Tissue = Annotated[str | None, typer.Option("--tissue", help="auto (slides: only tissue) or none.")]
Executor = Annotated[str | None, typer.Option("--executor", help="local (threads) or ray.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Default: one per CPU core or GPU; segment takes fewer where memory is short."),
]
Engine = Annotated[str | None, typer.Option("--engine", help="auto, triton, native, openvino or torch.")]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="auto, fp32, bf16, fp16 (triton only), or of the native engine int16 (nearer to fp32 than bf16) or int8 "
        "(the fastest on CPUs with VNNI).",
    ),
]
Tta = Annotated[
    str | None,
    typer.Option(
        "--tta",
        help="none, or mean over tiles mirrored left-right (mirror, 2x the time), in both directions (flips, 4x), also "
        "turned (d4, 8x).",
    ),
]
Formats = Annotated[
    str | None,
    typer.Option(
        "--formats",
        help="Of cog, ome-tiff, ome-zarr-0.4, geojson, geojson.gz, gpkg, geoparquet, flatgeobuf, with commas; "
        "default: cog,geojson,gpkg with a CRS, else geojson.",
    ),
]
Instances = Annotated[
    bool | None,
    typer.Option(
        "--instances", help="Split touching objects; a polygon and a row of measurements for each of 16 px or more."
    ),
]
Probabilities = Annotated[
    bool | None,
    typer.Option(
        "--probabilities", help="Also write each class's probability (uint8, steps of 1/254); means of instances."
    ),
]
Uncertainty = Annotated[
    bool | None,
    typer.Option(
        "--uncertainty", help="Also map where the network's heads disagree, and list what is most worth a look."
    ),
]
MetricsPort = Annotated[
    int | None, typer.Option("--metrics-port", help="Serve Prometheus metrics on this port of 127.0.0.1.")
]
MetricsFile = Annotated[
    Path | None, typer.Option("--metrics-file", help="Keep Prometheus metrics in this file, for node_exporter.")
]
IntoSource = Annotated[
    bool | None,
    typer.Option(
        "--into-source",
        help="Also copy the labels into the image itself, where it is a local OME-Zarr 0.5.",
    ),
]
Tracking = Annotated[
    str | None,
    typer.Option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="MLflow store; default: a file of this user."),
]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="TOML run configuration.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting: section.key=value. May be repeated.")]


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors into one line on standard error and the right exit code."""
    try:
        yield
    except UnetppError as error:
        _complain(f"error: {error}")
        raise typer.Exit(exit_code(error)) from None
    except KeyboardInterrupt as error:
        _complain("interrupted; finished parts are kept: run the same command again to continue")
        raise typer.Exit(exit_code(error)) from None


class _Output(io.TextIOWrapper):
    """Standard output that, when it is full, says so as an `OutputError` and then takes no more; of a pipe it is none.

    Nobody can go on with a pipe that is closed: rich and typer end the process, as those who read the pipe expect.
    """

    def write(self, text: str, /) -> int:
        with self._faults():
            return super().write(text)

    def flush(self) -> None:
        with self._faults():
            super().flush()

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            # What is left in the buffer would fail once more as the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            advice = "give it another place and run the same command again"
            raise OutputError(f"cannot write to standard output: {error.strerror}; {advice}") from error


@contextmanager
def written() -> Iterator[None]:
    """Run a command to its last byte of output: where that is full is one line, where it is closed it gets lost."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 (until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):
        out = sys.stdout
        how = "backslashreplace"  # as of standard error: a name that a terminal cannot show must not end a run
        sys.stdout = _Output(
            out.buffer, out.encoding, how, line_buffering=out.line_buffering, write_through=out.write_through
        )
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputError as error:
        _complain(f"error: {error}")
        sys.exit(PART_FAILED)


def exit_code(error: BaseException) -> int:
    """Return what a command exits with that ends by this error."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return USAGE if isinstance(error, _USAGE_ERRORS) else PART_FAILED


def input_options(
    model: str | None,
    spacing: str | None,
    mpp: float | None,
    mask: str | None,
    region: str | None,
    tissue: str | None,
    tracking_uri: str | None,
) -> dict[str, object]:
    if spacing is not None and mpp is not None:
        raise ConfigError(f"--spacing {spacing} and --mpp {mpp:g} say the same thing twice; give one")
    return {
        "model": model,
        "input.spacing": f"{mpp}um" if mpp is not None else spacing,
        "input.mask": mask,
        "input.region": region,
        "input.tissue": tissue,
        "tracking.uri": tracking_uri,
    }


def compute_options(
    executor: str | None,
    workers: int | None,
    engine: str | None,
    precision: str | None,
    tta: str | None,
    probabilities: bool | None,
    uncertainty: bool | None,
) -> dict[str, object]:
    return {
        "executor.kind": executor,
        "executor.workers": workers,
        "engine.name": engine,
        "engine.precision": precision,
        "engine.tta": tta,
        "output.probabilities": probabilities,
        "output.uncertainty": uncertainty,
    }


def check_folder(option: str, path: Path | None) -> None:
    """Raise `ConfigError` where an option names a folder that is not there."""
    if path is not None and not path.is_dir():
        raise ConfigError(f"{option} {path}: no such folder")


def standard_output() -> Console:
    """Return a console that stays on standard output when a library redirects it, as the Ray executor does.

    In a pipe or a file its tables are as wide as they need, so that nothing in them is cut off.
    """
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(file=sys.stdout, width=None if narrow else _NO_TERMINAL)


def plain_table(*headers: str) -> Table:
    """Return a table without lines whose cells are wrapped and never cut off: paths and names in them stay whole."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def _complain(message: str) -> None:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
