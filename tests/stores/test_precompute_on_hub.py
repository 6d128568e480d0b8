"""`cal-precompute` of a data set of the Hub, where it lies: a server on loopback, real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cal_schemas.metadata import ShardSource, read_shard_metadata
from conftest import Family
from fault_job import Job, write_shards
from hub_server import READER, HubServer

pytestmark = [pytest.mark.slow, pytest.mark.full]
PROGRAMS = Path(sys.executable).parent
NAME = "org/pets"
SHARDS = 6


@pytest.fixture
def sha(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of a private data set of six shards for training and one for tests."""
    monkeypatch.setenv("HF_TOKEN", READER)
    folder = write_shards(tmp_path / "made", SHARDS)
    files = {
        f"data/train-{number:05d}-of-{SHARDS:05d}.parquet": path.read_bytes()
        for number, path in enumerate(sorted(folder.iterdir()))
    }
    card = "---\nlicense: cc-by-4.0\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("train", "test"))
    test = {
        "data/test-00000-of-00001.parquet": (folder / "s00.parquet").read_bytes(),
        "README.md": f"{card}---\n# Pets",
    }
    made = hub.commit(NAME, {**files, **test})
    hub.repo(NAME, private=True)
    return made


@pytest.fixture
def job(llava: Family, tmp_path: Path) -> Job:
    return Job(model=llava.directory, data=Path(f"{NAME}:train"), output=tmp_path / "out")


def sources(job: Job) -> list[ShardSource]:
    return [read_shard_metadata(path).source for path in sorted(job.output.rglob("*.parquet"))]


def everything(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in folder.rglob("*"):
        if path.is_file():
            table = str(pq.read_table(path).drop_columns("images").to_pylist()) if path.suffix == ".parquet" else ""
            yield path, path.read_bytes().decode(errors="replace") + table


def test_a_private_data_set_is_measured_at_one_commit_while_others_push_and_requests_fail(
    hub: HubServer, sha: str, job: Job, tmp_path: Path, llava: Family
) -> None:
    process = job.start()
    job.wait_for(process, job.done, "no first shard")
    hub.commit(NAME, {f"data/train-{number:05d}-of-{SHARDS:05d}.parquet": b"broken" for number in range(SHARDS)})
    hub.where = "/resolve/"
    hub.faults.extend(["500", "cut", "drop", "429", "503"])
    assert job.finish(process) == 0, job.said()
    assert len(job.done()) == SHARDS
    assert f"{NAME}:train: data set of the Hub at commit {sha}, configuration default: train (6 files)" in job.said()
    assert {source.revision for source in sources(job)} == {sha}
    assert sources(job)[2].uri == f"hf://datasets/{NAME}@{sha}/data/train-00002-of-00006.parquet"
    # What is measured is what a copy of the folder gives.
    local = replace(job, data=tmp_path / "made", output=tmp_path / "of-local")
    assert local.run() == 0, local.said()
    columns = ["messages", "images", "label_ids", "delta_logits", "sample_key", "score"]
    assert job.table().select(columns).equals(local.table().select(columns))
    # The token is in nothing that was printed, logged or stored, and in no address of the store's other host.
    assert READER in hub.tokens_seen
    for path, text in everything(tmp_path):
        if path.parts[len(tmp_path.parts)] in ("out", "out.log"):
            assert READER not in text, path
            assert "signedsecret" not in text, path


def test_a_file_that_the_hub_does_not_give_fails_by_its_name_and_the_rest_is_done(
    hub: HubServer, sha: str, job: Job
) -> None:
    gone = "train-00003-of-00006.parquet"
    process = job.start("--max_tries", "1")
    job.wait_for(process, job.done, "no first shard")
    data = hub.repos["datasets", NAME].commits[sha].pop(f"data/{gone}")
    assert job.finish(process) == 1, job.said()
    assert f"FAILED data/{gone.removesuffix('.parquet')}: hf://datasets/{NAME}@{sha}/data/{gone}: " in job.said()
    assert len(job.done()) == SHARDS - 1
    hub.repos["datasets", NAME].commits[sha][f"data/{gone}"] = data
    assert job.run() == 0, job.said()
    assert len(job.done()) == SHARDS


def test_training_joins_and_an_audit_reads_the_rows_where_they_are(
    hub: HubServer, sha: str, job: Job, llava: Family, tmp_path: Path
) -> None:
    assert job.run("--carry", "none", "--limit", "8") == 0, job.said()
    train = [
        "cal-train", "--model_name_or_path", str(llava.directory), "--data_path", str(job.output), "--max_steps", "2",
        "--per_device_train_batch_size", "2", "--learning_rate", "1e-3", "--use_cpu", "--partial",
        "--on_missing", "uniform", "--source_path", f"{NAME}@{sha}:train", "--output_dir", str(tmp_path / "model"),
    ]  # fmt: skip
    hub.commit(NAME, {"data/train-00000-of-00006.parquet": None})
    for command in (train, ["cal-inspect", "audit", str(job.output), "--fraction", "0.5", "--swap", "4"]):
        done = subprocess.run(
            [str(PROGRAMS / command[0]), *command[1:]], capture_output=True, text=True, check=False,
            env=os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert READER not in done.stdout + done.stderr


def test_a_resume_goes_on_with_the_commit_that_was_measured_and_no_other(hub: HubServer, sha: str, job: Job) -> None:
    assert job.run("--limit", "8") == 0, job.said()
    new = hub.commit(NAME, {"README.md": "# Pets, with other words"})
    assert job.run("--limit", "8") == 2
    assert f"revision was {sha}, is {new}" in job.said()
    assert f"or go on with the commit that it was measured at: @{sha} after the data set's name" in job.said()
    pinned = replace(job, data=Path(f"{NAME}@{sha}:train"))
    assert pinned.run("--limit", "8") == 0, job.said()
    assert "nothing to do" in job.said()
