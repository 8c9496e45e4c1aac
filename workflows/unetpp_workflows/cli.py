"""The command `unetpp`: reads options, calls the library, prints, and exits with a code that says how it ended.

Only typer and rich are imported here; every command imports what it uses, so that `--help` answers at once.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from unetpp.errors import ConfigError
from unetpp_workflows.cli_evaluate import evaluate
from unetpp_workflows.cli_gc import gc
from unetpp_workflows.cli_lineage import lineage
from unetpp_workflows.cli_models import models
from unetpp_workflows.cli_nightly import nightly
from unetpp_workflows.cli_options import (
    DONE,
    PART_FAILED,
    Config,
    Engine,
    Executor,
    Formats,
    Inputs,
    Instances,
    IntoSource,
    Mask,
    MetricsFile,
    MetricsPort,
    Model,
    Mpp,
    Output,
    Outputs,
    Precision,
    Probabilities,
    Region,
    Sets,
    Spacing,
    Tissue,
    Tracking,
    Tta,
    Uncertainty,
    Workers,
    compute_options,
    input_options,
    reported,
    standard_output,
    written,
)
from unetpp_workflows.cli_prepare import prepare
from unetpp_workflows.cli_promotion import promote, rollback
from unetpp_workflows.cli_training import recipes, train
from unetpp_workflows.cli_view import view
from unetpp_workflows.interruption import raise_at_signals

app = typer.Typer(
    name="unetpp",
    help="""Segment gigapixel images with UNet++: whole slides, satellite and aerial scenes.

    [bold]Start here[/]

        unetpp demo                                 a real slide and a real scene
        unetpp doctor                               what works on this machine
        unetpp segment slide.svs -m nuclei -o out   one slide
        unetpp segment scenes/ -m landcover -o out  every image of a folder
        unetpp status out                           what is done, what is not
        unetpp view out                             look at it in a browser

    Every command can be run again: finished work is kept, the rest is done.
    Exit codes: 0 done, 1 a part failed (its name is printed), 2 wrong usage, 130 interrupted.
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models, name="models")
app.command()(prepare)
app.command()(train)
app.command()(recipes)
app.command()(evaluate)
app.command()(promote)
app.command()(rollback)
app.command()(lineage)
app.command()(gc)
app.command()(nightly)
app.command()(view)


def _version(asked: bool) -> None:
    if asked:
        from unetpp import __version__

        print(f"unetpp {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take what stands before a command."""


def main() -> None:
    """Run the command line; a scheduler's SIGTERM ends it as Ctrl-C does."""
    raise_at_signals()
    # rasterio warns of every image and mask without a place on earth. Here, once: what one thread sets for a block,
    # another one's end of a block takes away.
    warnings.filterwarnings("ignore", module=r"rasterio(\.|$)")
    with written():
        app(prog_name="unetpp")


@app.command()
@reported()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything the demo makes.")] = Path(
        "demo"
    ),
) -> None:
    """Register the bundled models, segment a real slide and a real scene, and say where to look.

    [bold]Example[/]

        unetpp demo --output demo

    Run it twice: the second run finds everything done. Images come from the folder in UNETPP_DATA, else from the
    network, else they are drawn.
    """
    from unetpp_workflows.demo import run_demo

    raise typer.Exit(run_demo(output, standard_output()))


@app.command()
@reported()
def segment(
    inputs: Inputs,
    output: Output,
    model: Model = None,
    spacing: Spacing = None,
    mpp: Mpp = None,
    mask: Mask = None,
    region: Region = None,
    tissue: Tissue = None,
    executor: Executor = None,
    workers: Workers = None,
    engine: Engine = None,
    precision: Precision = None,
    tta: Tta = None,
    formats: Formats = None,
    instances: Instances = None,
    probabilities: Probabilities = None,
    uncertainty: Uncertainty = None,
    into_source: IntoSource = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="Only images that an earlier run left failed or unfinished.")
    ] = False,
    since: Annotated[
        str | None, typer.Option("--since", help="Only files changed after this date or time: 2026-11-01.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Forget what is finished and segment it anew.")] = False,
    shadow: Annotated[
        str | None, typer.Option("--shadow", help="Second model to compare with; its results stay aside.")
    ] = None,
    shadow_share: Annotated[
        float | None, typer.Option("--shadow-share", help="Share of the images it takes, chosen by hash; default 0.1.")
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", help="K/N: only the K-th of N parts of the shards; 0/N prepares.")
    ] = None,
    tracking_uri: Tracking = None,
    metrics_port: MetricsPort = None,
    metrics_file: MetricsFile = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Segment images, folders, globs and lists; finished images are skipped, interrupted ones continued.

    [bold]Examples[/]

        unetpp segment slide.svs --model nuclei --output out
        unetpp segment 'archive/*.svs' -m models:/nuclei@champion -o out
        unetpp segment scene.tif -m landcover -o out --executor ray
        unetpp segment scene.tif -m landcover -o out --region fields.gpkg
        unetpp segment archive/ --config run.toml -o out --set tiling.core=512
        unetpp segment archive/ -m nuclei -o out --part 3/8     # one of 8 machines; see cluster/README.md
        unetpp segment archive.csv -m nuclei -o out --retry
        unetpp segment slide.svs -m nuclei -o out --formats geojson.gz,ome-tiff
        unetpp segment archive/ -m models:/nuclei@champion --shadow models:/nuclei@challenger -o out
        unetpp segment slide.svs -m nuclei -o out --instances --probabilities --uncertainty

    Writes for each image: OME-Zarr labels with pyramid, polygons, areas, a GeoTIFF for scenes, a report page and
    a run record. A configuration file holds what the options hold and more:

        model = "models:/nuclei@champion"
        input = { spacing = "0.25um", tissue = "auto" }
        tiling = { core = 1024, shard = 4096 }
        engine = { precision = "fp32", threads = 1 }
        executor = { kind = "ray", workers = 8, attempts = 3 }
        output = { formats = ["geojson.gz", "ome-tiff"] }
        truth = { path = "labels/", classes = { building = 1 } }
    """
    from unetpp_workflows.config import load_config
    from unetpp_workflows.pipeline import segment as run
    from unetpp_workflows.selection import Selection, parse_moment
    from unetpp_workflows.shadow import check_shadow, print_shadow, run_shadow
    from unetpp_workflows.summary import print_summary

    options = {
        **input_options(model, spacing, mpp, mask, region, tissue, tracking_uri),
        **compute_options(executor, workers, engine, precision, tta, probabilities, uncertainty),
        "output.formats": formats,
        "output.instances": instances,
        "shadow.model": shadow,
        "shadow.share": shadow_share,
        "output.into_source": into_source,
        "metrics.port": metrics_port,
        "metrics.file": metrics_file,
    }
    resolved = load_config(config, options=options, sets=sets or ())
    console = standard_output()
    if part is not None:
        from unetpp_workflows.parts import Part, segment_part

        if retry or since or force:
            raise ConfigError("--part goes with none of --retry, --since and --force: every part has to mean the same")
        if resolved.shadow.model:
            raise ConfigError("--part goes without --shadow: give it to a run of the whole archive, after the parts")
        raise typer.Exit(segment_part(inputs, output, Part.parse(part), config=resolved, console=console))
    selection = Selection(retry=retry, since=parse_moment(since) if since else None, force=force)
    if resolved.shadow.model:
        check_shadow(resolved)
    summary = run(inputs, output=output, config=resolved, selection=selection, console=console)
    print_summary(summary, console)
    if resolved.shadow.model:
        print_shadow(run_shadow(summary, inputs, output=output, config=resolved, console=console), console)
    raise typer.Exit(summary.exit_code)


@app.command()
@reported()
def plan(
    inputs: Inputs,
    model: Model = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also say what is done there.")] = None,
    spacing: Spacing = None,
    mpp: Mpp = None,
    mask: Mask = None,
    region: Region = None,
    tissue: Tissue = None,
    executor: Executor = None,
    workers: Workers = None,
    engine: Engine = None,
    precision: Precision = None,
    tta: Tta = None,
    probabilities: Probabilities = None,
    uncertainty: Uncertainty = None,
    tracking_uri: Tracking = None,
    config: Config = None,
    sets: Sets = None,
) -> None:
    """Say what a segmentation would do: pixels, shards, tiles, bytes, time, memory, and what is done. Computes nothing.

    It takes the options of segment on which that depends. The time comes from `unetpp doctor --bench`, run once on
    this machine; without it it is unknown.

    [bold]Examples[/]

        unetpp plan archive/ --model nuclei --output out
        unetpp plan archive/ -m nuclei -o out --precision fp32 --workers 8 --tta flips
    """
    from unetpp_workflows.config import load_config
    from unetpp_workflows.plan import print_plan

    options = {
        **input_options(model, spacing, mpp, mask, region, tissue, tracking_uri),
        **compute_options(executor, workers, engine, precision, tta, probabilities, uncertainty),
    }
    resolved = load_config(config, options=options, sets=sets or ())
    raise typer.Exit(print_plan(inputs, resolved, output, standard_output()))


@app.command()
@reported()
def status(
    output: Outputs,
    lines: Annotated[bool, typer.Option("--json", help="One line of JSON per image: the rows of summary.csv.")] = False,
) -> None:
    """List the images of an output folder: done, empty, partial, failed or running, and their shards.

    [bold]Examples[/]

        unetpp status out
        unetpp status out --json
    """
    from unetpp_workflows.archive import print_rows
    from unetpp_workflows.outputs import print_status

    if lines:
        raise typer.Exit(print_rows(output, standard_output()))
    raise typer.Exit(print_status(output, standard_output()))


@app.command()
@reported()
def verify(
    output: Outputs,
    repair: Annotated[
        bool, typer.Option("--repair", help="Forget damaged parts: segment then makes them again.")
    ] = False,
    audit: Annotated[
        bool, typer.Option("--audit", help="Also prove from the journals that no shard was lost or written twice.")
    ] = False,
) -> None:
    """Hash every finished shard and product again and name what is damaged or missing.

    OUTPUT may also be a training store of `unetpp prepare`: then all its patches are hashed.

    [bold]Example[/]

        unetpp verify out && echo all good
        unetpp verify out --audit
    """
    from unetpp_workflows.outputs import print_audit, print_verification
    from unetpp_workflows.prepare.verify import is_store, print_store_verification

    if is_store(output):
        raise typer.Exit(print_store_verification(output, standard_output()))
    code = print_audit(output, standard_output()) if audit else DONE
    raise typer.Exit(max(code, print_verification(output, standard_output(), repair=repair)))


@app.command()
@reported()
def report(output: Outputs) -> None:
    """Draw the page of an output folder, OUTPUT/report.html, and its images' pages again, from what lies there.

    Thumbnails with their segmentation, the most uncertain first, areas, objects, failures, throughput over time.

    [bold]Example[/]

        unetpp report out
    """
    from unetpp_workflows.outputs import redraw_reports

    raise typer.Exit(redraw_reports(output, standard_output()))


@app.command()
@reported()
def doctor(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder whose disk is looked at.")] = Path(),
    tracking_uri: Tracking = None,
    bench: Annotated[
        bool, typer.Option("--bench", help="Also measure the engine here, for `unetpp plan` (a minute).")
    ] = False,
    formats: Annotated[
        bool, typer.Option("--formats", help="Only list the image formats: proven by a test, or should work.")
    ] = False,
) -> None:
    """Say what this machine and installation can do: versions, processor, GPU, engines, formats, disk, registry.

    [bold]Example[/]

        unetpp doctor --bench
        unetpp doctor --formats
    """
    from unetpp_workflows import doctor as checks

    console = standard_output()
    if formats:
        checks.print_formats(console)
        raise typer.Exit(DONE)
    findings = checks.examine(output, tracking_uri)
    checks.print_findings(findings, console)
    if bench:
        checks.print_bench(console)
    missing = sum(finding.state == "missing" for finding in findings)
    console.print(f"{missing} thing(s) missing" if missing else "Everything that is needed works.")
    raise typer.Exit(PART_FAILED if missing else DONE)
