"""Serves `az://` through azure-storage-blob, whose own retries and credentials it uses."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage.protocol import ObjectInfo
from cal_schemas.storage.store_errors import access_denied, one_line

RETRIES = 5
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
PART_BYTES = 16 * 2**20
"""Files above two parts are uploaded in parts."""
_UPLOAD_THREADS = 4
_CONNECTIONS = 64
_FIRST_WAIT_S, _GROWTH = 0.5, 2
_WRITER = "cal_writer"
_CREDENTIALS = (
    "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or "
    "AZURE_STORAGE_SAS_TOKEN, or with an identity that this machine has (on a cluster: every node)"
)
_Result = TypeVar("_Result")


class AzureStorage:
    """The backend of `az://`; raises ConfigError when azure-storage-blob is not installed or no account is named."""

    def __init__(self) -> None:
        try:
            import requests
            from azure.core import MatchConditions, exceptions
            from azure.core.pipeline.transport import RequestsTransport
            from azure.storage.blob import BlobServiceClient
        except ImportError as error:
            raise ConfigError("az:// needs azure-storage-blob: pip install 'cal-vlm[az]'") from error
        self._errors, self._conditions = exceptions, MatchConditions
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))
        transport = RequestsTransport(
            session=session, connection_timeout=CONNECT_TIMEOUT_S, read_timeout=READ_TIMEOUT_S
        )  # fmt: skip
        options: dict[str, Any] = {
            "transport": transport, "retry_total": RETRIES, "initial_backoff": _FIRST_WAIT_S, "increment_base": _GROWTH,
            "random_jitter_range": 0, "max_single_put_size": 2 * PART_BYTES, "max_block_size": PART_BYTES,
            "max_single_get_size": 2**30,  # A read is one request.
        }  # fmt: skip
        environment = {name: os.environ.get(f"AZURE_STORAGE_{name}", "") for name in (
            "CONNECTION_STRING", "ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN", "ENDPOINT",
        )}  # fmt: skip
        try:
            if text := environment["CONNECTION_STRING"]:
                self._client = BlobServiceClient.from_connection_string(text, **options)
            elif account := environment["ACCOUNT_NAME"]:
                url = environment["ENDPOINT"] or f"https://{account}.blob.core.windows.net"
                key, token = environment["ACCOUNT_KEY"], environment["SAS_TOKEN"]
                named = {"account_name": account, "account_key": key} if key else None
                self._client = BlobServiceClient(url, credential=named or token or _identity(), **options)
            else:
                raise ConfigError(f"az:// needs to know the account: {_CREDENTIALS}")
        except ValueError as error:
            raise ConfigError(
                f"az:// cannot be used with this environment (AZURE_STORAGE_…): {one_line(error)}"
            ) from None

    def _ask(self, uri: str, call: Callable[[], _Result], *, reading: bool = False) -> _Result:
        """The call's result, its errors in the words of `Backend`; the library has asked again where that may help."""
        errors = self._errors
        try:
            return call()
        except errors.AzureError as error:
            code, status = getattr(error, "error_code", None) or "", getattr(error, "status_code", None)
            code = str(getattr(code, "value", code))
            if code == "ContainerNotFound":
                raise StoreError(f"{uri}: no such container") from error
            if status == 404:
                raise FileNotFoundError(errno.ENOENT, "No such object", uri) from error
            if status in (409, 412) and code in ("BlobAlreadyExists", "ConditionNotMet"):
                raise FileExistsError(errno.EEXIST, "Object exists", uri) from error
            if status in (401, 403):
                kind = StoreError if reading and code != "AuthenticationFailed" else access_denied
                raise kind(f"{uri}: forbidden ({code}) to these credentials: {_CREDENTIALS}") from error
            if isinstance(error, errors.ClientAuthenticationError):
                raise access_denied(f"{uri}: {one_line(error)}; {_CREDENTIALS}") from error
            raise StoreError(f"{uri}: {code or type(error).__name__}: {one_line(error)}") from error

    def _blob(self, bucket: str, key: str) -> Any:
        return self._client.get_blob_client(bucket, key)

    def info(self, bucket: str, key: str) -> ObjectInfo | None:
        """As `Backend.info`."""
        try:
            properties = self._ask(_uri(bucket, key), self._blob(bucket, key).get_blob_properties, reading=True)
        except FileNotFoundError:
            return None
        return None if _is_folder(properties) else _info(properties)

    def objects(self, bucket: str, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """As `Backend.objects`."""
        container = self._client.get_container_client(bucket)
        pages = container.list_blobs(prefix, include=["metadata"], results_per_page=limit).by_page()
        while (page := self._ask(_uri(bucket, prefix), lambda: next(pages, None))) is not None:
            yield from (_info(item) for item in page if not _is_folder(item))

    def read(self, bucket: str, pinned: ObjectInfo, start: int, stop: int) -> bytes:
        """As `Backend.read`."""
        uri, blob = _uri(bucket, pinned.key), self._blob(bucket, pinned.key)
        condition = {"etag": f'"{pinned.etag}"', "match_condition": self._conditions.IfNotModified}
        try:
            data: bytes = self._ask(
                uri,
                lambda: blob.download_blob(offset=start, length=stop - start, **condition).readall(),
                reading=True,
            )
        except FileExistsError:
            raise StoreError(f"{uri}: changed while it was being read") from None
        return data

    def read_all(self, bucket: str, key: str) -> bytes:
        """As `Backend.read_all`."""
        blob = self._blob(bucket, key)
        data: bytes = self._ask(_uri(bucket, key), lambda: blob.download_blob().readall(), reading=True)
        return data

    def upload(self, bucket: str, key: str, content: Path | bytes, writer: str, *, if_absent: bool) -> None:
        """As `Backend.upload`."""
        blob = self._blob(bucket, key)
        options = {
            "length": len(content) if isinstance(content, bytes) else content.stat().st_size,
            "overwrite": not if_absent, "metadata": {_WRITER: writer}, "max_concurrency": _UPLOAD_THREADS,
        }  # fmt: skip
        with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
            self._ask(_uri(bucket, key), lambda: blob.upload_blob(file, **options))

    def delete(self, bucket: str, key: str) -> None:
        """As `Backend.delete`."""
        self._ask(_uri(bucket, key), self._blob(bucket, key).delete_blob)

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, Callable[[], None]]]:
        """None: Azure gives no way to end them, and forgets blocks that nobody publishes after a week."""
        return []


def _identity() -> Any:
    """A managed identity, a service principal, the Azure CLI's login, …: what this machine has."""
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise ConfigError("az:// without a key needs azure-identity: pip install 'cal-vlm[az]'") from error
    return DefaultAzureCredential()


def _uri(bucket: str, key: str) -> str:
    return f"az://{bucket}/{key}"


def _is_folder(properties: Any) -> bool:
    """An account with a hierarchical namespace shows its folders as empty objects."""
    return (properties.metadata or {}).get("hdi_isfolder") == "true"


def _info(properties: Any) -> ObjectInfo:
    return ObjectInfo(
        key=properties.name, st_size=properties.size, etag=properties.etag.strip('"'),
        st_mtime_ns=int(properties.last_modified.timestamp()) * 10**9,
        writer=(properties.metadata or {}).get(_WRITER, ""),
    )  # fmt: skip
