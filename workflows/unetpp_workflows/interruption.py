"""Makes a signal that ends the program reach it wherever it is; knows no command."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_LATER_S: Final = 0.1


def raise_at_signals() -> None:
    """Have SIGTERM, by which a scheduler ends a program, raise KeyboardInterrupt as Ctrl-C does.

    Where Python can raise nothing, in callbacks of its imports and of the garbage collector, it would say so and go on
    as if nobody had asked. Such an interruption comes once more a moment later.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.unraisablehook = _unraisable


def _unraisable(ignored: UnraisableHookArgs) -> None:
    if not issubclass(ignored.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(ignored)
        return
    again = threading.Timer(_LATER_S, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True  # a program that ends before need not be told
    again.start()
