"""Publishes finished shards in an object store, which is never written to directly.

A shard is staged on the worker's own disk, read back, and uploaded whole.
"""

from __future__ import annotations

import logging
import os
import platform
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from cal_pipeline.output.local_staging import make_private, staged, staging_folder
from cal_schemas.errors import ConfigError
from cal_schemas.opened import annotated_files
from cal_schemas.storage.locations import Location, read_footer
from cal_schemas.storage.object_path import ObjectPath

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectStore:
    """Annotated shards under a prefix of an object store; workers share nothing but that."""

    output_dir: ObjectPath
    run_id: str = "run"

    @property
    def internal(self) -> ObjectPath:
        """Where everything that is not a final shard lives."""
        return self.output_dir / ".cal"

    @property
    def logs(self) -> Path:
        """On the worker's own machine: a log grows line by line, an object does not."""
        return staging_folder() / "logs"

    def path(self, name: str) -> ObjectPath:
        """Final path of a shard."""
        return self.output_dir / f"{name}.parquet"

    def prepare(self) -> None:
        """Makes the folder of logs; prefixes need not be made. ConfigError where others could write there."""
        make_private(self.logs.parent)
        self.logs.mkdir(exist_ok=True)

    def check_writable(self) -> None:
        """ConfigError unless the prefix can be written; says where the store does not know "only if nothing is yet".

        The probe object is deleted again.
        """
        probe = self.internal / f"probe.{self.run_id}"
        try:
            probe.write_bytes(b"")
            conditional = not probe.upload(b"", if_absent=True)
            probe.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"--output_dir {self.output_dir} cannot be written: {error}") from error
        if not conditional:
            _log.warning(
                "%s: this store has no conditional writes: of two drivers at the same shard the last one wins, not the "
                "first; both publish whole files", self.output_dir,
            )  # fmt: skip

    def finished(self, published: Iterable[str] = ()) -> list[Location]:
        """Final shards that are there now: stores list what was published anywhere."""
        return [*annotated_files(self.output_dir)]

    def check_name(self, name: str) -> None:
        """Nothing: every object is a file, and folders need not be made."""

    def check_there(self) -> None:
        """ConfigError naming this node where it cannot see the store (no credentials, no route)."""
        try:
            self.output_dir.is_dir()
        except OSError as error:
            raise ConfigError(f"{platform.node()} cannot reach --output_dir {self.output_dir}: {error}") from error

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """A path on this machine's disk (TMPDIR); whatever is still there on leaving is removed."""
        return staged(
            staging_folder(), f"{name.replace('/', '__')[-40:]}.{self.run_id}.{os.getpid()}.{uuid.uuid4().hex}"
        )

    def commit(self, partial: Path, name: str, *, replace: bool = False) -> bool:
        """Reads the staged file's footer back, then uploads it whole; True when it was ours that counted."""
        read_footer(partial)
        return self.path(name).upload(partial, if_absent=not replace)

    def clear_staging(self, *, everybodys: bool = False) -> list[str]:
        """Nothing is staged in the store itself; each worker removes its own staged file."""
        return []
