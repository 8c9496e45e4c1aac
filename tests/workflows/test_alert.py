"""Alerts to real servers on this machine: delivered whole, or said not to be, in a line without the secret."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import BaseRequestHandler, TCPServer

import pytest

from unetpp_workflows.alert import send_alert

HIDDEN = "secret-token"


class Handler(BaseHTTPRequestHandler):
    """Takes alerts at /secret-token; /moved/... leads there, /broken/... fails."""

    seen: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self.seen.append((self.command, self.path, self.rfile.read(length)))
        place = self.path.split("/")[1]
        self.send_response({"moved": 302, "kept": 308, "broken": 500}.get(place, 204))
        if place in ("moved", "kept"):
            self.send_header("Location", f"/{HIDDEN}")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        pass


class Babbler(BaseRequestHandler):
    """Answers with what is no HTTP."""

    def handle(self) -> None:
        self.request.recv(2**16)
        self.request.sendall(b"who is there?\r\n\r\n")


@pytest.fixture
def served() -> Iterator[Callable[[type[BaseRequestHandler]], str]]:
    """Serve a handler and return "http://127.0.0.1:port"."""
    servers = []

    def serve(handler: type[BaseRequestHandler]) -> str:
        server = (HTTPServer if handler is Handler else TCPServer)(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    Handler.seen = []
    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_alert_is_one_post_of_json(
    served: Callable[[type[BaseRequestHandler]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNETPP_WEBHOOK", f"{served(Handler)}/{HIDDEN}")
    assert send_alert("a night failed", {"problems": ["é"]}) is None
    [(method, path, body)] = Handler.seen
    assert (method, path) == ("POST", f"/{HIDDEN}")
    assert json.loads(body) == {"text": "a night failed", "details": {"problems": ["é"]}}


@pytest.mark.parametrize(("place", "code"), [("moved", 302), ("kept", 308), ("broken", 500)])
def test_a_redirect_or_an_error_is_no_delivery(
    served: Callable[[type[BaseRequestHandler]], str], monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    monkeypatch.setenv("UNETPP_WEBHOOK", f"{served(Handler)}/{place}/{HIDDEN}")
    assert send_alert("text", {}) == f"the alert did not reach 127.0.0.1 ({code}); see UNETPP_WEBHOOK"
    assert [path for _, path, _ in Handler.seen] == [f"/{place}/{HIDDEN}"], "a redirect is not followed"


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (f"/{HIDDEN}", "BadStatusLine"),
        (f"/{HIDDEN} with a blank", "InvalidURL"),
        (f"/{HIDDEN}\u00e9", "UnicodeEncodeError"),
        (f"x/{HIDDEN}", "InvalidURL"),
    ],
)
def test_no_answer_and_no_url_end_the_sender_or_print_the_secret(
    served: Callable[[type[BaseRequestHandler]], str], monkeypatch: pytest.MonkeyPatch, ending: str, reason: str
) -> None:
    monkeypatch.setenv("UNETPP_WEBHOOK", f"{served(Babbler)}{ending}")
    assert send_alert("text", {}) == f"the alert did not reach 127.0.0.1 ({reason}); see UNETPP_WEBHOOK"


def test_what_is_no_url_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNETPP_WEBHOOK", f"https://[::1/{HIDDEN}")
    assert send_alert("text", {}) == "UNETPP_WEBHOOK is no URL; write it like https://host/path"
