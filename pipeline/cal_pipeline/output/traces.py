"""Takes away what a run left beside the shards when the run is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path

from cal_pipeline.output.store import Store
from cal_schemas.storage.locations import Location

_PLAN = "plan.json"


class Traces:
    """What was in the output before the run; made before anything is written there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._before = set(self._all())
        plan = store.internal / _PLAN
        self._plan = plan.read_text(encoding="utf-8") if plan in self._before else None

    def remove(self) -> None:
        """Takes away all that is there now and was not before, down to the output directory itself."""
        for path in sorted(set(self._all()) - self._before, key=lambda path: len(path.parts), reverse=True):
            if isinstance(path, Path) and path.is_dir():
                with contextlib.suppress(OSError):  # Another driver's files may have come into it.
                    path.rmdir()
            else:
                path.unlink(missing_ok=True)
        if self._plan is not None:
            (self._store.internal / _PLAN).write_text(self._plan, encoding="utf-8")

    def _all(self) -> list[Location]:
        internal = self._store.internal
        if not isinstance(internal, Path):
            return list(internal.files())
        return [path for path in (*internal.rglob("*"), internal, *internal.parents) if path.exists()]
