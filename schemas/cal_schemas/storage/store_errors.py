"""Puts a store's failures into one line without secrets."""

from __future__ import annotations

import errno

from cal_schemas.errors import StoreError
from cal_schemas.redaction import redacted


def one_line(error: object) -> str:
    """The first line of a message, without passwords and signatures."""
    return redacted(next(iter(str(error).strip().splitlines()), "") or type(error).__name__)


def access_denied(message: str) -> StoreError:
    """A StoreError that no other request would escape."""
    # The worker stops the run at this errno: the next shard would fare no better.
    error = StoreError(message)
    error.errno = errno.EACCES
    return error
