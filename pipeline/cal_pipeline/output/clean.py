"""Removes what dead runs left behind, for `--clean`: never a final shard, a report or a log."""

from __future__ import annotations

from cal_pipeline.output.heartbeat import Heartbeat
from cal_pipeline.output.object_store import ObjectStore
from cal_pipeline.output.store import Store
from cal_schemas.errors import ConfigError
from cal_schemas.storage.locations import Location


def clean(store: Store) -> list[str]:
    """Removes staged files, probes, and in an object store the uploads that nobody will end; returns what it removed.

    Raises ConfigError while a driver is alive: its shards are on their way through the same places. A driver that was
    killed on another machine counts as alive for a minute.
    """
    if not store.output_dir.is_dir():
        raise ConfigError(f"--output_dir {store.output_dir}: no such directory")
    if others := Heartbeat(store.internal).others():
        raise ConfigError(
            f"a driver works on {store.output_dir} ({'; '.join(others)}), and its files look like leftovers: stop it, "
            "or wait until it has ended (a killed one is forgotten after a minute)"
        )
    removed = store.clear_staging(everybodys=True)
    for pattern in ("probe.*", "driver-*.new", "plan.new", "plan.json.*"):
        leftovers: list[Location] = [*store.internal.glob(pattern)]
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
            removed.append(str(leftover))
    if isinstance(store, ObjectStore):
        root = store.output_dir
        for key, abort in root.unfinished_uploads():
            abort()
            removed.append(f"unfinished upload of {root.scheme}://{root.bucket}/{key}")
    return removed
