"""Makes short what Ray says at length: why a worker died in one line, its sixty lines about a dead node in a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray.exceptions
from ray._private import worker

from cal_schemas.redaction import redacted

_log = logging.getLogger(__name__)


@contextmanager
def ray_notices(path: Path) -> Iterator[None]:
    """While entered, Ray's own notices go to this file; the beginning of each new one is logged, with the path."""
    said = set()

    def keep(data: dict[str, Any], *_: object, **__: object) -> None:
        text = "\n".join(data["lines"])
        with suppress(OSError), path.open("a", encoding="utf-8") as file:  # Its disk may be full.
            file.write(f"{text}\n")
        beginning = text.partition(". ")[0][:120]
        if beginning not in said and not beginning.startswith("A worker died"):  # The driver says that itself.
            said.add(beginning)
            _log.warning("Ray says: %s … (all of it in %s)", beginning, path)

    before = worker.print_to_stdstream
    worker.print_to_stdstream = keep
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def in_short(error: Exception) -> str:
    """Says in one line why a worker died."""
    text = str(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "running low on memory" in text:
        return _out_of_memory(text)
    if isinstance(error, ray.exceptions.RayActorError) and "Traceback" not in text:
        return "killed or crashed" if "its worker process has died" in text else " ".join(text.split("\n")[-1].split())
    # An exception of ours from its process: its last line is the cause, Ray's frame comes first.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return redacted(f"{type(error).__name__}: {lines[-1] if lines else ''}")


def _out_of_memory(text: str) -> str:
    """Says with Ray's figures, without its advice, what its memory monitor did."""
    node = re.search(r"\(IP: ([^,)]+)", text)
    used = re.search(r"was ([\d.]+ ?\w+)(?: used)? / ([\d.]+ ?\w+)", text)
    limit = re.search(r"([\d.]+)% of \d+B limit", text)
    return (
        "Ray's memory monitor killed it: "
        + (f"node {node[1]} " if node else "its node ")
        + (f"used {used[1]} of {used[2]}" if used else "ran out of memory")
        + (f" (it kills from {float(limit[1]):g} % on)" if limit else "")
        + "; fewer workers a node, or a smaller --tokens_per_batch, need less"
    )
