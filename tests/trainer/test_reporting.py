"""`--report_to`: what a dashboard is given is what the log holds, under the same names; nobody is called."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_trainer import cli
from conftest import Family
from fault_job import PATIENCE_S
from tiny_data import write_llava_json
from trained import command

Values = dict[int, dict[str, float]]
"""Step -> name -> value."""
WATCHED = {
    "mean_weight", "share_at_alpha", "share_at_beta", "weighted_loss", "unweighted_loss", "drift_spearman",
    "drift_clamp_flips", "loss", "learning_rate",
}  # fmt: skip
FOLDER = Path(sys.prefix) / "reporters-for-tests"
ALONE = """
import socket, sys
def call(self, address, *others):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("CALLED", address, file=sys.stderr)
        raise OSError("nobody is to be called")
    return connect(self, address)
def look_up(host, *others, **named):
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        print("CALLED", host, file=sys.stderr)
        raise socket.gaierror("nobody is to be called")
    return resolve(host, *others, **named)
connect, resolve = socket.socket.connect, socket.getaddrinfo
socket.socket.connect, socket.getaddrinfo = call, look_up
from cal_trainer.cli import main
main()
"""
"""cal-train in a Python that reaches nobody, and says who was called."""

HISTORY = """
import json, sys
sys.path.append(sys.argv[1])
from wandb.proto.wandb_internal_pb2 import Record
for data in json.load(sys.stdin):
    record = Record.FromString(bytes.fromhex(data))
    if record.WhichOneof("record_type") == "history":
        items = record.history.item
        print(json.dumps({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}))
"""
"""Rows of what was logged, out of wandb's records."""


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    data, images = write_llava_json(folder, 24)
    return annotate(folder / "out", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)


FLAGS = ("--max_steps", 3, "--drift_every", 1, "--run_name", "watched", "--report_to")


def test_tensorboard_shows_what_is_logged(
    llava: Family, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    assert cli.run(command(llava, annotated, tmp_path / "out", *FLAGS, "tensorboard")) == 0
    assert_shown(from_tensorboard(tmp_path), from_log(tmp_path / "out"))


@pytest.mark.full
@pytest.mark.parametrize("reporter", ["trackio", "wandb"])
def test_others_show_what_is_logged_and_call_nobody(
    reporter: str, llava: Family, annotated: Path, tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_HUB_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, *command(llava, annotated, tmp_path / "out", *FLAGS, reporter)], cwd=tmp_path,
        env={
            **environment, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(FOLDER)]),
            "TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_DIR": str(tmp_path / "wandb"), "WANDB_MODE": "offline",
            "HOME": str(tmp_path),
        },
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CALLED" not in done.stderr
    shown = from_trackio(tmp_path) if reporter == "trackio" else from_wandb(tmp_path)
    assert_shown(shown, from_log(tmp_path / "out"))


def assert_shown(shown: Values, logged: Values) -> None:
    assert {name for values in shown.values() for name in values} >= {f"train/{name}" for name in WATCHED}
    for step, values in logged.items():
        for name in WATCHED & values.keys():
            assert shown[step][f"train/{name}"] == pytest.approx(values[name], rel=1e-6, nan_ok=True), (step, name)
    assert all("drift_spearman" in logged[step] for step in range(4))
    assert all("share_at_beta" in logged[step] for step in range(1, 4))


def from_log(output: Path) -> Values:
    values: Values = {}
    for entry in json.loads((output / "trainer_state.json").read_text())["log_history"]:
        values.setdefault(entry["step"], {}).update(entry)
    return values


def from_tensorboard(folder: Path) -> Values:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = folder.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    values: Values = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            values.setdefault(event.step, {})[name] = event.value
    return values


def from_trackio(folder: Path) -> Values:
    (file,) = (folder / "trackio").glob("*.db")
    values: Values = {}
    with sqlite3.connect(file) as database:
        runs = database.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    for run, metrics in runs:
        assert run == "watched"
        row = json.loads(metrics)
        values.setdefault(row["train/global_step"], {}).update(row)
    return values


def from_wandb(folder: Path) -> Values:
    """Of the records of an offline run, as wandb's own reader finds them."""
    (file,) = (folder / "wandb").rglob("run-*.wandb")
    found = subprocess.run(
        [sys.executable, "-c", HISTORY, str(FOLDER)], input=json.dumps([data.hex() for data in records(file)]),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    values: Values = {}
    for line in found.stdout.splitlines():
        row: dict[str, Any] = json.loads(line)
        values.setdefault(row["train/global_step"], {}).update(row)
    return values


def records(file: Path) -> Iterator[bytes]:
    """Of LevelDB's log format, behind a header of 7 bytes: blocks of 32 KiB, parts of records with 7 bytes in front."""
    data, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""
