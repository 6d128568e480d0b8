"""Turns Ctrl-C and SIGTERM into one thing: a run dropped cleanly, within a bounded time, with an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANUP_S = 60.0
_AGAIN_S = 0.05
_STARTING = subprocess.Popen.__init__.__code__


class Interruption:
    """While entered, the first of SIGINT, SIGTERM and SIGHUP raises KeyboardInterrupt; later ones are ignored.

    KeyboardInterrupt, because Ray's wait swallows any other exception that a signal handler raises. Ignored later,
    because schedulers and process groups deliver a signal twice, and the second must not break the cleaning up. That
    has a minute: then the process ends at once, whatever still waits. Where no exception gets out (a finalizer, what
    Python runs around a fork), the signal comes again a moment later. A thread that is not the main one takes none.

    Args:
        ends_process: whether that minute ends it; not where the process is somebody else's.
    """

    def __init__(self, *, ends_process: bool = True) -> None:
        self._ends_process = ends_process
        self.number: int | None = None
        """The signal that arrived."""
        self._before: dict[int, object] = {}
        self._limit: threading.Timer | None = None
        self._again: threading.Timer | None = None
        self._unraisable_before = sys.unraisablehook

    def __enter__(self) -> Interruption:
        self._limit = self._again = None
        self._unraisable_before = sys.unraisablehook
        if threading.current_thread() is threading.main_thread():
            sys.unraisablehook = self._unraisable
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler != signal.SIG_IGN:  # What is ignored (nohup) stays ignored.
                    self._before[number] = handler
                    signal.signal(number, self._handle)
        return self

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Lets no library inside take the signals for itself; one that a library swallowed is raised at the end.

        For `ray.init`, which would answer SIGTERM with an exit of its own.
        """
        set_handler = signal.signal

        def keep_ours(number: int, handler: Any) -> Any:
            return signal.getsignal(number) if number in self._before else set_handler(number, handler)

        signal.signal = keep_ours  # type: ignore[assignment]
        try:
            yield
        except Exception:
            self.check()
            raise
        finally:
            signal.signal = set_handler
            for number in self._before:  # Ray's C++ takes them too, beside Python.
                signal.signal(number, self._handle)
        self.check()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._unraisable_before
        if self._limit:
            self._limit.cancel()
        if self._again and self.number is not None:
            self._again.cancel()

    def check(self) -> None:
        """Raises KeyboardInterrupt when a signal has arrived, in case a library swallowed the first one."""
        if self.number is not None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            return
        self.number = number
        if self._limit is None and self._ends_process:
            self._limit = _later(_CLEANUP_S, self._give_up, number)
        if not _starts_a_process(frame):
            raise KeyboardInterrupt
        # The first thing run after a fork frees the lock of `logging`: interrupted, it would stay taken for good.
        self._send_again(number)

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        if self.number is None or not issubclass(lost.exc_type, KeyboardInterrupt):
            self._unraisable_before(lost)
        else:
            self._send_again(self.number)

    def _send_again(self, number: int) -> None:
        self._again = _later(_AGAIN_S, signal.pthread_kill, threading.main_thread().ident, number)
        self.number = None  # Last: until then other signals are ignored, which could raise in here to no effect.

    def _give_up(self, number: int) -> None:
        self.number = number
        message = f"\n{self.message}; cleaning up took more than {_CLEANUP_S:g} s; run the same command to resume\n"
        os.write(2, message.encode())
        os._exit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """Returns 128 + the signal, as shells count."""
        return 128 + (self.number or signal.SIGINT)

    @property
    def message(self) -> str:
        """Says what happened."""
        if self.number in (None, signal.SIGINT):
            return "interrupted"
        return f"terminated ({signal.Signals(self.number).name})"


def _starts_a_process(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not _STARTING:
        frame = frame.f_back
    return frame is not None


def _later(seconds: float, function: Callable[..., object], *arguments: object) -> threading.Timer:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()
    return timer
