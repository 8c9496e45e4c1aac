"""Tells a person that something failed, by a webhook; knows one URL, which is a secret, and no reason."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

WEBHOOK = "UNETPP_WEBHOOK"
_SECONDS = 15
_LOCAL = ("localhost", "127.0.0.1", "::1")


def send_alert(text: str, details: dict[str, Any]) -> str | None:
    """Post {"text", "details"} as JSON to the URL in UNETPP_WEBHOOK; without one, do nothing.

    Returns:
        None, or one line that says why the alert was not delivered; it names the host, never the path or a token.
    """
    url = os.environ.get(WEBHOOK)
    if not url:
        return None
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOCAL):
        return f"{WEBHOOK}: alerts go to https only (or http on this machine), not {parts.scheme or 'nothing'}"
    body = json.dumps({"text": text, "details": details}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 (scheme is checked)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):  # noqa: S310
            return None
    except (OSError, urllib.error.URLError) as error:
        reason = f"{error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        return f"the alert did not reach {parts.hostname} ({reason}); see {WEBHOOK}"
