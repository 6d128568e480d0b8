"""Bounds from the data: quantiles of the deltas, logged, written down, and the same in a resumed run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_schemas.opened import open_annotated
from cal_trainer import cli
from cal_trainer.config import Quantile, parse_bound
from cal_trainer.run import bounds
from cal_trainer.run.bounds import quantiles_of
from conftest import Family
from tiny_data import write_llava_json


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory, llava: Family) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    data, images = write_llava_json(folder, 40)
    return annotate(
        folder / "out", plan_shards([str(data)], [str(images)], rows_per_shard=9), llava.encoder, llava.model
    )


@pytest.fixture(scope="module")
def shown(annotated: Path) -> np.ndarray:
    """All defined deltas of rows with images, by the long way."""
    rows = [row for path in sorted(annotated.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return np.array([d for row in rows if row["images"] for d in row["delta_logits"] if d is not None], np.float64)


def test_quantiles_are_those_of_rows_with_images(
    annotated: Path, shown: np.ndarray, tmp_path: Path, llava: Family
) -> None:
    found = quantiles_of(open_annotated(annotated))
    assert found.defined == len(shown) > 200
    for share in (0.01, 0.5, 0.9, 0.999):
        assert found.quantile(share) == pytest.approx(np.quantile(shown, share), abs=1e-12)
    folder = annotated.parent
    shards = plan_shards([str(folder / "data.json")], [str(folder / "images")])
    sidecar = annotate(tmp_path / "sidecar", shards, llava.encoder, llava.model, carry="none")
    assert quantiles_of(open_annotated(sidecar)).defined == len(shown)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1.0),
        ("inf", float("inf")),
        (2.5, 2.5),
        ("q0.5", Quantile(0.5)),
        ("q.9", Quantile(0.9)),
        ("q1e-3", Quantile(0.001)),
    ],
)
def test_a_bound_is_a_number_or_a_quantile(text: object, value: object) -> None:
    assert parse_bound("alpha", text) == value


@pytest.mark.parametrize("text", ["q0", "q1", "q-0.1", "q1.5", "qnan", "qinf"])
def test_a_share_outside_0_and_1_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--beta {text}: a quantile's share is above 0 and below 1"):
        parse_bound("beta", text)


@pytest.mark.parametrize("text", ["q", "half", "0.5q", "qq0.5", ""])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a number, inf, or a quantile"):
        parse_bound("beta", text)


def command(llava: Family, annotated: Path, output: Path, *flags: object) -> list[str]:
    return [str(part) for part in (
        "--model_name_or_path", llava.directory, "--data_path", annotated, "--output_dir", output, "--use_cpu", "true",
        "--cache_dir", annotated.parent / "cache", "--per_device_train_batch_size", 4, "--logging_steps", 1,
        "--disable_tqdm", "true", *flags,
    )]  # fmt: skip


def history(output: Path) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry]


def test_a_run_uses_them_says_so_and_a_resumed_one_takes_those_of_its_checkpoint(
    llava: Family, annotated: Path, shown: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    alpha, beta = np.quantile(shown, 0.7), np.quantile(shown, 0.9)
    assert 0 < alpha < beta
    flags = ("--alpha", "q0.7", "--beta", "q0.9", "--window", 1, "--save_steps", 2, "--max_steps", 4)
    assert cli.run(command(llava, annotated, tmp_path / "q", *flags)) == 0
    assert f"--alpha q0.7 is {alpha:.6g}, --beta q0.9 is {beta:.6g} (of {len(shown)} deltas of rows with" in caplog.text
    card = (tmp_path / "q" / "README.md").read_text()
    assert f"| alpha | {alpha:.6g} (q0.7 of the data's deltas) |" in card
    assert f"| beta | {beta:.6g} (q0.9 of the data's deltas) |" in card
    numbers = ("--alpha", repr(float(alpha)), "--beta", repr(float(beta)), *flags[4:])
    assert cli.run(command(llava, annotated, tmp_path / "n", *numbers)) == 0
    assert [e["loss"] for e in history(tmp_path / "q")] == pytest.approx([e["loss"] for e in history(tmp_path / "n")])

    monkeypatch.setattr(bounds, "quantiles_of", lambda *_: pytest.fail("measured again"))
    last = tmp_path / "q" / "checkpoint-2"
    resumed = ("--resume_from_checkpoint", last)
    assert cli.run(command(llava, annotated, tmp_path / "r", *flags, *resumed)) == 0
    assert f"(recorded in {last})" in caplog.text
    losses = [entry["loss"] for entry in history(tmp_path / "r")]
    assert losses[-2:] == pytest.approx([e["loss"] for e in history(tmp_path / "q")][-2:], abs=1e-6)


def test_a_resumed_run_with_other_quantiles_is_refused(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ("--alpha", "q0.7", "--beta", "q0.9", "--save_steps", 1, "--max_steps", 1)
    assert cli.run(command(llava, annotated, tmp_path / "q", *flags)) == 0
    resumed = ("--resume_from_checkpoint", "last", "--max_steps", 2)
    assert cli.run(command(llava, annotated, tmp_path / "q", "--alpha", "q0.8", "--beta", "q0.9", *resumed)) == 2
    assert "quantile of alpha was q0.7, is q0.8" in capfd.readouterr().err


REFUSED = {
    "online": (["--alpha", "q0.5", "--delta_source", "online"], "online deltas are not known before the training"),
    "uniform": (["--beta", "q0.9", "--delta_source", "uniform"], "every token weighs 1"),
    "turned round": (["--alpha", "q0.9", "--beta", "q0.7"], "alpha and beta must satisfy 0 <= alpha <= beta"),
    "over a number": (["--alpha", "q0.99", "--beta", "0.01"], "alpha and beta must satisfy 0 <= alpha <= beta"),
    "negative": (["--alpha", "q0.001"], "weights may not be negative: take a higher quantile, or a number"),
    "no share": (["--alpha", "q2"], "a quantile's share is above 0 and below 1"),
    "no number": (["--beta", "high"], "expected a number, inf, or a quantile"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bounds_that_cannot_be_are_one_message_and_exit_2(
    what: str, llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags, message = REFUSED[what]
    assert cli.run([*command(llava, annotated, tmp_path / "out"), *flags]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_data_without_a_image_s_delta_is_refused(tmp_path: Path, llava: Family) -> None:
    rows = [{"id": 1, "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    folder = annotate(tmp_path / "out", plan_shards([str(tmp_path / "data.json")], []), llava.encoder, llava.model)
    with pytest.raises(ConfigError, match="has no defined delta of a row with an image"):
        bounds.resolve_bounds({"alpha": Quantile(0.5), "beta": 5.0}, [folder], None)
