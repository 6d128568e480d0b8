"""`cal-precompute` in processes of its own, for tests that break them: start, watch, signal, compare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tiny_data import write_parquet

PROGRAM = Path(sys.executable).parent / "cal-precompute"
PATIENCE_S = 600
"""How long a test waits for what must happen. Generous: it bounds a hang, it measures nothing."""


started: list[subprocess.Popen[str]] = []
"""Every driver of this session: conftest ends those that a failed test left behind."""


@dataclass(kw_only=True)
class Job:
    """One command line and the output that its runs share."""

    model: Path
    data: Path
    output: Path
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    logs: Path | None = None
    """Folder for what the driver prints; beside the output unless that is the disk under test."""

    code: str | None = None
    """Python that starts the program, instead of its own script."""

    def command(self, *flags: str) -> list[str]:
        program = [str(PROGRAM)] if self.code is None else [sys.executable, "-c", self.code]
        return [
            *program, "--model_name_or_path", str(self.model), "--trust_remote_code", "true", "--dtype", "float32",
            "--data_path", str(self.data), "--output_dir", str(self.output), "--tokens_per_batch", "256",
            "--gpus_per_worker", "0", *self.flags, *flags,  # argparse: what comes last wins
        ]  # fmt: skip

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """A driver in a process group of its own, both streams in files beside the output."""
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | self.environment
        environment["HF_MODULES_CACHE"] = str(self.log.parent / "modules")
        with self.log.open("w") as log:
            process = subprocess.Popen(
                self.command(*flags), env=environment, text=True, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        return process

    @property
    def log(self) -> Path:
        return (self.logs or self.output.parent) / f"{self.output.name}.log"

    def said(self) -> str:
        """What the last driver printed, in one line: its table may break lines anywhere."""
        return " ".join(self.log.read_text().split())

    def run(self, *flags: str) -> int:
        return self.finish(self.start(*flags))

    def finish(self, process: subprocess.Popen[str]) -> int:
        """The driver's exit code; a traceback in its output is a failure whatever the code."""
        try:
            code = process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            raise AssertionError(f"the driver hangs: {self.said()}") from None
        assert "Traceback" not in self.said(), self.said()
        return code

    def wait_for(self, process: subprocess.Popen[str], what: Callable[[], object], why: str) -> None:
        wait_for(what, f"{why}: {self.said()}", still=lambda: process.poll() is None)

    def done(self) -> list[str]:
        return sorted(path.relative_to(self.output).with_suffix("").as_posix() for path in self._files())

    def contents(self) -> dict[str, tuple[bytes, int]]:
        """Bytes and modification time of every finished shard."""
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in self._files()}

    def table(self, count: int | None = None) -> pa.Table:
        """All finished shards, or the first so many."""
        return pa.concat_tables([pq.read_table(path) for path in self._files()[:count]])

    def _files(self) -> list[Path]:
        return sorted(path for path in self.output.rglob("*.parquet") if ".cal" not in path.parts)

    def staged(self) -> list[str]:
        return [path.name for path in (self.output / ".cal" / "staging").glob("*")]


def wait_for(what: Callable[[], object], why: str, still: Callable[[], bool] = lambda: True) -> None:
    """Until `what` is true; AssertionError when it takes too long or `still` is no longer true."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert still(), f"ended before {why}"
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


def write_shards(folder: Path, count: int, *, rows: int = 4, first: int = 0) -> Path:
    """Parquet shards `s00`, `s01`, ... of short rows, all different; returns the folder."""
    for number in range(first, first + count):
        write_parquet(folder / f"s{number:02d}.parquet", count=rows, seed=100 * number)
    return folder


def lengthen(path: Path, words: int) -> None:
    """Makes the last row of a shard longer by so many words, for a model that breaks on rows of such a length."""
    rows = pq.read_table(path).to_pylist()
    rows[-1]["messages"][-1]["content"] += " cat" * words
    pq.write_table(pa.Table.from_pylist(rows), path)


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process id and title of every living process below `pid`."""
    children: dict[int, list[int]] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    queue = [pid]
    while queue:
        for child in children.get(queue.pop(), []):
            queue.append(child)
            yield child, titles[child]


def cut_power(process: subprocess.Popen[str]) -> None:
    """Ends the driver and everything below it at one instant, as a machine's end does.

    After a mere SIGKILL of the driver, its Ray may still ask the workers to end (SIGTERM), and they clean up.
    """
    stopped = [process.pid]
    os.kill(process.pid, signal.SIGSTOP)
    while new := [pid for pid, _ in descendants(process.pid) if pid not in stopped]:
        for pid in new:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped += new
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(alive, stopped)), "all processes of the dead driver have ended")


def busy_workers(pid: int) -> list[int]:
    """Workers below `pid` that are in the middle of a shard: Ray writes the running method into the title."""
    return [child for child, title in descendants(pid) if title.startswith("ray::_Actor.run")]


@contextmanager
def frozen(process: subprocess.Popen[str], job: Job, *, of: int | None = None, done: int = 0) -> Iterator[list[int]]:
    """Workers, at least one of them in the middle of a shard, all stopped (SIGSTOP): the run waits for the test.

    Args:
        process: the driver.
        job: what it runs.
        of: the process that the workers descend from, when it is not the driver (a cluster's).
        done: so many shards are finished, at least.

    Yields those in mid-shard. At the end whoever lives goes on.
    """
    stopped: set[int] = set()

    def wake() -> None:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        stopped.clear()

    def caught() -> list[int]:
        if len(job.done()) < done or not job.staged():
            return []
        for pid, title in list(descendants(of or process.pid)):
            if title.startswith("ray::_Actor"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.add(pid)
        # What was seen before they stopped may have been over by then.
        busy = busy_workers(of or process.pid) if job.staged() else []
        if not busy:
            wake()
        return busy

    busy: list[int] = []
    try:
        job.wait_for(process, lambda: busy.extend(caught()) or busy, f"{done} shards are finished and one is in work")
        yield busy
    finally:
        wake()


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
