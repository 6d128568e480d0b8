"""Publishing finished shards: what exists under its final name is complete and final.

Staging, plan, reports and logs live in `<output_dir>/.cal`, a dot directory: the only place that pandas,
pyarrow.dataset and load_dataset all ignore.
"""

from __future__ import annotations

import errno
import logging
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cal_schemas.annotated import annotated_files
from cal_schemas.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalStore:
    """Annotated shards in a directory that all workers share."""

    output_dir: Path
    run_id: str = "run"
    """Part of this run's staging names, so that it can clear away its own and no other's."""

    @property
    def internal(self) -> Path:
        """Where everything that is not a final shard lives."""
        return self.output_dir / ".cal"

    def path(self, name: str) -> Path:
        """Final path of a shard."""
        return self.output_dir / f"{name}.parquet"

    def prepare(self) -> None:
        """Makes the directories and proves that they can be written; ConfigError with the reason otherwise."""
        try:
            for folder in ("staging", "reports", "logs"):
                (self.internal / folder).mkdir(parents=True, exist_ok=True)
            probe = self.internal / "staging" / f"probe.{self.run_id}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"--output_dir {self.output_dir} cannot be written: {error}") from error

    def check_writable(self) -> None:
        """ConfigError unless `prepare` would succeed, found out without leaving anything behind."""
        there = next(parent for parent in (self.output_dir, *self.output_dir.parents) if parent.exists())
        try:
            tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise ConfigError(f"--output_dir {self.output_dir} cannot be written: {error}") from error

    def finished(self) -> list[Path]:
        """Final shards that are there now."""
        return annotated_files(self.output_dir) if self.output_dir.is_dir() else []

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A path to write a shard to; whatever is still there on leaving is removed."""
        # The end of the name is for the reader's eye: with all of a deep path the file name could be too long.
        partial = self.internal / "staging" / f"{name.replace('/', '__')[-40:]}.{self.run_id}.{uuid.uuid4().hex}"
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def commit(self, partial: Path, name: str, *, replace: bool = False) -> bool:
        """Publishes a staged file under its final name, durable on return; True when it was ours that counted.

        First writer wins: a shard that is already there stays as it is, unless `replace`.
        """
        final = self.path(name)
        final.parent.mkdir(parents=True, exist_ok=True)
        _sync(partial)
        if replace:
            partial.replace(final)
        else:
            try:
                os.link(partial, final)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise
                # No hard links here (FUSE, exFAT): rename publishes whole files too, but the last writer wins.
                _log.warning("%s has no hard links; publishing by rename", self.output_dir)
                partial.rename(final)
        _sync(final.parent)
        return True

    def clear_staging(self, *, everybodys: bool = False) -> None:
        """Removes what this run left in staging; everybody's only while no other driver is alive."""
        for leftover in (self.internal / "staging").glob("*" if everybodys else f"*.{self.run_id}*"):
            leftover.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
