"""The command `unetpp view`; reads options, starts the viewer's server or exports corrections."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from unetpp.errors import ConfigError
from unetpp_workflows.cli_options import DONE, reported, standard_output

_LOCAL = ("127.0.0.1", "localhost", "::1")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 (only compared with)


@reported()
def view(
    outputs: Annotated[
        list[Path], typer.Argument(metavar="OUTPUT...", help="--output folders of runs, or folders of single images.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; any but this machine's own needs the printed token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.", min=0, max=65535)] = 8765,
    corrections: Annotated[
        Path | None, typer.Option("--corrections", help="Write the reviewed regions there as training data, and stop.")
    ] = None,
) -> None:
    """Look at results in a browser: deep zoom, layers, objects, two models side by side, reviews.

    [bold]Examples[/]

        unetpp view out                              then open the printed address
        unetpp view out-champion out-challenger      two models on the same images
        unetpp view out --corrections fixes          and then, to train on what reviewers said:
        unetpp prepare fixes/corrections.toml --data fixes --output fixes.zarr

    Reads only; reviews are appended to OUTPUT/reviews.jsonl. Keys: press ? in the page.
    """
    console = standard_output()
    if corrections is not None:
        from unetpp_workflows.viewer.catalogue import Catalogue
        from unetpp_workflows.viewer.corrections import export, left_out

        results = Catalogue(outputs).results()
        dataset, images, polygons = export(results, corrections)
        line = (
            f"{polygons} polygon(s) of {images} image(s); next: unetpp prepare {dataset} --data {corrections} -o S.zarr"
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        for line in left_out(results):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(DONE)
    _serve(outputs, host, port)
    raise typer.Exit(DONE)


def _serve(outputs: list[Path], host: str, port: int) -> None:
    import socket

    import uvicorn

    from unetpp_workflows.viewer.app import create_app

    local = host in _LOCAL
    token = None if local else secrets.token_urlsafe(24)
    app = create_app(outputs, token=token, **({} if local else {"hosts": ["*"]}))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # now: who opens the printed address at once waits for the answer, and is not refused
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host"
        ) from None
    name = socket.gethostname() if host in _EVERYWHERE else f"[{host}]" if ":" in host else host
    address = f"http://{name}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    # No access log: addresses may hold the token.
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    with suppress(KeyboardInterrupt):  # the way to end it, and nothing is left undone
        standard_output().print(f"open {address} (Ctrl-C ends)", markup=False, highlight=False, soft_wrap=True)
        uvicorn.Server(config).run(sockets=[listening])
