"""Starts the command `unetpp`, also as `python -m unetpp_workflows`; knows how the process begins, no command."""

import atexit
import gc

from unetpp.allocation import restart_with_huge_pages


def main() -> None:
    """Run the command line; the entry point of the installed `unetpp`."""
    restart_with_huge_pages()  # before anything is imported that would be imported twice
    # Else the interpreter looks for garbage among a million objects of libraries before it ends, for up to a second.
    atexit.register(gc.freeze)
    from unetpp_workflows.cli import main as run

    run()


if __name__ == "__main__":
    main()
