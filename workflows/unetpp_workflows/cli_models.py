"""The commands `unetpp models ...`; knows the registry's functions and how to print what they return."""

from __future__ import annotations

from typing import Annotated

import typer

from unetpp_workflows.cli_exchange import models_export, models_import
from unetpp_workflows.cli_options import Tracking, plain_table, reported, standard_output

models = typer.Typer(help="List, register and alias models in the MLflow registry.", no_args_is_help=True)

models.command("export")(models_export)
models.command("import")(models_import)


@models.command("list")
@reported()
def models_list(tracking_uri: Tracking = None) -> None:
    """List the bundled models and every registered version with its aliases."""
    from unetpp.package import bundled_names, bundled_package, load_package
    from unetpp_workflows.mlflow_store import shown, store_uri
    from unetpp_workflows.registry import list_models

    table = plain_table("model", "aliases", "classes", "trained at")
    for name in bundled_names():
        spec = load_package(bundled_package(name)).spec
        table.add_row(name, "", ", ".join(c.name for c in spec.classes), str(spec.spacing or "none"))
    rows = list_models(tracking_uri=tracking_uri)
    for row in rows:
        classes, spacing = row.tags.get("unetpp.classes", ""), row.tags.get("unetpp.spacing", "")
        aliases = " ".join(f"@{alias}" for alias in row.aliases)
        table.add_row(f"models:/{row.name}/{row.version}", aliases, classes.replace(",", ", "), spacing)
    standard_output().print(table)
    if not rows:
        typer.echo(f"nothing registered in {shown(store_uri(tracking_uri))}; see `unetpp models register --help`")


@models.command("register")
@reported()
def models_register(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="A model package folder or a bundled name.")],
    name: Annotated[str | None, typer.Option("--name", help="Registered name; default: the package's own.")] = None,
    alias: Annotated[str | None, typer.Option("--alias", help="Alias to set, like challenger.")] = None,
    tracking_uri: Tracking = None,
) -> None:
    """Put a model package into the registry; weights that are there already keep their version.

    The alias champion is given only where no other version has it; after that `unetpp promote` does, through its gates.

    [bold]Example[/]

        unetpp models register runs/nuclei --alias challenger
    """
    from unetpp_workflows.registry import register_package, resolve

    found = resolve(package, tracking_uri=tracking_uri)
    version = register_package(found.folder, name, alias=alias, tracking_uri=tracking_uri)
    shown = name or found.name
    typer.echo(f"models:/{shown}/{version}" + (f" is now models:/{shown}@{alias}" if alias else ""))


@models.command("alias")
@reported()
def models_alias(
    name: Annotated[str, typer.Argument(help="Registered name.")],
    version: Annotated[str, typer.Argument(help="Version, like 3.")],
    alias: Annotated[str, typer.Argument(help="Alias, like champion.")],
    tracking_uri: Tracking = None,
) -> None:
    """Point an alias at a version: `unetpp models alias nuclei 3 candidate`.

    The alias champion is moved as `unetpp rollback --to` does: the old one becomes @previous, and it is recorded.
    """
    if alias == "champion":
        from unetpp_workflows.cli_promotion import print_decision
        from unetpp_workflows.promotion import rollback

        decision = rollback(name, to=version, outcome="set by hand", tracking_uri=tracking_uri)
        print_decision(decision, standard_output())
    else:
        from unetpp_workflows.registry import set_alias

        set_alias(name, alias, version, tracking_uri=tracking_uri)
        typer.echo(f"models:/{name}@{alias} is now version {version}")


@models.command("delete")
@reported()
def models_delete(
    name: Annotated[str, typer.Argument(help="Registered name.")],
    version: Annotated[str, typer.Argument(help="Version, like 3.")],
    tracking_uri: Tracking = None,
) -> None:
    """Delete a version; refused while it carries an alias: `unetpp models delete nuclei 3`."""
    from unetpp_workflows.cli_promotion import print_decision
    from unetpp_workflows.promotion import delete_version

    print_decision(delete_version(name, version, tracking_uri=tracking_uri), standard_output())


@models.command("history")
@reported()
def models_history(
    name: Annotated[str, typer.Argument(help="Registered name.")], tracking_uri: Tracking = None
) -> None:
    """List every promotion, refusal, rollback and deletion of a model, newest first."""
    from unetpp_workflows.promotion import history

    table = plain_table("when (UTC)", "version", "outcome", "before", "by", "MLflow run")
    rows = history(name, tracking_uri=tracking_uri)
    for row in rows:
        table.add_row(row.moment[:19], row.version, row.outcome, row.champion or "none", row.by.split(" (")[0], row.run)
    standard_output().print(table if rows else f"no decisions about {name!r} yet", markup=False)
