"""A real S3 server on this machine (moto's), and a proxy before it that loses, cuts and delays answers."""

from __future__ import annotations

import http.client
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

BUCKET = "archive"
FAULTS = ("error", "cut", "short", "reset", "slow")
SLOW_S = 3.0


@dataclass
class Proxy:
    """Passes requests on. Each different request meets `times` of the `faults` before it gets through.

    error: status 500. cut: the connection ends in the middle of the body. short: half of the body, said to be all.
    reset: no answer. slow: none in time. `seen` counts them; `requests` lists method, path and range.
    """

    backend: tuple[str, int]
    port: int = 0
    faults: tuple[str, ...] = ()
    times: int = 1
    ending: str = ""
    seen: Counter[str] = field(default_factory=Counter)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    asked: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def misbehave(self, *faults: str, times: int = 1, ending: str = "") -> None:
        """Begin to fault requests, of paths with this ending only where it is given."""
        with self.lock:
            self.faults, self.times, self.ending = faults, times, ending
            self.asked.clear()
            self.seen.clear()
            self.requests.clear()

    def fault_of(self, request: tuple[str, str, str]) -> str | None:
        with self.lock:
            self.requests.append(request)
            self.asked[request] += 1
            path = request[1].partition("?")[0]
            if not self.faults or self.asked[request] > self.times or not path.endswith(self.ending):
                return None
            fault = self.faults[(len(self.asked) + self.asked[request]) % len(self.faults)]
            self.seen[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _pass(self) -> None:
        fault = self.proxy.fault_of((self.command, self.path, self.headers.get("Range", "")))
        if fault in ("reset", "slow"):
            time.sleep(SLOW_S if fault == "slow" else 0)
            self.close_connection = True
            return
        status, headers, body = self._backend()
        if fault == "error":
            status, headers, body = 500, {"Content-Length": "5"}, b"sorry"
        if fault == "short":
            body = body[: len(body) // 2]
            headers["Content-Length"] = str(len(body)) if self.command == "GET" else headers["Content-Length"]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        self.close_connection = fault == "cut"

    do_GET = do_HEAD = do_PUT = _pass

    def _backend(self) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.proxy.backend, timeout=30)
        length = int(self.headers.get("Content-Length") or 0)
        connection.request(self.command, self.path, self.rfile.read(length), dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
        if "Content-Length" not in headers:
            headers["Content-Length"] = str(len(body))
        connection.close()
        return answer.status, headers, body

    def log_message(self, *args: Any) -> None:
        pass


@dataclass(frozen=True)
class ObjectStore:
    """A bucket behind a proxy."""

    backend: tuple[str, int]
    proxy: Proxy

    def put(self, path: Path, key: str, *, public: bool = True) -> str:
        """Upload a file, or a folder with all below it; returns its URI. Plain HTTP may read what is public."""
        files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
        connection = http.client.HTTPConnection(*self.backend, timeout=30)
        for file in files:
            name = key if file == path else f"{key}/{file.relative_to(path).as_posix()}"
            connection.request("PUT", f"/{BUCKET}/{quote(name)}", file.read_bytes(), _headers(public))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
        connection.close()
        return f"s3://{BUCKET}/{key}"


_NOBODY = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


def _headers(public: bool) -> dict[str, str]:
    return {"Authorization": _NOBODY, "x-amz-acl": "public-read" if public else "private"}


@contextmanager
def serve() -> Iterator[ObjectStore]:
    """Serve an empty bucket until the block ends."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    backend = server.get_host_and_port()
    proxy = Proxy(backend)
    front = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    front.daemon_threads = True
    proxy.port = front.server_port
    thread = threading.Thread(target=front.serve_forever, daemon=True)
    thread.start()
    try:
        connection = http.client.HTTPConnection(*backend, timeout=30)
        connection.request("PUT", f"/{BUCKET}", headers=_headers(True))
        assert connection.getresponse().status == 200
        connection.close()
        yield ObjectStore(backend, proxy)
    finally:
        front.shutdown()
        front.server_close()
        server.stop()
