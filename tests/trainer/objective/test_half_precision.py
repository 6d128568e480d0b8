"""Online deltas in every precision that cal-train can be told to compute in; what cannot work is refused by name."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from annotated_data import annotate
from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.contrast import innermost_decoder
from cal_pipeline.measuring.self_check import encode_questions
from cal_pipeline.models.loading import load_processor, load_reference
from cal_pipeline.models.precision import watched
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.spec import ContrastSpec
from cal_trainer import cli
from cal_trainer.objective.label_rows import head_products, label_rows, supervised_ids
from conftest import Family
from tiny_data import write_llava_json
from trained import command, losses
from trained_references import trained


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Family:
    directory = trained("llava", tmp_path_factory.mktemp("trained"))
    model = load_reference(directory, dtype="float32", device="cpu")
    return Family(name="llava", directory=directory, model=model, encoder=Encoder(load_processor(directory)))


@pytest.fixture(scope="module")
def annotated(reference: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data, images = write_llava_json(folder, 8)
    return annotate(folder / "out", plan_shards([str(data)], [str(images)]), reference.encoder, reference.model)


@pytest.mark.parametrize(
    "flags", [("--bf16", "true"), ("--fp16", "true"), ("--dtype", "bfloat16"), ("--dtype", "float16")], ids=" ".join
)
def test_online_deltas_in_half_precision_train(
    reference: Family, annotated: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    online = ("--delta_source", "online", "--max_steps", 2, "--learning_rate", "0")
    assert cli.run(command(reference, annotated, tmp_path / "half", *online, *flags)) == 0
    assert cli.run(command(reference, annotated, tmp_path / "whole", *online)) == 0
    for half, whole in zip(losses(tmp_path / "half"), losses(tmp_path / "whole"), strict=True):
        assert half == pytest.approx(whole, rel=0.03)


@pytest.mark.parametrize(("flag", "dtype"), [("--fp16", "float16"), ("--fp16", "bfloat16"), ("--bf16", "float16")])
def test_autocast_that_its_weights_do_not_go_with_is_refused(
    reference: Family, annotated: Path, tmp_path: Path, flag: str, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(command(reference, annotated, tmp_path / "out", flag, "true", "--dtype", dtype)) == 2
    assert f"{flag} does not go with weights of --dtype {dtype}" in capfd.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="pip install 'cal-vlm[quantized]'")
@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own, on CPU
def test_adapters_train_on_a_quantised_student_with_its_own_online_deltas(
    reference: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    student = tmp_path / "student"
    load_reference(reference.directory, dtype="float32", device="cpu", quantization="8bit").save_pretrained(student)
    reference.encoder.processor.save_pretrained(student)
    flags = ("--model_name_or_path", student, "--lora_r", 2, "--delta_source", "online", "--max_steps", 2)
    found = command(reference, annotated, tmp_path / "out", *flags, "--trainable", "language_model")
    assert cli.run(found) == 0
    assert all(math.isfinite(loss) for loss in losses(tmp_path / "out"))
    assert cli.run(command(reference, annotated, tmp_path / "whole", *flags)) == 2
    assert "--trainable projector: model.multi_modal_projector.linear_1.weight is quantised" in capfd.readouterr().err


def test_a_sharded_model_that_stores_float32_and_multiplies_bfloat16_is_seen(reference: Family, tmp_path: Path) -> None:
    model: Any = load_reference(reference.directory, dtype="float32", device="cpu")
    batch = collate(
        encode_questions(reference.encoder, "x", ContrastSpec()), pad_token_id=reference.encoder.pad_token_id
    )
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        for layer in innermost_decoder(model).layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        # Of its own, so that its weights go as soon as it has run.
        fully_shard(model.get_output_embeddings(), mesh=mesh, mp_policy=policy)
        fully_shard(model, mesh=mesh)
        with torch.no_grad(), label_rows(model, batch.labels), head_products(model, batch.labels) as products:
            output, precision = watched(model, lambda: model(**batch.inputs))
    finally:
        distributed.destroy_process_group()
    assert next(innermost_decoder(model).parameters()).dtype == model.dtype == torch.float32
    assert precision.name == "bfloat16"
    of_labels = output.logits[0].gather(1, supervised_ids(batch.labels)[:, None])[:, 0].float()
    assert 0 < float((of_labels - products[0][1]).abs().max()) < 0.1
