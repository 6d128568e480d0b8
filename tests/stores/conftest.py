"""A server for the session, a bucket for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from cal_schemas.storage import factory
from cal_schemas.storage.locations import location
from cal_schemas.storage.object_path import ObjectPath
from s3_server import CREDENTIALS, FaultyProxy, s3_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectPath]:
    """A fresh bucket of the server that the environment points to."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    factory._backend.cache_clear()
    found = location(f"s3://bucket-{next(_numbers)}")
    assert isinstance(found, ObjectPath)
    client().create_bucket(Bucket=found.bucket)
    yield found
    factory._backend.cache_clear()


@pytest.fixture
def proxy(bucket: ObjectPath, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between this process and the server; the waits between tries are short."""
    from cal_schemas.storage import s3

    with FaultyProxy(endpoint) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        monkeypatch.setattr(s3, "_FIRST_WAIT_S", 0.01)
        factory._backend.cache_clear()
        yield found


def client():  # type: ignore[no-untyped-def]
    """boto3's own client, for looking at the store from outside."""
    return factory.backend("s3")._client  # type: ignore[attr-defined]
