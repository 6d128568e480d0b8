"""A server for the session, a bucket for each test: every test runs on every kind of store unless it names a scheme."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest

from cal_schemas.storage import az, factory, gs, s3
from cal_schemas.storage.locations import location
from cal_schemas.storage.object_path import ObjectPath
from cloud_servers import AZURE_ACCOUNT, AZURE_KEY, az_server, gs_server
from s3_server import CREDENTIALS, FaultyProxy, s3_server

_numbers = itertools.count()
_SERVERS = {"s3": s3_server, "gs": gs_server, "az": az_server}
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST", "az": "AZURE_STORAGE_ENDPOINT"}
_CREDENTIALS = {
    "s3": CREDENTIALS, "gs": {},
    "az": {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY},
}  # fmt: skip
_MODULES = {"s3": s3, "gs": gs, "az": az}


@pytest.fixture(params=["s3", "gs", pytest.param("az", marks=pytest.mark.full)])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module(scheme: str) -> ModuleType:
    """The store's own, whose constants a test may change."""
    return _MODULES[scheme]


@pytest.fixture(scope="session")
def _endpoints() -> Iterator[dict[str, str]]:
    """Of the servers that were needed so far."""
    with contextlib.ExitStack() as stack:
        endpoints = _Started(stack)
        yield endpoints


class _Started(dict[str, str]):
    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def __missing__(self, scheme: str) -> str:
        self[scheme] = self._stack.enter_context(_SERVERS[scheme]())
        return self[scheme]


@pytest.fixture
def endpoint(scheme: str, _endpoints: dict[str, str]) -> str:
    return _endpoints[scheme]


@pytest.fixture
def bucket(scheme: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectPath]:
    """A fresh bucket of the server that the environment points to."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in (_CREDENTIALS[scheme] | {_ENDPOINTS[scheme]: endpoint}).items():
        monkeypatch.setenv(name, value)
    factory._backend.cache_clear()
    fresh = location(f"{scheme}://bucket-{next(_numbers)}")
    assert isinstance(fresh, ObjectPath)
    {
        "s3": lambda: client().create_bucket(Bucket=fresh.bucket),
        "gs": lambda: client("gs").create_bucket(fresh.bucket),
        "az": lambda: client("az").create_container(fresh.bucket),
    }[scheme]()
    yield fresh
    forget(scheme)


@pytest.fixture
def proxy(
    bucket: ObjectPath, scheme: str, endpoint: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultyProxy]:
    """Between this process and the server; the waits between tries are short."""
    with FaultyProxy(endpoint) as faulty:
        monkeypatch.setenv(_ENDPOINTS[scheme], faulty.endpoint + urlsplit(endpoint).path)
        monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.01)
        if scheme == "az":
            monkeypatch.setattr(module, "_GROWTH", 0.1)
        forget(scheme)
        yield faulty


def forget(scheme: str) -> None:
    """The next use reads the environment and the constants again."""
    client(scheme).close()
    factory._backend.cache_clear()


def client(scheme: str = "s3") -> Any:
    """The vendor's own client, for looking at the store from outside."""
    return factory.backend(scheme)._client  # type: ignore[attr-defined]
