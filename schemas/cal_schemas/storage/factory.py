"""Gives the store that serves a scheme."""

from __future__ import annotations

import functools
import os

from cal_schemas.storage.protocol import Backend


def backend(scheme: str) -> Backend:
    """The store of a scheme; one client per process, because connections do not survive a fork."""
    return _backend(scheme, os.getpid())


@functools.lru_cache(maxsize=4)
def _backend(scheme: str, _pid: int) -> Backend:
    if scheme == "s3":
        from cal_schemas.storage.s3 import S3

        return S3()
    from cal_schemas.storage.fsspec_store import google_storage

    return google_storage()
