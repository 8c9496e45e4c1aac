"""Tells a person that something failed, by a webhook; knows one URL, which is a secret, and no reason."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

WEBHOOK = "UNETPP_WEBHOOK"
_SECONDS = 15
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
