"""Puts a store's failures into one line without secrets."""

from __future__ import annotations

import errno
import re

from cal_schemas.errors import StoreError

_SECRETS = (
    (re.compile(r"//[^/\s@]+@"), "//"),  # http://user:password@host
    (re.compile(r"\?[^\s'\")]*[^\s'\"):]"), ""),  # a signature (SAS) in a query
    (re.compile(r"(?i)\b(AccountKey|SharedAccessSignature|sig)=[^\s;&'\"]+"), r"\1=…"),
)


def one_line(error: object) -> str:
    """The first line of a message, without passwords and signatures."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def access_denied(message: str) -> StoreError:
    """A StoreError that no other request would escape."""
    # The worker stops the run at this errno: the next shard would fare no better.
    error = StoreError(message)
    error.errno = errno.EACCES
    return error
