"""Adapters on quantised weights: the numbers of the same weights made whole, kept over a resume and a merge."""

from __future__ import annotations

import copy
import importlib.util
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, TrainingArguments

from annotated_data import annotate
from cal_pipeline.encoding.collate import collate
from cal_pipeline.models.loading import load_model, load_reference
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import ContrastSpec
from cal_trainer import cli
from cal_trainer.config import TrainConfig
from cal_trainer.objective.delta_source import CachedDeltas, OnlineDeltas
from cal_trainer.run.base_model import plan_model
from cal_trainer.run.lora import add_lora
from cal_trainer.run.parameters import part_of_each
from cal_trainer.run.quantized import compute_dtype
from cal_trainer.trainer import CalTrainer, Weighting
from cal_trainer.training_arguments import CalTrainingArguments
from conftest import Family
from tiny_data import write_llava_json
from tiny_models import FAMILIES, sample_image
from trained import command, losses

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="pip install 'cal-vlm[quantized]'"),
    pytest.mark.filterwarnings("ignore"),  # bitsandbytes' and peft's own
]
QLORA = ("--quantization", "4bit", "--lora_r", 4)


def batch_of(family: Family) -> dict[str, Tensor]:
    encoded = [
        family.encoder(
            Sample(sample_id="a", images=(), messages=(Turn(role="user", content="<image>\nWhat is it?"),
                                                       Turn(role="assistant", content=answer))),
            [sample_image(number)],
        )
        for number, answer in enumerate(("A red square.", "Three green circles and a line."))
    ]  # fmt: skip
    batch = collate(encoded, pad_token_id=family.encoder.pad_token_id)
    return {**batch.inputs, "labels": batch.labels, "image_mask": batch.image_mask}


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in ("labels", "image_mask", "deltas")}


def with_adapters(model: Any) -> Any:
    """The same for every model: none is at its start, where the gradient of one half is zero."""
    torch.manual_seed(0)
    wrapped = add_lora(model, r=4)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return wrapped


def step_of(model: Any, folder: Path, batch: dict[str, Tensor], online: bool, **arguments: Any) -> Any:
    """Loss and gradients of one step, through the Trainer's own hooks; behind a pass in eval mode, as runs have one."""
    options = TrainingArguments(
        output_dir=str(folder), use_cpu=True, report_to=[], remove_unused_columns=False, max_steps=1,
        save_strategy="no", learning_rate=0.0, disable_tqdm=True, dataloader_pin_memory=False, max_grad_norm=0.0,
        **arguments,
    )  # fmt: skip
    source = OnlineDeltas(contrast=ContrastSpec()) if online else CachedDeltas()
    trainer = CalTrainer(
        model=model, args=options, delta_source=source, weighting=Weighting(alpha=0.1, window=1),
        train_dataset=[0], data_collator=lambda items: dict(batch),
    )  # fmt: skip
    model.eval()
    with torch.no_grad():
        model(**inputs_of(batch))
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(lambda gradient, name=name: found.__setitem__(name, gradient.clone()))
    loss = trainer.train().training_loss
    return loss, found


@pytest.mark.parametrize(
    ("quantization", "online", "reentrant"),
    [
        # One of each in the quick tier; `reentrant` is None without checkpointing.
        one if one in (("4bit", True, False), ("8bit", False, None)) else pytest.param(*one, marks=pytest.mark.full)
        for one in itertools.product(("4bit", "8bit"), (False, True), (None, False, True))
    ],
)
def test_loss_and_gradients_are_those_of_the_weights_made_whole(
    llava: Family, tmp_path: Path, quantization: Any, online: bool, reentrant: bool | None
) -> None:
    batch = batch_of(llava)
    batch["deltas"] = torch.randn(batch["labels"].shape, generator=torch.Generator().manual_seed(0)) * 3
    checkpointing: dict[str, Any] = {}
    if reentrant is not None:
        kwargs = {"use_reentrant": reentrant}
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": kwargs}
    quantised = load_reference(llava.directory, dtype="float32", device="cpu", quantization=quantization)
    whole = load_reference(llava.directory, dtype="float32", device="cpu", quantization=quantization).dequantize()
    assert {type(module) for module in whole.modules() if isinstance(module, nn.Linear)} == {nn.Linear}
    loss, found = step_of(with_adapters(quantised), tmp_path, batch, online, **checkpointing)
    expected_loss, expected = step_of(with_adapters(whole), tmp_path, batch, online)
    full_loss, _ = step_of(with_adapters(copy.deepcopy(llava.model)), tmp_path, batch, online)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert loss != pytest.approx(full_loss, rel=1e-3)
    assert found.keys() == expected.keys()
    assert len(found) == 28  # Seven layers, two halves, two blocks.
    for name, gradient in found.items():
        size = float(expected[name].abs().max())
        assert size > 0, name
        torch.testing.assert_close(
            gradient, expected[name], rtol=0, atol=1e-4 * size, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_llava_json(tmp_path_factory.mktemp("data"), 24)


def measured(llava: Family, data: tuple[Path, Path], output: Path, quantization: Any) -> Path:
    model = load_reference(llava.directory, dtype="float32", device="cpu", quantization=quantization)
    return annotate(
        output, plan_shards([str(data[0])], [str(data[1])]), llava.encoder, model, quantization=quantization
    )


@pytest.fixture(scope="module")
def annotated(llava: Family, data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured(llava, data, tmp_path_factory.mktemp("measured") / "out", "4bit")


@pytest.fixture(scope="module")
def begun(llava: Family, annotated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four steps, the projector in full beside the adapters."""
    folder = tmp_path_factory.mktemp("begun") / "out"
    assert cli.run(command(llava, annotated, folder, *QLORA, "--max_steps", 4, "--save_steps", 2)) == 0
    return folder


def test_cached_deltas_of_the_quantised_model_are_its_online_ones(
    llava: Family, annotated: Path, tmp_path: Path
) -> None:
    flags = (*QLORA, "--trainable", "language_model", "--learning_rate", 0, "--max_steps", 3, "--normalization", "step")
    for source in ("cached", "online"):
        assert cli.run(command(llava, annotated, tmp_path / source, *flags, "--delta_source", source)) == 0
    assert losses(tmp_path / "online") == pytest.approx(losses(tmp_path / "cached"), abs=1e-5)


@pytest.mark.full
def test_deltas_in_eight_bits_are_near_those_online(llava: Family, data: tuple[Path, Path], tmp_path: Path) -> None:
    # In eval mode, in which they are measured, bitsandbytes rounds the inputs to 8 bits too; in training, not on a CPU.
    cache = measured(llava, data, tmp_path / "cache", "8bit")
    flags = ("--quantization", "8bit", "--lora_r", 4, "--trainable", "language_model", "--learning_rate", 0)
    for source in ("cached", "online", "uniform"):
        more = ("--max_steps", 3, "--normalization", "step", "--delta_source", source)
        assert cli.run(command(llava, cache, tmp_path / source, *flags, *more)) == 0
    cached, online, uniform = (losses(tmp_path / source) for source in ("cached", "online", "uniform"))
    assert online == pytest.approx(cached, rel=2e-3)
    assert uniform != pytest.approx(cached, rel=2e-3)


@pytest.mark.full
def test_autocast_reaches_four_bits_and_changes_little(llava: Family, annotated: Path, tmp_path: Path) -> None:
    for source in ("cached", "online"):
        flags = (*QLORA, "--max_steps", 3, "--learning_rate", 0, "--delta_source", source)
        assert cli.run(command(llava, annotated, tmp_path / "half", *flags, "--bf16", "true")) == 0
        assert cli.run(command(llava, annotated, tmp_path / "whole", *flags)) == 0
        assert losses(tmp_path / "half") != losses(tmp_path / "whole")
        assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "whole"), rel=0.03)


def test_products_are_of_the_precision_that_a_run_computes_in(tmp_path: Path) -> None:
    def of(dtype: Any, **given: Any) -> str:
        arguments = CalTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)
        return compute_dtype(TrainConfig(model_name_or_path="m", data_path=["d"], dtype=dtype), arguments)

    assert [of("float32"), of("bfloat16"), of("float32", bf16=True)] == ["float32", "bfloat16", "bfloat16"]
    assert of("float32", fp16=True) == "float16"


def test_card_and_checkpoints_say_what_the_base_was_quantised_to(begun: Path) -> None:
    card = (begun / "README.md").read_text()
    assert "| base quantised to | 4bit of float32, but lm_head, model.multi_modal_projector |" in card
    assert "| bitsandbytes |" in card
    state = json.loads((begun / "checkpoint-2" / "cal_train_state.json").read_text())
    assert (state["settings"]["--quantization"], state["settings"]["--dtype"]) == ("4bit", "float32")
    assert not list(begun.rglob("model*.safetensors"))  # Adapters, and what trained in full beside them, only.


def test_a_resumed_run_is_the_one_that_never_stopped(
    llava: Family, annotated: Path, begun: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    go_on = ("--max_steps", 4, "--lora_r", 4, "--resume_from_checkpoint", begun / "checkpoint-2")
    assert cli.run(command(llava, annotated, tmp_path / "on", *go_on, "--quantization", "4bit")) == 0
    assert losses(tmp_path / "on") == losses(begun)
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "on", begun))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    half_way = load_file(begun / "checkpoint-2" / "adapter_model.safetensors")
    moved = {name.split(".")[-2] for name, value in one.items() if not torch.equal(value, half_way[name])}
    assert moved == {"lora_A", "lora_B", "linear_1", "linear_2"}
    assert cli.run(command(llava, annotated, tmp_path / "other", *go_on)) == 2
    assert "--quantization was 4bit, is not given" in capfd.readouterr().err
    other = ("--quantization", "4bit", "--dtype", "bfloat16")
    assert cli.run(command(llava, annotated, tmp_path / "other", *go_on, *other)) == 2
    assert "--dtype was float32, is bfloat16" in capfd.readouterr().err


def test_adapters_merged_into_the_dequantised_base_are_the_network_that_was_trained(
    llava: Family, begun: Path, tmp_path: Path
) -> None:
    # As it was trained on: the projector, which was trained too, is whole.
    card = (begun / "README.md").read_text()
    left_whole = re.search(r"quantised to \| 4bit of float32, but (.*) \|", card)[1].split(", ")

    def base() -> Any:
        return load_model(
            llava.directory, dtype="float32", attn_implementation="sdpa", device_map="cpu", quantization="4bit",
            unquantized=left_whole, trust_remote_code=False,
        )  # fmt: skip

    inputs = inputs_of(batch_of(llava))

    def logits(model: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = model.eval()(**inputs).logits
        return found

    trained = logits(PeftModel.from_pretrained(base(), begun))
    # As docs/training.md says: what was trained in full comes with the adapters, whatever stands in its place.
    whole = load_reference(llava.directory, dtype="float32", device="cpu", quantization="4bit").dequantize()
    PeftModel.from_pretrained(whole, begun).merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert not getattr(merged.config, "quantization_config", None)
    scale = float(trained.std())
    assert float((logits(merged) - trained).abs().max()) < 1e-4 * scale
    # The two other ways are other networks.
    rounded = logits(PeftModel.from_pretrained(base(), begun).merge_and_unload())
    onto_full = logits(PeftModel.from_pretrained(copy.deepcopy(llava.model), begun).merge_and_unload())
    for other in (rounded, onto_full):
        assert float((other - trained).square().mean().sqrt()) > 1e-2 * scale


def planned(llava: Family, *flags: object) -> Any:
    argv = command(llava, Path("d"), Path("o"), *flags)
    config, arguments = cli.parse(argv)
    return plan_model(config, arguments, llava.directory, {}, None)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (name, parts) if name == "llava" and parts == "projector" else pytest.param(name, parts, marks=pytest.mark.full)
        for name in FAMILIES
        for parts in ("", "projector", "all")
    ],
)
def test_parts_that_train_in_full_stay_whole_and_all_else_is_quantised(
    family: Callable[[str], Family], name: str, parts: str
) -> None:
    one = family(name)
    trainable = [part for part in ("language_model", parts) if part]
    plan = planned(one, *QLORA, "--trainable", *trainable)
    model = load_model(
        one.directory, dtype="float32", attn_implementation="sdpa", device_map="cpu", quantization="4bit",
        unquantized=plan.unquantized, trust_remote_code=False,
    )  # fmt: skip
    owners = part_of_each(model)
    in_full = {"": set(), "projector": {"projector"}, "all": {"projector", "vision_tower"}}[parts]
    head = model.get_output_embeddings()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for layer, module in layers.items():
        whole = module is head or owners[f"{layer}.weight"] in in_full
        assert type(module).__name__ == ("Linear" if whole else "Linear4bit"), layer
    assert bool(plan.unquantized) == bool(parts)
    wrapped = add_lora(model, r=2, trainable=trainable)
    owners = part_of_each(wrapped)
    trained = {owners[name] for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    assert trained == {"language_model", *in_full}


def test_what_cannot_train_on_quantised_weights_is_refused_with_the_way_out(
    llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"--quantization 8bit: .* cannot train, .* give --lora_r"):
        planned(llava, "--quantization", "8bit")
    for flag, meant in (("--load_in_4bit", "4bit"), ("--load-in-8bit", "8bit"), ("--load_in_4bit=true", "4bit")):
        with pytest.raises(ConfigError, match=f"unknown flag {flag.split('=')[0]}: use --quantization {meant}"):
            planned(llava, flag)
    with pytest.raises(ConfigError, match="invalid choice: '4'; choose from none, 8bit, 4bit"):
        planned(llava, "--quantization", "4", "--lora_r", 4)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"FSDP with quantised weights \(4bit\) was not tried: leave it out"):
        planned(llava, *QLORA)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    config, arguments = cli.parse(command(llava, Path("d"), Path("o"), *QLORA))
    arguments.deepspeed_plugin = object()
    with pytest.raises(ConfigError, match=r"DeepSpeed with quantised weights \(4bit\) was not tried"):
        plan_model(config, arguments, llava.directory, {}, None)
    stored = tmp_path / "stored"
    load_reference(llava.directory, dtype="float32", device="cpu", quantization="8bit").save_pretrained(stored)
    llava.encoder.processor.save_pretrained(stored)
    config, arguments = cli.parse(command(llava, Path("d"), Path("o")))
    with pytest.raises(ConfigError, match=r"is quantised as it is stored \(bitsandbytes-8bit\), .* give --lora_r"):
        plan_model(config, arguments, stored, {}, None)
