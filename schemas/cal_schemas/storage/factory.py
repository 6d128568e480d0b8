"""Gives the store that serves a scheme."""

from __future__ import annotations

import functools
import importlib
import os
from typing import cast

from cal_schemas.storage.protocol import Backend

_CLASSES = {"s3": "s3.S3", "gs": "gs.GoogleStorage", "az": "az.AzureStorage", "hf": "hf.Hub"}


def backend(scheme: str) -> Backend:
    """The store of a scheme; one client per process, because connections do not survive a fork."""
    return _backend(scheme, os.getpid())


@functools.lru_cache(maxsize=4)
def _backend(scheme: str, _pid: int) -> Backend:
    module, name = _CLASSES[scheme].split(".")
    return cast(Backend, getattr(importlib.import_module(f"cal_schemas.storage.{module}"), name)())
