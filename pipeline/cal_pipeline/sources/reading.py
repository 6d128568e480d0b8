"""Tells damage in a source's bytes from what is wrong around it: its disk, its share, this machine."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from cal_schemas.errors import ShardError, StoreError, SurroundingsError
from cal_schemas.storage.locations import Location


class DamagedError(Exception):
    """A file breaks its format; the message says where and how."""


def is_surroundings(error: BaseException) -> bool:
    """True for the system's word (EIO, EACCES, …), which has a number, a decoder's about bytes has none; and memory."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


@contextmanager
def reading(path: Location, damaged: str) -> Iterator[None]:
    """Turns what reading a source raises into a ShardError that names it; `damaged` says what broken bytes are.

    A store that gives no answer stays a StoreError.
    """
    try:
        yield
    except (StoreError, MemoryError):
        raise
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError, DamagedError) as error:
        if isinstance(error, OSError) and is_surroundings(error):
            raise SurroundingsError(f"{path}: cannot be read now: {error.strerror}") from error
        raise ShardError(f"{path}: {damaged}: {error}") from error
