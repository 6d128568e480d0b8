"""Keeps what Ray prints of itself in a file: sixty lines for one dead node, between a run's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray._private import worker

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
        if beginning not in said:
            said.add(beginning)
            _log.warning("Ray says: %s … (all of it in %s)", beginning, path)

    before = worker.print_to_stdstream
    worker.print_to_stdstream = keep
    try:
        yield
    finally:
        worker.print_to_stdstream = before
