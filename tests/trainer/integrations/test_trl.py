"""TRL's SFTTrainer on cached weights is CalTrainer's loss, and what TRL would do otherwise is refused."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

import trl_step
from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import AlignmentError, ConfigError
from cal_trainer.data.dataset import AnnotatedExamples
from cal_trainer.data.source import SourceExamples
from cal_trainer.data.streaming import StreamedExamples
from cal_trainer.integrations.trl import CalSFTTrainer
from cal_trainer.objective.weighting import Weighting
from conftest import Family
from tiny_data import write_llava_json

EXAMPLE = Path(__file__).parents[3] / "examples" / "trl_sft.py"
TIMEOUT_S = 300
# TRL and peft use names of checkpointing that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # TRL asks for it whenever a trainer is made


def annotated_of(family: Family, folder: Path) -> Path:
    """Eight rows, two optimizer steps: row 3 has no image, rows 0 and 7 have two turns."""
    data, images = write_llava_json(folder, 8)
    return annotate(folder / "annotated", plan_shards([str(data)], [str(images)]), family.encoder, family.model)


@pytest.fixture(scope="module")
def annotated(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return annotated_of(llava, tmp_path_factory.mktemp("trl"))


@pytest.fixture
def examples(llava: Family, annotated: Path, tmp_path: Path) -> AnnotatedExamples:
    return AnnotatedExamples(annotated, llava.encoder, cache_dir=tmp_path / "cache")


def config(folder: Path, **given: Any) -> SFTConfig:
    return SFTConfig(**{**trl_step.options(folder, batch_size=4, accumulation=1), "max_length": None, **given})


def trainer_of(llava: Family, examples: Any, folder: Path, **given: Any) -> CalSFTTrainer:
    names = ("train_dataset", "weighting", "eval_dataset", "peft_config", "model")
    own = {name: given.pop(name) for name in names if name in given}
    return CalSFTTrainer(
        **{
            "model": str(llava.directory),
            "args": config(folder, **given),
            "train_dataset": examples,
            "weighting": Weighting(),
            **own,
        }
    )


def assert_same(seen: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(seen["logged"]) == trl_step.STEPS
    for entry, wanted in zip(seen["logged"], expected["logged"], strict=True):
        assert entry == pytest.approx(wanted, abs=1e-5)
    assert seen["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        torch.testing.assert_close(
            seen["gradients"][name], gradient, atol=1e-5, rtol=0, msg=lambda message, n=name: f"{n}: {message}"
        )
    assert max(float(gradient.abs().max()) for gradient in expected["gradients"].values()) > 0.1
    assert expected["logged"][0]["mean_weight"] > 1.01  # not uniform


def test_loss_gradients_and_metrics_are_those_of_cal_trainer_under_accumulation(
    llava: Family, annotated: Path, tmp_path: Path
) -> None:
    ours = trl_step.run(llava.directory, annotated, tmp_path / "ours", trl=False)
    trl = trl_step.run(llava.directory, annotated, tmp_path / "trl", trl=True, accumulation=2)
    assert_same(trl, ours)
    # TRL's own, of the same forward.
    assert {"entropy", "mean_token_accuracy", "num_tokens", "unusable_rows"} <= set(trl["columns"])


@pytest.mark.full
@pytest.mark.parametrize("normalization", ["step", "sample", "micro_batch"])
@pytest.mark.parametrize("name", ["llava", "llava_next", "gemma3", "paligemma", "idefics3"])
def test_every_family_and_normalization(
    family: Callable[[str], Family], name: str, normalization: str, tmp_path: Path
) -> None:
    of = family(name)
    given: Any = {"accumulation": 4, "normalization": normalization}
    annotated = annotated_of(of, tmp_path)
    ours = trl_step.run(of.directory, annotated, tmp_path / "ours", trl=False, **given)
    assert_same(trl_step.run(of.directory, annotated, tmp_path / "trl", trl=True, **given), ours)


def test_a_model_whose_logits_trl_would_scale_or_cap_otherwise_than_it_does_is_refused(
    llava: Family, examples: AnnotatedExamples, tmp_path: Path
) -> None:
    # As in LLaVA over Gemma 2 and in Aya Vision: the text config names it, the model's forward does not do it.
    capped = shutil.copytree(llava.directory, tmp_path / "capped")
    file = capped / "config.json"
    written = json.loads(file.read_text())
    written["text_config"]["final_logit_softcapping"] = 0.5
    file.write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"TRL gives a token the log-probability -\d.*, and the model -\d.*softcap"):
        trainer_of(llava, examples, tmp_path, model=str(capped))


@pytest.mark.full
@pytest.mark.parametrize(("normalization", "accumulation"), [("step", 1), ("sample", 2), ("micro_batch", 2)])
def test_two_processes_train_as_one(
    llava: Family, annotated: Path, tmp_path: Path, normalization: str, accumulation: int
) -> None:
    alone = trl_step.run(
        llava.directory, annotated, tmp_path / "ours", trl=False, accumulation=2 * accumulation,
        normalization=normalization,
    )  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [trl_step.__file__, str(llava.directory), str(annotated), str(tmp_path), str(accumulation)]
    done = subprocess.run(
        [*command, normalization],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    # Groups over gloo now and then abort on their way out: what counts is what the ranks wrote.
    assert all((tmp_path / f"{rank}.pt").exists() for rank in range(2)), done.stderr[-5000:]
    for rank in range(2):
        seen = torch.load(tmp_path / f"{rank}.pt")
        assert seen["wrapper"] == "DistributedDataParallel"
        assert_same(seen, alone)


@pytest.fixture
def source(llava: Family, annotated: Path, tmp_path: Path) -> SourceExamples:
    """The same rows, which nobody measured."""
    data, images = annotated.parent / "data.json", annotated.parent / "images"
    return SourceExamples([str(data)], llava.encoder, image_folders=[str(images)], cache_dir=tmp_path / "cache")


def test_evaluation_is_the_mean_nll_of_supervised_tokens(
    llava: Family, examples: AnnotatedExamples, source: SourceExamples, tmp_path: Path
) -> None:
    trainer = trainer_of(
        llava, examples, tmp_path, weighting=Weighting(alpha=0.0), eval_dataset={"one": examples, "two": source},
        per_device_eval_batch_size=8,
    )  # fmt: skip
    found = trainer.evaluate()
    batch = trainer.data_collator([examples[row] for row in range(8)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    with torch.no_grad():
        logits = llava.model(**inputs).logits
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert found["eval_one_loss"] == pytest.approx(nll.item(), abs=1e-5)
    assert found["eval_two_loss"] == pytest.approx(nll.item(), abs=1e-5)
    with pytest.raises(ConfigError, match="evaluation data is list"):
        trainer.evaluate([{"text": "a"}])


def test_data_that_nobody_measured_trains_with_uniform_weights_alone(
    llava: Family, source: SourceExamples, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"SourceExamples without deltas: weights from 1.0 to 5.0"):
        trainer_of(llava, source, tmp_path)
    trainer = trainer_of(llava, source, tmp_path, weighting=Weighting(beta=1.0), max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["mean_weight"] == 1.0


def test_adapters_and_grouping_by_length_are_trls(llava: Family, examples: AnnotatedExamples, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=r".*language_model.*\.(q|v)_proj", task_type="CAUSAL_LM")
    trainer = trainer_of(llava, examples, tmp_path, peft_config=lora, train_sampling_strategy="group_by_length")
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert trainer.processing_class is llava.encoder.processor
    lengths = trainer.train_dataset["length"]
    assert list(lengths) == examples.lengths().tolist()


def test_a_row_whose_labels_are_not_those_measured_is_refused_before_the_model_is_loaded(
    llava: Family, annotated: Path, tmp_path: Path
) -> None:
    for path in annotated.glob("*.parquet"):
        table = pq.read_table(path)
        ids = table.column("label_ids").to_pylist()
        ids[0][1] += 1
        at = table.schema.get_field_index("label_ids")
        changed = table.set_column(at, table.schema.field(at), pa.array(ids, table.schema.field(at).type))
        (tmp_path / "annotated").mkdir(exist_ok=True)
        pq.write_table(changed, tmp_path / "annotated" / path.name)
    examples = AnnotatedExamples(tmp_path / "annotated", llava.encoder, cache_dir=tmp_path / "cache")
    with pytest.raises(AlignmentError, match="the first difference is label 1"):
        trainer_of(llava, examples, tmp_path, model="nowhere")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"packing": True}, "packing=True"),
        ({"eval_packing": True}, "eval_packing=True"),
        ({"padding_free": True}, "padding_free=True"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of=8"),
        ({"assistant_only_loss": True}, "assistant_only_loss=True.*those that were measured"),
        ({"completion_only_loss": False}, "completion_only_loss=False.*those that were measured"),
        ({"max_length": 1024}, "max_length=1024.*Encoder of max_length 2048"),
        ({"chat_template_path": "other.jinja"}, "chat_template_path='other.jinja'"),
        ({"eos_token": "</s>"}, "eos_token='</s>'"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "dataset_kwargs="),
        ({"dataset_text_field": "words"}, "dataset_text_field='words'"),
        ({"dataset_num_proc": 2}, "dataset_num_proc=2"),
        ({"shuffle_dataset": True}, "shuffle_dataset=True"),
        ({"loss_type": "dft"}, "loss_type='dft'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
        ({"use_liger_kernel": True}, "use_liger_kernel=True"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices=False"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"weighting": Weighting(pool="released")}, "pool 'released'"),
    ],
)
def test_what_trl_would_do_to_rows_or_loss_is_refused(
    llava: Family, examples: AnnotatedExamples, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer_of(llava, examples, tmp_path, model="nowhere", **given)


@pytest.mark.parametrize("name", ["data_collator", "formatting_func", "compute_loss_func"])
def test_parts_of_trl_that_are_replaced_are_refused(
    llava: Family, examples: AnnotatedExamples, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name}: this trainer has its own"):
        CalSFTTrainer(
            "nowhere", config(tmp_path), train_dataset=examples, weighting=Weighting(), **{name: lambda *_: None}
        )


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_rows_in_parts_are_refused(
    llava: Family, examples: AnnotatedExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(CalSFTTrainer, f"get_{kind}_size", lambda self: 2)
    with pytest.raises(ConfigError, match="tensor, context and sequence parallelism are not supported"):
        trainer_of(llava, examples, tmp_path)


def test_other_data_and_arguments_are_refused_by_their_type(
    llava: Family, annotated: Path, examples: AnnotatedExamples, tmp_path: Path
) -> None:
    streamed = StreamedExamples(annotated, llava.encoder)
    with pytest.raises(ConfigError, match=r"train_dataset is StreamedExamples.*sampler of cal-train"):
        trainer_of(llava, streamed, tmp_path)
    with pytest.raises(ConfigError, match="args is NoneType: give SFTConfig"):
        CalSFTTrainer("nowhere", None, train_dataset=examples, weighting=Weighting())
    with pytest.raises(ConfigError, match="not the processor of the examples' Encoder"):
        CalSFTTrainer(
            "nowhere", config(tmp_path), train_dataset=examples, weighting=Weighting(), processing_class=object()
        )


def test_the_example_trains_and_saves_by_flags_of_trl(
    llava: Family, annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        EXAMPLE, "--model_name_or_path", llava.directory, "--data_path", annotated, "--beta", 1.0,
        "--output_dir", tmp_path / "out", "--max_length", "none", "--max_steps", 1, "--use_cpu", "--bf16", "false",
        "--logging_steps", 1, "--save_strategy", "no", "--disable_tqdm", "true", "--dataloader_pin_memory", "false",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "'mean_weight': '1'" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()

    more = ("--max_steps", 2, "--save_strategy", "steps", "--save_steps", 1)
    resumed = ("--max_steps", 2, "--resume_from_checkpoint", tmp_path / "out" / "checkpoint-1")
    for flags in (more, resumed):
        monkeypatch.setattr(sys, "argv", [str(word) for word in (*argv, *flags)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.count("'mean_weight': '1'") == 2 + 1


@pytest.mark.parametrize("asked", [True, False])
def test_a_trl_that_computes_its_loss_in_another_way_is_refused_at_the_first_step(
    llava: Family, examples: AnnotatedExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    trainer = trainer_of(llava, examples, tmp_path)

    def of_its_own(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        outputs = (model if asked else trainer.model)(**inputs, use_cache=False, fused_lm_head=True)
        return -outputs.log_probs.sum() / 2

    monkeypatch.setattr(SFTTrainer, "compute_loss", of_its_own)
    with pytest.raises(ConfigError, match=r"trl 1\.\S+ gives a loss of .+ it does not take it from"):
        trainer.train()
