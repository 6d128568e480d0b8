"""Publishes finished shards: what exists under its final name is complete and final.

Staging, plan, reports and logs live in `<output_dir>/.cal`, a dot directory: the only place that pandas,
pyarrow.dataset and load_dataset all ignore.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from cal_pipeline.output.object_store import ObjectStore
from cal_schemas.errors import ConfigError
from cal_schemas.opened import annotated_files
from cal_schemas.storage.locations import Location, location
from cal_schemas.storage.object_path import ObjectPath

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

    @property
    def logs(self) -> Path:
        """Where workers write their logs."""
        return self.internal / "logs"

    @property
    def _folders(self) -> list[Path]:
        return [self.internal / name for name in ("staging", "reports", "logs")]

    def path(self, name: str) -> Path:
        """Final path of a shard."""
        return self.output_dir / f"{name}.parquet"

    def prepare(self) -> None:
        """Makes the directories and proves that they can be written; ConfigError with the reason otherwise."""
        try:
            for folder in self._folders:
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ConfigError(f"--output_dir {self.output_dir} cannot be written: {error}") from error

    def check_writable(self) -> None:
        """ConfigError unless `prepare` would succeed, found out without leaving anything behind."""
        try:
            for folder in self._folders:
                # A link to nothing is there too: no directory can be made in its place.
                there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
                if not there.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
                tempfile.TemporaryFile(dir=there).close()
        except OSError as error:
            raise ConfigError(f"--output_dir {self.output_dir} cannot be written: {error}") from error

    def finished(self, published: Iterable[str] = ()) -> list[Location]:
        """Final shards that are there now, those included that workers on other nodes have published."""
        for folder in {self.path(name).parent for name in published}:
            # NFS shows other nodes' files late, unless the folder is changed from here.
            with suppress(OSError):
                tempfile.TemporaryFile(dir=folder, prefix=".cal-").close()
        files = annotated_files(self.output_dir) if self.output_dir.is_dir() else []
        return [path for path in files if path.is_file()]  # Links to nothing are check_name's business.

    def check_name(self, name: str) -> None:
        """ConfigError when no shard can be published as `name`: no file is there, or a file in place of its folder."""
        final = self.path(name)
        folder = next(parent for parent in final.parents if os.path.lexists(parent))
        for path, fits in ((folder, folder.is_dir()), (final, final.is_file() or not os.path.lexists(final))):
            if not fits:
                kind = "directory" if path.is_dir() else "link to nothing" if path.is_symlink() else "file"
                raise ConfigError(
                    f"{path} is a {kind}, and the shard {final} cannot be written: remove it, or choose another "
                    "--output_dir"
                )

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A path to write a shard to; whatever is still there on leaving is removed."""
        # The end of the name is for the reader's eye: with all of a deep path the file name could be too long.
        partial = self.internal / "staging" / f"{name.replace('/', '__')[-40:]}.{self.run_id}.{uuid.uuid4().hex}"
        try:
            self._make(partial.parent)
            yield partial
        except FileNotFoundError:
            self.check_there()
            raise
        finally:
            partial.unlink(missing_ok=True)

    def check_there(self) -> None:
        """ConfigError where the output directory, which `prepare` made, is not seen: it is missed and not made anew."""
        if not self.output_dir.is_dir():
            raise ConfigError(
                f"{platform.node()} does not see --output_dir {self.output_dir}, which was there when the run began: "
                "removed, unmounted, or on a disk that not all nodes share?"
            )

    def _make(self, folder: Path) -> None:
        """Makes a folder below the output directory."""
        below = folder.relative_to(self.output_dir)
        for part in (*reversed(below.parents[:-1]), below)[: len(below.parts)]:
            (self.output_dir / part).mkdir(exist_ok=True)

    def commit(self, partial: Path, name: str, *, replace: bool = False) -> bool:
        """Publishes a staged file under its final name, durable on return; True when it was ours that counted.

        First writer wins: a shard that is already there stays as it is, unless `replace`.
        """
        final = self.path(name)
        self._make(final.parent)
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
                if os.path.lexists(final):
                    return False
                _log.warning("%s has no hard links; publishing by rename", self.output_dir)
                partial.rename(final)
        for folder in final.parents[: len(Path(name).parts)]:  # Folders on the way may be as new as the file.
            _sync(folder)
        return True

    def clear_staging(self, *, everybodys: bool = False) -> list[str]:
        """Removes what this run left in staging; everybody's only while no other driver is alive. Returns names."""
        leftovers = list((self.internal / "staging").glob("*" if everybodys else f"*.{self.run_id}*"))
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        return [str(leftover) for leftover in leftovers]


Store: TypeAlias = LocalStore | ObjectStore
"""Where annotated shards are published; both have the same methods."""


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_store(output_dir: str | Path, run_id: str) -> Store:
    """The store that an output path asks for."""
    where = location(output_dir)
    if isinstance(where, ObjectPath):
        return ObjectStore(output_dir=where, run_id=run_id)
    return LocalStore(output_dir=where.absolute(), run_id=run_id)
