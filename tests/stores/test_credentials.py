"""What `gs://` and `az://` take from the environment, and what their errors say and hide.

fake-gcs-server asks for no credentials, so wrong ones are refused by the proxy before it.
"""

from __future__ import annotations

import errno
import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage import factory
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.storage.store_errors import one_line
from cloud_servers import AZURE_ACCOUNT, AZURE_KEY
from s3_server import FaultyProxy

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
ONLY_GS = pytest.mark.parametrize("scheme", ["gs"])
ONLY_AZ = pytest.mark.parametrize("scheme", [pytest.param("az", marks=pytest.mark.full)])


def refused(bucket: ObjectPath) -> StoreError:
    factory._backend.cache_clear()
    with pytest.raises(StoreError) as error:
        list(bucket.files())
    assert error.value.errno == errno.EACCES
    assert "\n" not in str(error.value)
    return error.value


@ONLY_AZ
def test_an_account_is_named_by_a_connection_string_too(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    (bucket / "x").write_bytes(b"whole")
    endpoint = factory.backend("az")._client.url  # type: ignore[attr-defined]
    for name in ("ACCOUNT_NAME", "ACCOUNT_KEY", "ENDPOINT"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}")
    text = f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};BlobEndpoint={endpoint}"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    factory._backend.cache_clear()
    assert (bucket / "x").read_bytes() == b"whole"


@ONLY_AZ
def test_a_shared_access_signature_is_taken_and_never_shown(
    bucket: ObjectPath, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    (bucket / "x").write_bytes(b"whole")
    token = generate_container_sas(
        AZURE_ACCOUNT, bucket.bucket, AZURE_KEY, permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    signature = token.split("sig=")[1].split("&")[0]
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", token)
    factory._backend.cache_clear()
    assert (bucket / "x").read_bytes() == b"whole"
    with pytest.raises(StoreError) as forbidden:
        (bucket / "y").write_bytes(b"more")
    proxy.faults.extend(["drop"] * 50)
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError) as unreachable:
        (bucket / "x").read_bytes()
    for error in (forbidden.value, unreachable.value):
        assert str(error).startswith(f"{bucket}/")
        assert signature not in str(error)
        assert "\n" not in str(error)
    assert signature not in caplog.text


@ONLY_AZ
def test_a_wrong_key_is_refused_with_what_to_set(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmc=")
    message = str(refused(bucket))
    assert "forbidden (AuthorizationFailure) to these credentials" in message  # Azure itself: AuthenticationFailed.
    assert "AZURE_STORAGE_CONNECTION_STRING" in message
    assert "d3Jvbmc=" not in message


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "needs to know the account: set AZURE_STORAGE_CONNECTION_STRING"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "AccountKey"}, "cannot be used with this environment"),
    ],
)
def test_an_environment_that_names_no_account_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CONNECTION_STRING", "ACCOUNT_NAME", "ACCOUNT_KEY", "SAS_TOKEN"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    factory._backend.cache_clear()
    with pytest.raises(ConfigError, match=message):
        factory.backend("az")


@ONLY_GS
def test_a_token_that_google_refuses_is_said_in_one_line(bucket: ObjectPath, proxy: FaultyProxy) -> None:
    proxy.faults.append("401")
    assert "set GOOGLE_APPLICATION_CREDENTIALS to a key file" in str(refused(bucket))
    assert len(proxy.requests) == 1


def test_google_credentials_that_are_none_are_said_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    assert "missing.json" in str(refused(ObjectPath("gs", "b")))
    (tmp_path / "key.json").write_text(json.dumps({"type": "service_account", "private_key": "secret"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    message = str(refused(ObjectPath("gs", "b")))
    assert "set GOOGLE_APPLICATION_CREDENTIALS to a key file" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("404 GET http://me:hunter2@host/o?sig=abc%3D&se=1: Not Found\nmore", "404 GET http://host/o: Not Found"),
        ("Max retries with url: /c/x?sv=1&sig=abc%3D (Caused by …)", "Max retries with url: /c/x (Caused by …)"),
        ("AccountName=a;AccountKey=abc=;EndpointSuffix=x", "AccountName=a;AccountKey=…;EndpointSuffix=x"),
        ("", "str"),
    ],
)  # fmt: skip
def test_an_error_is_one_line_without_secrets(said: str, shown: str) -> None:
    assert one_line(said) == shown
