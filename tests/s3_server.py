"""A real S3 server process on loopback, and a proxy in front of it that fails on demand."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from loopback import LoopbackServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # The machine's own configuration and its role stay out of the tests.
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
_START_S = 120.0
_OF_A_HOP = ("connection", "date", "server", "transfer-encoding")


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a moto server in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            yield _endpoint(process)
        finally:
            process.kill()
            process.wait()


def _endpoint(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    pipe, said, deadline = process.stderr, b"", time.monotonic() + _START_S
    while b"Running on " not in said or not said.endswith(b"\n"):
        assert time.monotonic() < deadline, said.decode()
        assert process.poll() is None, said.decode()
        if select.select([pipe], [], [], 0.5)[0]:
            said += os.read(pipe.fileno(), 65536)
    # Nobody may block on a full pipe: the rest of the log is read and dropped.
    threading.Thread(target=pipe.read, daemon=True).start()
    return said.decode().split("Running on ")[1].split()[0]


class FaultyProxy(LoopbackServer):
    """Passes requests on to `upstream`, except that each request takes the next fault of the queue, if there is one.

    Faults: `drop` (closed before an answer), `503`, `403`, `401`, `cut` (half of the answer's body), `lost` (done, but
    the answer never arrives), `slow` (the answer takes 3 s), `hang` (neither done nor answered), `pass` (none). `only`
    names the methods they are for, `where` what the URL must hold.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.faults: deque[str] = deque()
        self.only = {"GET", "PUT", "POST", "HEAD", "DELETE"}
        self.where = ""
        self.requests: list[tuple[str, str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def answer(self) -> None:
                meant = proxy.faults and self.command in proxy.only and proxy.where in self.path
                fault = proxy.faults.popleft() if meant else "pass"
                proxy.requests.append((self.command, self.path, fault))
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if fault == "drop":
                    self.hang_up()
                    return
                if fault == "hang":
                    self.rfile.read(1)  # Until the client gives up.
                    return
                if fault in ("503", "403", "401"):
                    code = "SlowDown" if fault == "503" else "AccessDenied"
                    text = f"<Error><Code>{code}</Code><Message>asked for by a test</Message></Error>".encode()
                    self.send(int(fault), [("Content-Length", str(len(text)))], text)
                    return
                connection = http.client.HTTPConnection(proxy.upstream.hostname or "", proxy.upstream.port, timeout=60)
                headers = {key: value for key, value in self.headers.items() if key.lower() != "expect"}
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                data = response.read()
                connection.close()
                if fault == "lost":
                    self.hang_up()
                    return
                if fault == "slow":
                    time.sleep(3)
                kept = [pair for pair in response.getheaders() if pair[0].lower() not in _OF_A_HOP]
                if not any(name.lower() == "content-length" for name, _ in kept):
                    kept.append(("Content-Length", str(len(data))))
                if fault == "cut":
                    self.send(response.status, kept, data[: len(data) // 2])
                    self.hang_up()
                    return
                self.send(response.status, kept, data)

            def send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for pair in headers:
                    self.send_header(*pair)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)
                self.wfile.flush()

            def hang_up(self) -> None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

        super().__init__(Handler)
