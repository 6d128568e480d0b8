"""A real headless Chromium, driven through its DevTools protocol over a pipe: no driver, no port, no package."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_S = 120.0


def find_browser() -> str | None:
    """Path of a Chromium on this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def browser_test(test: Any) -> Any:
    """Marks a test that needs a browser."""
    there = pytest.mark.skipif(
        find_browser() is None, reason="no Chromium here: apt-get install chromium (.ci/run does it)"
    )
    return pytest.mark.full(there(test))


class Page:
    """One tab. `problems` gathers console errors, exceptions and whatever the security policy refused."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write = read, write
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise RuntimeError("the browser has closed its pipe")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, values = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(values["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(values["args"])[:500])
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.problems.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {values['message']}")

    def open(self, path: Path, state: str = "") -> float:
        """Loads a file, `state` behind its `#`, and waits until its script has run; returns the seconds this took."""
        started = time.monotonic()
        self.call("Page.navigate", url="about:blank")  # Another `#` alone would load nothing anew.
        self.call("Page.navigate", url=path.resolve().as_uri() + (f"#{state}" if state else ""))
        while self.js("document.readyState") != "complete":
            if time.monotonic() - started > TIMEOUT_S:
                raise TimeoutError(str(path))
            time.sleep(0.05)
        return time.monotonic() - started

    def js(self, expression: str) -> Any:
        """Value of an expression in the page; promises are awaited. Runs outside the page's security policy."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:800])
        return result["result"].get("value")

    def frame(self) -> None:
        """Waits for two frames: what an input has set off is drawn then."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def key(self, name: str, code: int, *, text: str = "", shift: bool = False) -> None:
        """Presses and lets go a key; `text` is the character that it writes."""
        down = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        for event in (down, {"type": "keyUp"}):
            self.call("Input.dispatchKeyEvent", key=name, code=name, windowsVirtualKeyCode=code,
                      modifiers=8 * shift, **event)  # fmt: skip
        self.frame()

    def write(self, text: str) -> None:
        """Types text into what has the focus."""
        self.call("Input.insertText", text=text)
        self.frame()

    def point(self, expression: str) -> None:
        """Moves the mouse to the middle of an element, which is scrolled into view first."""
        for _ in range(2):  # What comes into view may be laid out only then, and move.
            self.js(f"{expression}.scrollIntoView({{block: 'center'}})")
            self.frame()
        x, y = self._middle(expression)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.frame()

    def _middle(self, expression: str) -> tuple[float, float]:
        x, y = self.js(
            f"(() => {{ const b = {expression}.getBoundingClientRect(); "
            "return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        return x, y

    def click(self, expression: str) -> None:
        self.point(expression)
        x, y = self._middle(expression)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.frame()

    def prefer(self, scheme: str) -> None:
        """`light` or `dark`, as the system would say."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.frame()

    def resize(self, width: int, height: int) -> None:
        """To a window of so many CSS pixels; of a phone where it is narrow."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)  # fmt: skip
        self.frame()

    def screenshot(self, path: Path, width: int, height: int) -> None:
        self.resize(width, height)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(binary: str, profile: Path) -> Iterator[Page]:
    """A tab of a browser of its own, which is ended afterwards."""
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    for end in (to_browser, from_browser):
        os.set_inheritable(end, True)
    command = [
        binary, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-gpu",
        "--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage",
        "--window-size=1200,900", *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    # The protocol is on descriptors 3 (in) and 4 (out) of the browser; moved aside first, since ours may be 3 and 4.
    script = f'exec "$@" 98<&{to_browser} 99>&{from_browser} 3<&98 4>&99 98<&- 99>&-'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(to_browser, from_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    for end in (to_browser, from_browser):
        os.close(end)
    try:
        yield Page(read, write)
    finally:
        os.close(write)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        # The group is ours alone (a session of its own): helpers that outlived the browser go with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(read)
