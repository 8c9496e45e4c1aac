"""Alerts to real servers on this machine: delivered whole, or said not to be, in a line without the secret."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer

import pytest

from unetpp_workflows.alert import guarded, send_alert

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


GUARDED = """
import os, signal, sys
from unetpp_workflows.alert import guarded
with guarded("ended without a word", {}) as told:
    print("begun", flush=True)
    sys.stdin.readline()
    if sys.argv[1] == "told":
        told()
    elif sys.argv[1] == "left":
        raise KeyboardInterrupt
    os.kill(os.getpid(), signal.SIGKILL if "killed" in sys.argv else 0)
"""


@pytest.mark.parametrize(
    ("words", "alerts"),
    [(["told"], 0), (["told", "killed"], 0), (["nothing", "killed"], 1), (["left"], 1), (["end"], 1)],
)
def test_an_end_without_a_word_is_told_once(
    served: Callable[[type[BaseRequestHandler]], str], tmp_path: Path, words: list[str], alerts: int
) -> None:
    (tmp_path / "http.py").write_text("raise SystemExit('of the current folder')\n")
    (tmp_path / "begin.py").write_text(GUARDED)
    command = [sys.executable, "-P", str(tmp_path / "begin.py"), *words]
    environment = {**os.environ, "UNETPP_WEBHOOK": f"{served(Handler)}/{HIDDEN}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "begun\n"
        _, errors = process.communicate("go on\n", timeout=60)  # the guard has ended, too: it holds these pipes
    assert [json.loads(body)["text"] for *_, body in Handler.seen] == ["ended without a word"] * alerts
    assert process.returncode == (-signal.SIGKILL if "killed" in words else -signal.SIGINT if "left" in words else 0)
    assert "current folder" not in errors


def test_without_a_guard_the_work_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("UNETPP_WEBHOOK", f"https://127.0.0.1:9/{HIDDEN}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with guarded("ended without a word", {}) as told:
        told()
    assert "no process starts that would tell of a sudden end" in caplog.text and HIDDEN not in caplog.text
