"""Starts the command `unetpp`, also as `python -m unetpp_workflows`; knows how the process begins, no command."""

import os
import signal
import sys

_INTERRUPTED = 130


def main() -> None:
    """Run the command line; the entry point of the installed `unetpp`."""
    # Imports take a moment, in which there is nothing to tell of and nothing to put away. A process that was started
    # with Ctrl-C ignored, as in the background of a script, goes on ignoring it.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    from unetpp.allocation import restart_with_huge_pages

    # A process that begins once more has no handler for a while: a signal waits until it has.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    restart_with_huge_pages()  # before anything is imported that would be imported twice
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    import atexit
    import gc

    # Else the interpreter looks for garbage among a million objects of libraries before it ends, for up to a second.
    atexit.register(gc.freeze)
    from unetpp_workflows.cli import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:  # before or behind a command, which tells of one itself
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
