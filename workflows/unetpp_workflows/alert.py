"""Tells a person that something failed, by a webhook; knows one URL, which is a secret, and no reason.

python -m unetpp_workflows.alert    waits for the end of who started it, and tells of one without a word
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

log = logging.getLogger(__name__)
WEBHOOK = "UNETPP_WEBHOOK"
_SECONDS = 15
_TOLD = "told"
_LOCAL = ("localhost", "127.0.0.1", "::1")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error: followed, it would be a GET without the alert, and could leave https."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def send_alert(text: str, details: dict[str, Any]) -> str | None:
    """Post {"text", "details"} as JSON to the URL in UNETPP_WEBHOOK; without one, do nothing.

    Returns:
        None, or one line that says why the alert was not delivered; it names the host, never the path or a token.
    """
    url = os.environ.get(WEBHOOK)
    if not url:
        return None
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return f"{WEBHOOK} is no URL; write it like https://host/path"
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        return f"{WEBHOOK}: alerts go to https only (or http on this machine), not {parts.scheme or 'nothing'}"
    body = json.dumps({"text": text, "details": details}).encode()
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 (scheme is checked)
        with opener.open(request, timeout=_SECONDS):
            return None
    except (OSError, http.client.HTTPException, ValueError) as error:
        # The text of some of them has the path in it.
        reason = f"{error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        return f"the alert did not reach {parts.hostname} ({reason}); see {WEBHOOK}"


@contextmanager
def guarded(text: str, details: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """Let another process send the alert if this one ends in the block, or leaves it, without calling what is yielded.

    Killed, or out of memory, a process cannot; and Ray's libraries end it at once when the head of its cluster is gone.
    Where a container ends with its first process, both end. Without a webhook, do nothing.
    """
    with ExitStack() as held:
        guard = held.enter_context(_started()) if os.environ.get(WEBHOOK) else None

        def say(words: str) -> None:
            if guard is not None and guard.stdin is not None:
                with suppress(BrokenPipeError):  # it was ended by hand
                    guard.stdin.write(words)
                    guard.stdin.flush()

        say(json.dumps([text, details]) + "\n")
        yield partial(say, _TOLD)


@contextmanager
def _started() -> Iterator[subprocess.Popen[str] | None]:
    """Yield the process that waits for the end of this one, None where it does not start; at the end it has ended."""
    # With -P the current folder, which may be anybody's, has no say in what it imports. In a session of its own,
    # Ctrl-C and a terminal's end are not for it.
    command = [sys.executable, "-P", "-m", __name__]
    try:
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    except OSError as error:
        log.warning("no process starts that would tell of a sudden end of this one: %s", error)
        yield None
        return
    try:
        yield guard
    finally:
        assert guard.stdin is not None
        with suppress(BrokenPipeError):
            guard.stdin.close()
        guard.wait()


def _guard() -> None:
    """Send the alert that comes first, unless what follows it is the word that there is nothing to tell."""
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)  # a scheduler sends them to whatever a dead process leaves
    alert = sys.stdin.readline()
    if alert and sys.stdin.read() != _TOLD:
        text, details = json.loads(alert)
        if undelivered := send_alert(text, details):
            print(undelivered, file=sys.stderr)


if __name__ == "__main__":
    _guard()
