"""`gs://` against a server process that speaks Google's protocol on loopback.

The server (gcp-storage-emulator) knows no preconditions, so "first writer wins" is not tried here, only that the driver
finds out and says so. Both packages are needed: `pip install gcsfs gcp-storage-emulator`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cal_pipeline.output.store import open_store
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.opened import open_annotated
from cal_schemas.storage import factory
from cal_schemas.storage.locations import location
from cal_schemas.storage.object_path import ObjectPath
from conftest import Family
from fault_job import PATIENCE_S
from tiny_data import write_parquet

# aiohttp about gcsfs's uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")

_SERVER = """
from gcp_storage_emulator.server import create_server
server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="shards")
server.start()
print(server._api._httpd.server_address[1], flush=True)
import sys; sys.stdin.read()
"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectPath]:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{int(process.stdout.readline())}")
        # Newer gcsfs asks Google itself for the kind of the bucket otherwise.
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        factory._backend.cache_clear()
        found = location("gs://shards")
        assert isinstance(found, ObjectPath)
        yield found
        factory._backend.cache_clear()
        process.kill()


def test_what_is_written_is_read_back_by_ranges_listed_and_deleted(bucket: ObjectPath, tmp_path: Path) -> None:
    content = os.urandom(9 * 2**20)
    (tmp_path / "x").write_bytes(content)
    assert (bucket / "a b/é.bin").upload(tmp_path / "x", if_absent=True)
    assert not (bucket / "a b/é.bin").upload(tmp_path / "x", if_absent=True)
    with (bucket / "a b/é.bin").open_random() as file:
        file.seek(5_000_000)
        assert file.read(10) == content[5_000_000:5_000_010]
    assert (bucket / "a b/é.bin").read_bytes() == content
    (bucket / "a/c.txt").write_text("déjà")
    assert [str(item) for item in bucket.files()] == [f"{bucket}/a b/é.bin", f"{bucket}/a/c.txt"]
    assert ((bucket / "a").is_dir(), (bucket / "c").is_dir(), (bucket / "a").is_file()) == (True, False, False)
    (bucket / "a/c.txt").unlink()
    with pytest.raises(FileNotFoundError):
        (bucket / "a/c.txt").stat()
    with pytest.raises(StoreError, match="gs://nowhere/x: no such bucket"):
        location("gs://nowhere/x").write_text("x")
    with pytest.raises(ConfigError, match=r"--output_dir gs://nowhere/out cannot be written: .*no such bucket"):
        open_store("gs://nowhere/out", "run").check_writable()


@pytest.mark.slow
@pytest.mark.full
def test_from_bucket_to_bucket_and_again(bucket: ObjectPath, tmp_path: Path, llava: Family) -> None:
    for name in ("a", "b"):
        local = write_parquet(tmp_path / f"{name}.parquet", count=4)
        (bucket / "in" / local.name).upload(local, if_absent=True)
    command = [
        str(Path(sys.executable).parent / "cal-precompute"), "--model_name_or_path", str(llava.directory), "--dtype",
        "float32", "--gpus_per_worker", "0", "--data_path", f"{bucket}/in", "--output_dir", f"{bucket}/out",
    ]  # fmt: skip

    def run(*flags: str) -> str:
        done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    assert "this store has no conditional writes" in run()
    opened = open_annotated(bucket / "out")
    samples = [sample.sample_id for shard in plan_shards([f"{bucket}/in"]) for sample in read_samples(shard)]
    assert [row for batch in opened.batches(["sample_id"]) for row in batch["sample_id"].to_pylist()] == samples
    etags = {str(path): path.stat().etag for path in opened.files}  # type: ignore[union-attr]
    assert "nothing to do: all 2 shards" in run()
    assert {str(path): path.stat().etag for path in opened.files} == etags  # type: ignore[union-attr]
    assert "2 shards with 8 rows: all is well" in run("--verify")
