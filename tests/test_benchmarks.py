"""Every benchmark runs, small, and writes its ratios; the committed page shows the committed results."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from reporting import RESULTS
from tables import PAGE, TABLES, written
from targets import Target

TINY = ["--shape", "tiny", "--repeats", "1"]
COMMANDS = {
    "contrast": [*TINY, "--image_tokens", "32"],
    "train_step": [*TINY, "--gradient_checkpointing"],
    "peers": [*TINY, "--batch", "2", "--rows", "4", "--variants", "trl", "cached"],
    "storage": ["--samples", "30", "--steps", "2", "--repeats", "1"],
    "checksums": ["--rows", "20", "--repeats", "1"],
    "data": ["--rows", "8", "--repeats", "1"],
    "scale": [*TINY, "--rows", "2", "4", "--image_tokens", "16", "64", "--vocabulary", "2000", "4000"],
    "breakeven": TINY,
    "estimate": [],
    "plan_memory": ["--rows", "10", "20"],
    "train_data_memory": ["--rows", "300", "--modes", "mapped"],
    "long_answers": [
        "--vocabulary",
        "3000",
        "--supervised",
        "2",
        "8",
        "--at_once",
        "--rows",
        "2",
        "--head_width",
        "16",
        "--logits_mb",
        "1",
        "--repeats",
        "1",
    ],
    "inspect_frames": ["--frame_rows", "20", "--summary_rows", "20"],
    "inspect_subcommands": ["--rows", "120", "--export_rows", "4", "--only", "summary", "agreement", "export, weights"],
}
WITH_RAY = {
    "precompute": [*TINY, "--rows", "4", "--repeats", "2"],
    "many_shards": ["--shards", "4"],
}


def run(name: str, flags: list[str], output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags, "--output_dir", str(output)])
    threads = torch.get_num_threads()
    try:
        importlib.import_module(name).main()
    finally:
        torch.set_num_threads(threads)
    (path,) = output.glob("*.json")
    report = json.loads(path.read_text())
    assert report["benchmark"] == name
    assert {"machine", "versions", "settings", "results", "ratios"} <= set(report)
    assert report["ratios"]
    for key, value in report["ratios"].items():
        assert key.count("/") == 1, key
        assert isinstance(value, float), key


@pytest.mark.full
@pytest.mark.parametrize("name", COMMANDS)
# A Ctrl-C handler, a deprecation or a profiler's remark of a library is not what is tested here.
@pytest.mark.filterwarnings("default")
def test_every_benchmark_runs_and_writes_its_ratios(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name, COMMANDS[name], tmp_path / "results", monkeypatch)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_RAY)
@pytest.mark.filterwarnings("default")
def test_benchmarks_with_ray_run_and_write_their_ratios(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(name, WITH_RAY[name], tmp_path / "results", monkeypatch)


def test_the_page_shows_the_committed_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- table: {name} -->" in page for name in TABLES)
    assert written(page) == page, "run python benchmarks/tables.py"


def test_every_committed_result_says_what_it_was_measured_on() -> None:
    for path in RESULTS.glob("*.json"):
        report = json.loads(path.read_text())
        assert path.stem.split("-")[0] == report["benchmark"], path
        assert {"machine", "versions", "settings", "ratios"} <= set(report), path


def test_a_target_is_met_on_its_side_of_the_bound() -> None:
    assert Target(ratio="a/b", at_most=0.5).met(0.5)
    assert not Target(ratio="a/b", at_most=0.5).met(0.51)
    assert Target(ratio="a/b", at_least=1.8).met(1.8)
    assert not Target(ratio="a/b", at_least=1.8).met(1.79)
