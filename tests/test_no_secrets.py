"""No password of any URL is printed, logged or stored, wherever a URL can be given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline import cli
from cal_pipeline.inspect import cli as inspect_cli
from cal_pipeline.runtime.worker import store_environment
from cal_pipeline.sources.rows import sample_from_json
from cal_schemas.errors import ConfigError
from cal_schemas.redaction import redacted, unsigned
from cal_schemas.storage import gs
from cal_trainer import cli as train_cli
from conftest import Family
from s3_server import CREDENTIALS, s3_server
from tiny_data import write_llava_json, write_parquet

SECRET = "hunter2"
PLACES = {
    "a store with a key": f"s3://AKIAME:{SECRET}@bucket/x",
    "a key with slashes": f"s3://AKIAME:ab/{SECRET}+c@bucket/x",
    "a key that begins with digits": f"s3://AKIAME:12/{SECRET}+c@bucket/x",
    "a page": f"https://me:{SECRET}@host.example/x?token={SECRET}",
    "a presigned one": f"https://bucket.s3.amazonaws.com/x?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}&v=1",
    "an account": f"az://box@account.blob.core.windows.net/x?sv=1&sig={SECRET}",
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{SECRET}@host:80/a: no", "http://host:80/a: no"),
        (f"http://me:pa@{SECRET}@host/a", "http://host/a"),
        (f"'http://me:pa'{SECRET}@host/a', 'b@c'", "'http://host/a', 'b@c'"),
        (f"Invalid endpoint: me:{SECRET}@127.0.0.1:9/b", "Invalid endpoint: 127.0.0.1:9/b"),
        (f"endpoint `//me:{SECRET}@[::1]:9`", "endpoint `//[::1]:9`"),
        ("row a:b@c of 'x:y@z.json': me@host:80", "row a:b@c of 'x:y@z.json': me@host:80"),
        (f"https://h/x?a='b'&X-Amz-Signature={SECRET}", "https://h/x'b'&X-Amz-Signature=…"),
        ("http://host:80/path@x and a@b", "http://host:80/path@x and a@b"),
        ("http://[::1]:80/path@x", "http://[::1]:80/path@x"),
        (f"--config https:/me:{SECRET}@host/x.yaml: No such file", "--config https:/host/x.yaml: No such file"),
        ("nas:/data/me@home?x=1", "nas:/data/me@home?x=1"),
        (f"url: /b/k?list-type=2&X-Amz-Signature={SECRET} (Caused by …)", "url: /b/k (Caused by …)"),
        (f"image 'https://h/x.jpg?token={SECRET}' is a URL", "image 'https://h/x.jpg' is a URL"),
        (f'{{"url": "https://h/x.jpg?token={SECRET}"}}', '{"url": "https://h/x.jpg"}'),
        ("(is it a CPU build of torch?)", "(is it a CPU build of torch?)"),
        (f"Illegal header value b'Bearer {SECRET}'", "Illegal header value b'Bearer …'"),
        (f"token hf_{SECRET * 4} of org/name", "token hf_… of org/name"),
        ("hf_hub_download of hf://datasets/org/name@v1/a", "hf_hub_download of hf://datasets/org/name@v1/a"),
        ("image 'photo.jpg?size=large' is not a file", "image 'photo.jpg?size=large' is not a file"),
    ],
)
def test_a_text_keeps_all_but_secrets(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown
    assert str(ConfigError(text)) == shown


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"https://me:{SECRET}@host/x.jpg?id=1", "https://host/x.jpg?id=1"),
        (f"https://host/x.jpg?X-Amz-Date=1&X-Amz-Signature={SECRET}", "https://host/x.jpg"),
        (f"HTTP://host/x.jpg?id=1&sig={SECRET}", "HTTP://host/x.jpg"),
        (f" https:/me:{SECRET}@host/x.jpg?token={SECRET}", " https:/host/x.jpg"),
        (f"s3://AKIAME:ab/{SECRET}+c@bucket/a?token=1.jpg", "s3://bucket/a?token=1.jpg"),
        (f"ftp://me:{SECRET}@host/x.jpg", "ftp://host/x.jpg"),
        *((name, name) for name in (
            "https://host/x.jpg?id=1", "images/a?sig=1.jpg", "a password=b.jpg", "s3://bucket/a?token=1.jpg",
            "me:x@y/z", "/data/http:/me@host/x?key=1.jpg", "az://box@account/a", "s3://bucket/a:b@c.jpg",
        )),
    ],
)  # fmt: skip
def test_what_tells_rows_apart_loses_passwords_and_secrets_of_pages_and_nothing_else(text: str, kept: str) -> None:
    sample = sample_from_json({"id": text, "image": text, "prompt": "<image>", "completion": "b"}, "s/0")
    assert unsigned(text) == kept
    assert (sample.sample_id, sample.images[0].path) == (kept, kept)


@pytest.mark.parametrize(
    "part",
    [
        "://a:",
        "://a@",
        "://a?",
        "?token",
        "sig=",
        "a",
        "/x?key=1",
        "=a:",
        pytest.param("://:'", marks=pytest.mark.full),
    ],
)
def test_ten_megabytes_of_hostile_text_take_seconds(part: str) -> None:
    started = time.process_time()
    redacted(part * (10_000_000 // len(part)))
    assert time.process_time() - started < 20


def refused(run: Callable[[list[str]], int], arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    assert run(arguments) == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err
    return err


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("flag", ["--data_path", "--image_folder", "--output_dir", "--model_name_or_path"])
def test_cal_precompute_refuses_a_url_without_its_secret(
    flag: str, place: str, tmp_path: Path, llava: Family, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    data, images = write_llava_json(tmp_path, 2)
    given = {
        "--data_path": str(data), "--image_folder": str(images), "--output_dir": str(tmp_path / "out"),
        "--model_name_or_path": str(llava.directory), flag: PLACES[place],
    }  # fmt: skip
    said = refused(cli.run, [part for pair in given.items() for part in pair], capfd)
    assert any(name in said for name in ("bucket", "host.example", "windows.net")), said
    assert SECRET not in caplog.text


@pytest.mark.parametrize("program", [cli.run, train_cli.run, inspect_cli.run])
def test_flags_that_are_no_flags_are_refused_without_the_secret_of_their_value(
    program: Callable[[list[str]], int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = PLACES["a page"]
    (tmp_path / "flags.yaml").write_text(f"data_path: [{url}]\nseed: {url}\nfoo: {url}\n")
    for flags in (["--foo", url], [url], ["--seed", url], ["--contrast", url], ["--config", url],
                  ["--config", str(tmp_path / "flags.yaml")], ["summary", "--top", url]):  # fmt: skip
        refused(program, flags, capfd)


@pytest.mark.parametrize("place", PLACES)
def test_readers_refuse_a_url_without_its_secret(
    place: str, tmp_path: Path, llava: Family, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    refused(inspect_cli.run, ["summary", PLACES[place]], capfd)
    model, output = ["--model_name_or_path", str(llava.directory)], ["--output_dir", str(tmp_path / "out")]
    for flags in (["--data_path", PLACES[place], *model], ["--source_path", PLACES[place], *model],
                  ["--data_path", str(tmp_path), "--model_name_or_path", PLACES[place]]):  # fmt: skip
        refused(train_cli.run, [*flags, *output], capfd)


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"HF_MODULES_CACHE": str(folder / "modules")} | environment, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("output", "environment"),
    [
        ("s3://bucket/out", {"AWS_ENDPOINT_URL": f"http://me:{SECRET}@127.0.0.1:9", "AWS_MAX_ATTEMPTS": "2"}),
        ("gs://bucket/out", {"STORAGE_EMULATOR_HOST": f"http://me:{SECRET}@127.0.0.1:9"}),
    ],
)
def test_an_endpoint_that_gives_no_answer_is_named_without_its_password(
    output: str, environment: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if output.startswith("gs"):
        pytest.importorskip("google.cloud.storage")
    data, images = write_llava_json(tmp_path, 2)
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    for name, value in (keys | environment).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gs, "GIVE_UP_AFTER_S", 1.0)
    flags = ["--data_path", str(data), "--image_folder", str(images), "--output_dir", output]
    assert "127.0.0.1" in refused(cli.run, [*flags, "--model_name_or_path", "none"], capfd)


def test_a_hub_that_gives_no_answer_is_named_without_its_password(tmp_path: Path) -> None:
    write_llava_json(tmp_path, 2)
    done = run(
        tmp_path, "cal-precompute", "--data_path", "data.json", "--image_folder", "images", "--output_dir", "out",
        "--model_name_or_path", "org/model", HF_ENDPOINT=f"http://me:{SECRET}@127.0.0.1:9", HF_HUB_OFFLINE="0",
    )  # fmt: skip
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert "org/model" in done.stderr


def test_a_crash_and_what_is_logged_of_one_show_no_password(tmp_path: Path) -> None:
    code = f"""
import logging
from cal_schemas.redaction import keep_secrets
keep_secrets()
try:
    raise RuntimeError("https://me:{SECRET}@host/a")
except RuntimeError:
    logging.exception("at %s", "https://me:{SECRET}@host/b")
raise RuntimeError("https://me:{SECRET}@host/c")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for place in "abc":
        assert f"https://host/{place}" in done.stderr
    shown = [line for line in done.stderr.splitlines() if "raise RuntimeError" not in line]
    assert SECRET not in "".join(shown)


@pytest.mark.full
def test_the_log_of_a_worker_shows_no_password_of_what_broke(tmp_path: Path) -> None:
    code = f"""
from types import SimpleNamespace
from cal_pipeline.runtime.worker_process import WorkerProcess
def broken(shard):
    raise RuntimeError("https://me:{SECRET}@host/a")
process = WorkerProcess("logs/worker.log")
process._worker = SimpleNamespace(run=broken)
process.run(SimpleNamespace(name="s01"))
"""
    assert run(tmp_path, "python", "-c", code).returncode == 1
    said = (tmp_path / "logs" / "worker.log").read_text()
    assert "RuntimeError: https://host/a" in said
    assert SECRET not in said


def test_what_goes_along_to_workers_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://me:{SECRET}@host:9000")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"https://host/box?sv=1&sig={SECRET}")
    there = dict(store_environment())
    assert (there["AWS_ENDPOINT_URL"], there["AZURE_STORAGE_ENDPOINT"]) == ("http://host:9000", "https://host/box")


def written(folder: Path) -> Iterator[tuple[str, str]]:
    """All that lies in the folder, as text: Parquet by its columns and metadata."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield str(path), path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            yield f"columns of {path}", str(table.to_pylist()) + str(table.schema.metadata)


def s3_at(endpoint: str) -> Any:
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.full)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An output and the environment that it needs, with a password in the endpoint; what lies there ends in `out`."""
    if request.param == "disk":
        endpoint = f"http://me:{SECRET}@127.0.0.1:9"
        yield "out", {"AWS_ENDPOINT_URL": endpoint, "STORAGE_EMULATOR_HOST": endpoint}
        return
    with s3_server() as server:
        endpoint = server.replace("//", f"//me:{SECRET}@")
        (tmp_path / "tmp").mkdir()
        s3_at(server).create_bucket(Bucket="bucket")
        yield "s3://bucket/out", {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "TMPDIR": str(tmp_path / "tmp")}


@pytest.mark.full
@pytest.mark.slow
def test_presigned_images_and_endpoints_of_a_whole_run_leave_no_secret_in_anything_that_is_written(
    tmp_path: Path, llava: Family, place: tuple[str, dict[str, str]]
) -> None:
    output, environment = place
    presigned = f"https://me:{SECRET}@h.example/1.jpg?X-Amz-Signature={SECRET}&X-Amz-Expires=9"
    data, images = write_llava_json(tmp_path, 8)
    rows = json.loads(data.read_text())
    rows[0]["image"] = presigned
    rows[1] |= {"image": presigned, "id": f"https://h.example/2?token={SECRET}"}
    data.write_text(json.dumps(rows))
    embedded = write_parquet(tmp_path / "b.parquet", count=3)
    table = pq.read_table(embedded).to_pylist()
    for row in table:
        row["images"][0]["path"] = presigned
    pq.write_table(pa.Table.from_pylist(table), embedded)
    done = run(
        tmp_path, "cal-precompute", "--data_path", "data.json", "b.parquet", "--image_folder", "images",
        "--output_dir", output, "--model_name_or_path", str(llava.directory), "--dtype", "float32",
        "--gpus_per_worker", "0", "--carry", "images", "--max_error_fraction", "1", "--trust_remote_code", "true",
        RAY_AUTH_TOKEN=SECRET * 8, **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "'https://h.example/1.jpg' is a URL; nothing is fetched" in done.stdout
    looked = {
        name: run(tmp_path, "cal-inspect", name, output, *flags, **environment)
        for name, flags in {"summary": [], "filter": ["status != 'ok'", "--output", "filtered"]}.items()
    }
    for name, result in looked.items():
        assert result.returncode == 0, (name, result.stderr)
    if output != "out":
        store = s3_at(environment["AWS_ENDPOINT_URL"])
        for item in store.list_objects_v2(Bucket="bucket")["Contents"]:
            (tmp_path / item["Key"]).parent.mkdir(parents=True, exist_ok=True)
            store.download_file("bucket", item["Key"], str(tmp_path / item["Key"]))
    there = dict(written(tmp_path / "out")) | dict(written(tmp_path / "tmp"))
    assert {Path(name).suffix for name in there} >= {".parquet", ".json", ".log"}
    for name, text in (
        ("printed", done.stdout + done.stderr), *((name, item.stdout + item.stderr) for name, item in looked.items()),
        *there.items(), *written(tmp_path / "filtered"),
    ):  # fmt: skip
        assert SECRET not in text, name
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 2
    assert images.is_dir()
