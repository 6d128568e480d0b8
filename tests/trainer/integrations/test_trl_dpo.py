"""Measured log-probabilities serve TRL's DPOTrainer as its reference's, for rows with images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from trl import DPOConfig, DPOTrainer

from annotated_data import annotate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import AlignmentError, ConfigError
from cal_trainer.integrations.trl_dpo import MeasuredDPOTrainer, MeasuredPairs, PairCollator
from conftest import Family
from tiny_data import write_llava_json
from trl_step import Recorder, options

# TRL uses names of checkpointing that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
ANSWERS = ("No.", "A small dog sits next to a large white cat.", "Three green circles.")


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL asks for it whenever a trainer is made


@pytest.fixture(scope="module")
def sides(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight pairs, measured: row 3 has no image, rows 0 and 7 have two turns."""
    folder = tmp_path_factory.mktemp("dpo")
    data, images = write_llava_json(folder, 8)
    rows = json.loads(data.read_text())
    for number, row in enumerate(rows):
        row["conversations"][-1]["value"] = ANSWERS[number % len(ANSWERS)]
    rejected = folder / "rejected.json"
    rejected.write_text(json.dumps(rows))
    annotated = [
        annotate(
            folder / f"annotated-{side.stem}", plan_shards([str(side)], [str(images)]), llava.encoder, llava.model,
            extra_columns=("logprobs",),
        )
        for side in (data, rejected)
    ]  # fmt: skip
    return annotated[0], annotated[1]


@pytest.fixture
def pairs(llava: Family, sides: tuple[Path, Path], tmp_path: Path) -> MeasuredPairs:
    return MeasuredPairs(*sides, llava.encoder, cache_dir=tmp_path / "cache")


def config(folder: Path, **given: Any) -> DPOConfig:
    shared = options(folder, batch_size=2, accumulation=2)
    return DPOConfig(**{**shared, "max_length": None, "precompute_ref_log_probs": True, **given})


def seen(trainer: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry], recorder.gradients


def test_steps_are_those_of_a_reference_in_memory(llava: Family, pairs: MeasuredPairs, tmp_path: Path) -> None:
    trainer = MeasuredDPOTrainer(str(llava.directory), config(tmp_path / "measured"), train_dataset=pairs)
    assert trainer.ref_model is None
    logged, gradients = seen(trainer)
    # TRL's own on the same batches: it loads the reference, and takes no notice of what was measured.

    class Live(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

        def _set_signature_columns_if_needed(self) -> None:
            self._signature_columns = ["row"]

    live = Live(
        str(llava.directory),
        args=config(tmp_path / "live", precompute_ref_log_probs=False),
        data_collator=PairCollator(pairs=pairs),
        train_dataset=datasets.Dataset.from_dict({"row": range(len(pairs))}),
        processing_class=llava.encoder.processor,
    )
    assert live.ref_model is not None
    expected, expected_gradients = seen(live)
    # The reference is what training begins with.
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert logged[0]["rewards/chosen"] == pytest.approx(0.0, abs=1e-5)
    assert logged[1]["loss"] < 0.69
    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
    for entry, wanted in zip(logged, expected, strict=True):
        assert [entry[name] for name in names] == pytest.approx([wanted[name] for name in names], abs=1e-4)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=0)
    assert max(float(gradient.abs().max()) for gradient in expected_gradients.values()) > 0.01


def test_a_completion_is_the_last_answer_with_its_end_of_turn(llava: Family, pairs: MeasuredPairs) -> None:
    chosen, rejected = pairs[0]
    texts = [
        llava.encoder.processor.tokenizer.decode(side.encoded.sequence_inputs["input_ids"][side.mask.bool()])
        for side in (chosen, rejected)
    ]
    end = llava.encoder.processor.tokenizer.eos_token
    assert [text.strip() for text in texts] == [f"On the left.{end}", f"No.{end}"]


def test_evaluation_takes_pairs(llava: Family, pairs: MeasuredPairs, tmp_path: Path) -> None:
    trainer = MeasuredDPOTrainer(
        str(llava.directory), config(tmp_path, max_steps=1), train_dataset=pairs, eval_dataset=pairs
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    trainer.train()
    assert trainer.evaluate(pairs)["eval_loss"] < 0.69


def test_sides_that_do_not_belong_together_are_refused(llava: Family, sides: tuple[Path, Path], tmp_path: Path) -> None:
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for path in sides[1].glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.take(pa.array([3, 2, 1, 0, *range(4, 8)])), swapped / path.name)
    turned = MeasuredPairs(sides[0], swapped, llava.encoder, cache_dir=tmp_path / "cache")
    with pytest.raises(AlignmentError, match=r"row 0: the chosen and the rejected conversation differ .*tokens"):
        turned[0]
    with pytest.raises(AlignmentError, match=r"row 1: the chosen and the rejected conversation differ .*images"):
        turned[1]
    data, images = write_llava_json(tmp_path, 6)
    shorter = annotate(
        tmp_path / "shorter", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model,
        extra_columns=("logprobs",),
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"has 8 rows and .*shorter 6"):
        MeasuredPairs(sides[0], shorter, llava.encoder, cache_dir=tmp_path / "cache")


def test_without_log_probabilities_or_whole_answers_a_pair_is_no_pair(
    llava: Family, sides: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, holes = tmp_path / "plain", tmp_path / "holes"
    for folder in (plain, holes):
        folder.mkdir()
    for path in sides[1].glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["logprobs_with_image", "logprobs_without_image"]), plain / path.name)
        at = table.schema.get_field_index("logprobs_with_image")
        values = table.column(at).to_pylist()
        values[2][-1] = None
        column = pa.array(values, table.schema.field(at).type)
        pq.write_table(table.set_column(at, table.schema.field(at), column), holes / path.name)
    with pytest.raises(ConfigError, match=r"no column logprobs_with_image.*--extra_columns logprobs"):
        MeasuredPairs(sides[0], plain, llava.encoder, cache_dir=tmp_path / "cache")
    with pytest.raises(ConfigError, match="use_deltas=False compares no labels"):
        MeasuredPairs(*sides, llava.encoder, use_deltas=False)
    found = MeasuredPairs(sides[0], holes, llava.encoder, cache_dir=tmp_path / "cache")
    assert len(found) == 7
    assert "1 of 8 pairs are left out" in caplog.text


def test_a_pair_of_which_a_side_was_cut_is_left_out(
    llava: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, images = write_llava_json(tmp_path, 8)
    rows = json.loads(data.read_text())
    for row in rows[1:4]:
        row["conversations"][-1]["value"] = "A small dog sits next to a large white cat. " * 4
    (tmp_path / "rejected.json").write_text(json.dumps(rows))
    lengths = []
    for max_length in (2048, 80):
        encoder = Encoder(llava.encoder.processor, max_length=max_length, truncation="tail")
        annotated = [
            annotate(
                tmp_path / f"{side.stem}-{max_length}", plan_shards([str(side)], [str(images)]), encoder, llava.model,
                extra_columns=("logprobs",),
            )
            for side in (data, tmp_path / "rejected.json")
        ]  # fmt: skip
        found = [pq.read_table(path, columns=["status", "num_tokens"]).to_pylist() for path in annotated]
        assert all(row["status"] == "ok" for side in found for row in side)
        lengths.append([[row["num_tokens"] for row in side] for side in found])
    cut = [any(side[row] > 80 for side in lengths[0]) for row in range(8)]
    assert 0 < sum(cut) < 8
    assert max(max(side) for side in lengths[1]) == 80

    pairs = MeasuredPairs(annotated[0], annotated[1], encoder, cache_dir=tmp_path / "cache")
    assert f"{sum(cut)} of 8 pairs are left out" in caplog.text
    assert "--truncation tail" in caplog.text
    assert [chosen.encoded.num_tokens for chosen, _ in map(pairs.__getitem__, range(len(pairs)))] == [
        length for length, one in zip(lengths[0][0], cut, strict=True) if not one
    ]
    trainer = MeasuredDPOTrainer(str(llava.directory), config(tmp_path / "out", max_steps=2), train_dataset=pairs)
    logged, _ = seen(trainer)
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precompute_ref_log_probs": False}, "precompute_ref_log_probs=False.*must be True"),
        ({"ld_alpha": 0.5}, "ld_alpha=0.5"),
        ({"max_length": 1024}, "max_length=1024.*Encoder of max_length 2048"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8"),
        ({"ref_model": "other"}, "ref_model: this trainer has its own"),
        ({"train_dataset": [1]}, "data is list: MeasuredDPOTrainer takes MeasuredPairs"),
    ],
)
def test_settings_without_effect_are_refused(
    pairs: MeasuredPairs, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    own = {name: given.pop(name) for name in ("ref_model", "train_dataset") if name in given}
    with pytest.raises(ConfigError, match=message):
        MeasuredDPOTrainer("nowhere", config(tmp_path, **given), **{"train_dataset": pairs, **own})


def test_two_references_are_refused(llava: Family, sides: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = Encoder(load_processor(llava.directory), max_length=512)
    data, images = write_llava_json(tmp_path, 8)
    other = annotate(
        tmp_path / "other", plan_shards([str(data)], [str(images)]), encoder, llava.model, extra_columns=("logprobs",)
    )
    with pytest.raises(ConfigError, match=r"are of different measurements: .*2048 and 512"):
        MeasuredPairs(sides[0], other, llava.encoder, cache_dir=tmp_path / "cache")


def test_a_reference_that_saw_other_pixels_is_refused(llava: Family, sides: tuple[Path, Path], tmp_path: Path) -> None:
    processor = load_processor(llava.directory)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(ConfigError, match=r"measured with other inputs.*image_processor_digest.*its own inputs"):
        MeasuredPairs(*sides, Encoder(processor), cache_dir=tmp_path / "cache")
