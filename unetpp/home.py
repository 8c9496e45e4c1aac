"""Where unetpp keeps what belongs to a user and not to a run; creates nothing."""

from __future__ import annotations

import os
from pathlib import Path

from unetpp.errors import OutputError


def home() -> Path:
    """Return unetpp's folder of this user: UNETPP_HOME, else ~/.unetpp; raises `OutputError` where there is no home."""
    try:
        return Path(os.environ.get("UNETPP_HOME") or "~/.unetpp").expanduser().absolute()
    except RuntimeError as error:
        raise OutputError(f"no home folder: {error}; set UNETPP_HOME to a folder") from error
