"""`cal-train` on several sources: drawn by shares, weighed or not, and logged one by one."""

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
from cal_trainer import cli
from conftest import Family
from tiny_data import llava_rows
from trained import command, losses

STILL = ("--learning_rate", 0, "--window", 1)
"""The model stays what it is, and a token's weight is its own clamped delta."""
NUM_ROWS = {"captions": 5, "words": 3}


@pytest.fixture(scope="module")
def folder(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rows with images under `captions`, three without under `words`; and both as one measurement, `both`."""
    top = tmp_path_factory.mktemp("mix")
    rows = llava_rows(top / "images", 12)
    words = [{"id": f"w{at}", "conversations": [{"from": "human", "value": "Hello?"},
             {"from": "gpt", "value": "Hi. " * (at + 1)}]} for at in range(3)]  # fmt: skip
    for name, part in (("captions", [row for row in rows if "image" in row][:5]), ("words", words)):
        (top / f"{name}.json").write_text(json.dumps(part))
        shards = plan_shards([str(top / f"{name}.json")], [str(top / "images")])
        annotate(top / name, shards, llava.encoder, llava.model)
    inputs = [str(top / f"{name}.json") for name in NUM_ROWS]
    shards = plan_shards(inputs, [str(top / "images")])
    annotate(top / "both", shards, llava.encoder, llava.model, source_column=True)
    return top


def run(llava: Family, folder: Path, output: Path, *flags: object) -> list[dict[str, Any]]:
    """What was logged, by line."""
    given = flags if "--data_path" in flags else ("--data_path", folder / "captions", folder / "words", *flags)
    assert cli.run(command(llava, folder / "captions", output, *given)) == 0
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def stored_weights(folder: Path, name: str) -> np.ndarray:
    """Of all supervised tokens of a source: clamped deltas, 1 where undefined."""
    tables = [pq.read_table(file, columns=["delta_logits"]) for file in sorted((folder / name).rglob("*.parquet"))]
    deltas = [np.nan if value is None else value for table in tables for row in table["delta_logits"].to_pylist()
              for value in row]  # fmt: skip
    return np.nan_to_num(np.clip(np.array(deltas), 0.2, 0.5), nan=0.2)


BOUNDS = (*STILL, "--alpha", 0.2, "--beta", 0.5)


def test_each_source_is_logged_with_its_own_numbers(llava: Family, folder: Path, tmp_path: Path) -> None:
    whole = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4, "--max_steps", 1)
    (logged,) = run(llava, folder, tmp_path / "together", *BOUNDS, *whole)
    weights = {name: stored_weights(folder, name) for name in NUM_ROWS}
    total = sum(map(len, weights.values()))
    for name, of_source in weights.items():
        alone = run(llava, folder, tmp_path / name, *BOUNDS, *whole, "--data_path", folder / name)[0]
        assert not [key for key in alone if key.startswith("source/")]
        expected = {
            "row_share": NUM_ROWS[name] / 8,
            "token_share": len(of_source) / total,
            "mean_weight": of_source.mean(),
            "share_at_alpha": (of_source <= 0.2).mean(),
            "share_at_beta": (of_source >= 0.5).mean(),
            "unweighted_loss": alone["unweighted_loss"],
            "weighted_loss": alone["weighted_loss"],
        }
        found = {key.rpartition("/")[2]: value for key, value in logged.items() if key.startswith(f"source/{name}/")}
        assert found == pytest.approx(expected, rel=1e-5)
    assert 0 < (weights["captions"] <= 0.2).mean() < 1
    assert len(set(weights["words"])) == 1
    assert logged["mean_weight"] == pytest.approx(np.concatenate(list(weights.values())).mean(), rel=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--data_path", "both"], id="the measurement's own sources"),
        pytest.param(["--data_path", "both", "--streaming"], id="streaming"),
        pytest.param(["--data_path", "both", "--dataloader_num_workers", 2], id="workers", marks=pytest.mark.full),
        pytest.param(["--data_path", "both", "--source_path", "captions.json", "words.json"], id="sidecar"),
        pytest.param(["--source_path", "captions.json", "words.json", "--delta_source", "uniform"], id="raw data"),
    ],
)
def test_rows_know_their_source_however_they_are_read(
    llava: Family, folder: Path, tmp_path: Path, flags: list[object]
) -> None:
    placed = [folder / part if (folder / str(part)).exists() else part for part in flags]
    if "--source_path" in flags:
        placed += ["--image_folder", folder / "images"]
    argv = command(llava, folder / "captions", tmp_path / "out", *placed, "--learning_rate", 0, "--max_steps", 4)
    if "--data_path" not in flags:
        at = argv.index("--data_path")
        del argv[at : at + 2]
    assert cli.run([*argv, "--logging_steps", "4"]) == 0
    logged = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"][0]
    assert logged["source/captions.json/row_share"] == 5 / 8
    assert logged["source/words.json/row_share"] == 3 / 8


def test_a_source_that_did_not_come_has_shares_and_no_means(llava: Family, folder: Path, tmp_path: Path) -> None:
    logged = run(llava, folder, tmp_path / "out", *STILL, "--group_by", "modality_length", "--max_steps", 5)
    of_words = [{key for key in line if key.startswith("source/words/")} for line in logged]
    without = {"source/words/row_share", "source/words/token_share"}
    assert sorted(map(len, of_words)) == [2, 2, 2, 7, 7]
    assert [keys for keys in of_words if len(keys) == 2] == [without] * 3


ORDERS: list[list[object]] = [["--group_by", name] for name in ("none", "length", "modality_length")]


@pytest.mark.parametrize("order", [*ORDERS, ["--streaming"]], ids=lambda order: str(order[-1]))
def test_every_epoch_has_the_shares_that_were_asked_for(
    llava: Family, folder: Path, tmp_path: Path, order: list[object], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    flags = ("--mix", "captions=1", "words=3", *order, "--num_train_epochs", 3, "--logging_steps", 4)
    logged = run(llava, folder, tmp_path / "out", *STILL, *flags)
    # Eight rows an epoch in four steps: two with images, and six of the three without, each of them twice.
    assert [line["step"] for line in logged] == [4, 8, 12]
    assert [line["source/words/row_share"] for line in logged] == [0.75] * 3
    assert "2 of captions, which has 5, 6 of words, which has 3" in caplog.text
    assert "mixed captions=0.25 words=0.75" in caplog.text
    assert "| of an epoch's rows, by source | captions=0.25 words=0.75 |" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(
            ["--group_by", "modality_length", "--dataloader_num_workers", 2], id="workers", marks=pytest.mark.full
        ),
        pytest.param(["--streaming", "--dataloader_num_workers", 2, "--shuffle_rows", 3], id="streaming"),
        pytest.param([], id="plain"),
    ],
)
def test_a_resumed_mix_goes_on_where_it_stopped(
    llava: Family, folder: Path, tmp_path: Path, flags: list[object]
) -> None:
    # Four steps an epoch: it stops inside the third, in the second pass over the captions.
    flags = [*flags, "--max_steps", 14, "--save_steps", 10]
    run(llava, folder, tmp_path / "whole", *flags, "--mix", "words=0.3", "captions=0.7")
    go_on = ("--resume_from_checkpoint", tmp_path / "whole" / "checkpoint-10")
    run(llava, folder, tmp_path / "cut", *flags, *go_on, "--mix", "captions=7", "words=3")
    assert len(losses(tmp_path / "whole")) == 14
    assert len(set(losses(tmp_path / "whole"))) == 14
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-6)


def test_another_mix_or_other_weights_are_another_run(
    llava: Family, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mix, uniform = ["--mix", "captions=0.7", "words=0.3"], ["--uniform_sources", "words"]
    paths = ("--data_path", folder / "captions", folder / "words", "--max_steps", 2, "--save_steps", 2)

    def again(*flags: object) -> str:
        given = (*paths, "--resume_from_checkpoint", "last", *flags)
        assert cli.run(command(llava, folder / "captions", tmp_path / "out", *given)) == 2
        return capfd.readouterr().err

    assert cli.run(command(llava, folder / "captions", tmp_path / "out", *paths, *mix, *uniform)) == 0
    other = again("--mix", "captions=0.6", "words=0.4", *uniform)
    assert "--mix was captions=0.7 words=0.3, is captions=0.6 words=0.4" in other
    assert "--uniform_sources was words=1, is words=1.5" in again(*mix, "--uniform_sources", "words=1.5")
    assert "--mix was captions=0.7 words=0.3, is not given" in again(*uniform)


REFUSED: dict[str, tuple[list[object], str]] = {
    "unknown": (
        ["--mix", "captions=1", "word=1"],
        "--mix word: no such source; the sources of this data are captions, words",
    ),
    "left out": (["--mix", "captions=1"], "--mix says no share of words; the sources of this data are captions, words"),
    "no share": (["--mix", "captions", "words"], "--mix captions: expected NAME=SHARE"),
    "weights of nobody": (["--uniform_sources", "word"], "--uniform_sources word: no such source"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_mixed_is_refused_in_one_line(
    what: str, llava: Family, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags, message = REFUSED[what]
    paths = ("--data_path", folder / "captions", folder / "words")
    assert cli.run(command(llava, folder / "captions", tmp_path / "out", *paths, *flags)) == 2
    assert message in capfd.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("delta_source", ["cached", "online"])
def test_a_source_without_deltas_weighs_what_is_said_and_shares_the_denominator(
    llava: Family, folder: Path, tmp_path: Path, delta_source: str
) -> None:
    flags = ("--uniform_sources", "captions", "words=1.5", "--per_device_train_batch_size", 8, "--max_steps", 1)
    flags = (*flags, "--delta_source", delta_source, "--normalization", "step")
    (logged,) = run(llava, folder, tmp_path / "out", *STILL, *flags)
    assert logged["source/captions/mean_weight"] == 1
    assert logged["source/words/mean_weight"] == 1.5
    share = {name: logged[f"source/{name}/token_share"] for name in NUM_ROWS}
    nll = {name: logged[f"source/{name}/unweighted_loss"] for name in NUM_ROWS}
    summed = share["captions"] * nll["captions"] + 1.5 * share["words"] * nll["words"]
    assert logged["loss"] == pytest.approx(summed / (share["captions"] + 1.5 * share["words"]), rel=1e-4)


def test_deltas_of_the_other_sources_still_weigh(llava: Family, folder: Path, tmp_path: Path) -> None:
    flags = ("--uniform_sources", "words=0.4", "--per_device_train_batch_size", 8, "--max_steps", 1)
    (logged,) = run(llava, folder, tmp_path / "out", *BOUNDS, *flags)
    assert logged["source/captions/mean_weight"] == pytest.approx(stored_weights(folder, "captions").mean(), rel=1e-5)
    assert logged["source/words/mean_weight"] == pytest.approx(0.4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| sources without deltas | words=0.4 |" in card


def test_with_uniform_weights_everywhere_it_has_no_effect_and_says_so(
    llava: Family, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ("--delta_source", "uniform", "--uniform_sources", "words=2", "--max_steps", 4, "--logging_steps", 4)
    (logged,) = run(llava, folder, tmp_path / "out", "--learning_rate", 0, *flags)
    assert logged["source/words/mean_weight"] == 1
    assert "every token weighs 1: no effect of --uniform_sources" in caplog.text
