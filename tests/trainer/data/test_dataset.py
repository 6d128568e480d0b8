import copy
import io
import json
import logging
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from annotated_data import annotate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.models.loading import load_processor
from cal_pipeline.sources.images import decode_images, read_images
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.annotated import sample_from_columns
from cal_schemas.errors import AlignmentError, ConfigError, FormatError
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec
from cal_trainer.data.alignment import Example, RowEncoder, scatter_deltas
from cal_trainer.data.collator import ExampleCollator, StepBatch
from cal_trainer.data.dataset import DUMMY, AnnotatedExamples
from cal_trainer.data.dummy import dummy_sample
from cal_trainer.run.parameters import set_trainable
from conftest import Family
from tiny_data import BAD_ROWS, MAX_IMAGE_PIXELS, write_llava_json, write_parquet
from tiny_models import FAMILIES


@dataclass(frozen=True, slots=True)
class Data:
    """Two source files of 20 rows, measured by the tiny LLaVA under vicuna_v1."""

    directory: Path
    source: Path
    images: Path
    encoder: Encoder


@pytest.fixture(scope="module")
def data(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("annotated")
    source, images = write_llava_json(folder / "raw", 24)
    encoder = Encoder(load_processor(llava.directory), template="vicuna_v1")
    shards = plan_shards([str(source)], [str(images)], rows_per_shard=10)
    annotate(folder / "out", shards, encoder, llava.model, carry="paths")
    return Data(folder / "out", source, images, encoder)


@pytest.fixture
def examples(data: Data, tmp_path: Path) -> AnnotatedExamples:
    return make_dataset(data, tmp_path)


def make_dataset(data: Data, cache: Path, encoder: Encoder | None = None, **options: object) -> AnnotatedExamples:
    return AnnotatedExamples(
        data.directory, encoder or data.encoder, cache_dir=cache, max_image_pixels=MAX_IMAGE_PIXELS, **options
    )  # type: ignore[arg-type]


def stored_rows(directory: Path) -> list[dict[str, object]]:
    rows = [row for file in sorted(directory.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [row for row in rows if row["status"] == "ok"]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], equal_nan=True, rtol=0, atol=0)


def test_stored_deltas_land_on_their_labels(examples: AnnotatedExamples, data: Data) -> None:
    rows = stored_rows(data.directory)
    assert len(examples) == len(rows) == 24 - len(BAD_ROWS)
    for number, row in enumerate(rows):
        example = examples[number]
        supervised = example.encoded.labels != IGNORE_INDEX
        assert example.encoded.labels[supervised].tolist() == row["label_ids"]
        np.testing.assert_array_equal(example.deltas[supervised].numpy(), np.array(row["delta_logits"], np.float32))
        assert bool(example.deltas[~supervised].isnan().all())


def test_rows_that_are_not_ok_are_skipped_and_counted_in_the_log(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        examples = make_dataset(data, tmp_path)
    assert examples.skipped == {"image_error": 5, "no_supervised_tokens": 1, "encode_error": 2}
    assert "8 of 24 rows are skipped" in caplog.text
    assert "'image_error': 5" in caplog.text


def test_lengths_and_modalities_are_those_of_the_rows(examples: AnnotatedExamples) -> None:
    found = [examples[number].encoded for number in range(len(examples))]
    assert examples.lengths().tolist() == [item.num_tokens for item in found]
    assert examples.has_image().tolist() == [bool(item.image_inputs) for item in found]
    assert 0 < examples.has_image().sum() < len(examples)


def test_deltas_of_llava_train_a_llava_next_student(
    family: Callable[[str], Family], data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = Encoder(load_processor(family("llava_next").directory), template="vicuna_v1")
    with caplog.at_level(logging.WARNING):
        examples = make_dataset(data, tmp_path, student)
    assert "image_processor was 'LlavaImageProcessor', is 'LlavaNextImageProcessor'" in caplog.text
    lengths = []
    for number, row in enumerate(stored_rows(data.directory)):
        example = examples[number]
        supervised = example.encoded.labels != IGNORE_INDEX
        assert example.encoded.labels[supervised].tolist() == row["label_ids"]
        np.testing.assert_array_equal(example.deltas[supervised].numpy(), np.array(row["delta_logits"], np.float32))
        lengths.append(example.encoded.num_tokens)
    assert lengths != examples.lengths().tolist()


def test_another_template_is_refused_up_front_with_both_values_and_the_way_out(
    llava: Family, data: Data, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"template is 'vicuna_v1' there and 'auto' here.*--template vicuna_v1"):
        make_dataset(data, tmp_path, Encoder(load_processor(llava.directory)))
    assert len(make_dataset(data, tmp_path, Encoder(load_processor(llava.directory)), use_deltas=False)) == 16


def test_another_chat_template_is_refused_naming_a_template_for_both(
    family: Callable[[str], Family], llava: Family, data: Data, tmp_path: Path
) -> None:
    shards = plan_shards([str(data.source)], [str(data.images)])
    directory = annotate(tmp_path / "auto", shards[:1], llava.encoder, llava.model, carry="paths")
    with pytest.raises(ConfigError, match=r"chat_template_digest.*the same --template"):
        AnnotatedExamples(directory, family("llava_next").encoder, cache_dir=tmp_path)


def test_another_tokenizer_is_refused_naming_the_model_that_measured(llava: Family, data: Data, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(llava.directory)
    processor.tokenizer.add_tokens(["zebra"])
    with pytest.raises(ConfigError, match=r"tokenizer_digest.*the tokenizer of tiny"):
        make_dataset(data, tmp_path, Encoder(processor, template="vicuna_v1"))


def test_other_label_ids_stop_with_sample_both_values_and_way_out(llava: Family, data: Data, tmp_path: Path) -> None:
    file = sorted(data.directory.glob("*.parquet"))[0]
    table = pq.read_table(file)
    ids = table["label_ids"].to_pylist()
    present = ids[1][2]
    ids[1][2] = 7
    field = table.schema.field("label_ids")
    changed = table.set_column(table.schema.get_field_index("label_ids"), field, pa.array(ids, field.type))
    (tmp_path / "changed").mkdir()
    pq.write_table(changed, tmp_path / "changed" / "a.parquet")
    examples = AnnotatedExamples(tmp_path / "changed", data.encoder, cache_dir=tmp_path)
    with pytest.raises(
        AlignmentError, match=rf"id-0: .* label 2: 7 measured, {present} now\. Train with the tokenizer"
    ):
        examples[1]


def test_a_row_cut_at_the_end_takes_the_deltas_of_the_labels_it_kept(examples: AnnotatedExamples, data: Data) -> None:
    row = stored_rows(data.directory)[0]
    whole = examples[0]
    shorter = Encoder(
        data.encoder.processor, template="vicuna_v1", truncation="tail", max_length=whole.encoded.num_tokens - 3
    )
    cut = RowEncoder(shorter, examples.spec)({**row, "status": "ok"}, data.images)
    assert cut.encoded.truncated
    torch.testing.assert_close(cut.deltas, whole.deltas[:-3], equal_nan=True, rtol=0, atol=0)
    with pytest.raises(AlignmentError, match="supervised tokens were measured, this encoding has"):
        scatter_deltas("s", whole.encoded, row["label_ids"][:-1], np.zeros(0, np.float32))  # type: ignore[index]


@pytest.mark.parametrize("use_deltas", [True, False])
def test_a_row_too_long_for_the_student_trains_nothing_and_is_said(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture, use_deltas: bool
) -> None:
    lengths = make_dataset(data, tmp_path).lengths()
    student = Encoder(data.encoder.processor, template="vicuna_v1", max_length=int(lengths.max()) - 1)
    examples = make_dataset(data, tmp_path, student, use_deltas=use_deltas)
    with caplog.at_level(logging.WARNING):
        example = examples[int(lengths.argmax())]
    assert example.unusable
    assert bool((example.encoded.labels == IGNORE_INDEX).all())
    assert "trains nothing: too_long" in caplog.text


def test_without_deltas_the_labels_are_the_same_and_every_delta_is_undefined(
    examples: AnnotatedExamples, data: Data, tmp_path: Path
) -> None:
    uniform = make_dataset(data, tmp_path, use_deltas=False)
    for number in range(len(examples)):
        assert torch.equal(uniform[number].encoded.labels, examples[number].encoded.labels)
        assert bool(uniform[number].deltas.isnan().all())
        assert not uniform[number].unusable


def test_rows_that_train_nothing_are_said_twenty_times(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lengths = make_dataset(data, tmp_path).lengths()
    student = Encoder(data.encoder.processor, template="vicuna_v1", max_length=int(lengths.max()) - 1)
    examples = make_dataset(data, tmp_path, student)
    caplog.clear()
    for _ in range(22):
        examples[int(lengths.argmax())]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 20
    assert [("further ones are counted only" in line) for line in said] == [*[False] * 19, True]


@pytest.mark.parametrize("max_length", [2048, 2047])
def test_a_image_that_vanished_since_the_measurement_stops_the_run_whatever_the_student_s_inputs(
    data: Data, tmp_path: Path, max_length: int
) -> None:
    student = Encoder(data.encoder.processor, template="vicuna_v1", max_length=max_length)
    examples = make_dataset(data, tmp_path, student, image_folder=tmp_path)
    with pytest.raises(AlignmentError, match=r"id-0: measured ok.*not a file.*restore its images"):
        examples[0]


def test_each_shard_s_own_image_folder_is_used(llava: Family, tmp_path: Path) -> None:
    sources = [write_llava_json(tmp_path / name, 3) for name in ("a", "b")]
    (sources[1][0]).rename(sources[1][0].with_name("other.json"))
    paths = [str(sources[0][0]), str(sources[1][0].with_name("other.json"))]
    shards = plan_shards(paths, [str(images) for _, images in sources])
    directory = annotate(tmp_path / "out", shards, llava.encoder, llava.model, carry="paths")
    (tmp_path / "a" / "images" / "1.png").unlink()
    examples = AnnotatedExamples(directory, llava.encoder, cache_dir=tmp_path)
    assert len(examples) == 6
    assert examples[4].encoded.image_inputs
    with pytest.raises(AlignmentError, match=r"1\.png"):
        examples[1]


def test_embedded_images_come_out_of_the_arrow_copy(llava: Family, tmp_path: Path) -> None:
    shards = plan_shards([str(write_parquet(tmp_path / "p[0].parquet", 4))])
    directory = annotate(tmp_path / "out", shards, llava.encoder, llava.model)
    examples = AnnotatedExamples(directory, llava.encoder, cache_dir=tmp_path)
    assert [bool(examples[number].encoded.image_inputs) for number in range(4)] == [True] * 4


def test_a_shard_that_was_measured_again_is_not_taken_from_the_old_copy(llava: Family, tmp_path: Path) -> None:
    shards = plan_shards([str(write_parquet(tmp_path / "p.parquet", 2))])
    directory = annotate(tmp_path / "out", shards, llava.encoder, llava.model)
    first = AnnotatedExamples(directory, llava.encoder, cache_dir=tmp_path)[0]
    file = directory / "p.parquet"
    table = pq.read_table(file)
    field = table.schema.field("delta_logits")
    deltas = [[value + 1 for value in row] for row in table["delta_logits"].to_pylist()]
    changed = table.set_column(table.schema.get_field_index(field.name), field, pa.array(deltas, field.type))
    pq.write_table(changed, file)
    again = AnnotatedExamples(directory, llava.encoder, cache_dir=tmp_path)[0]
    torch.testing.assert_close(again.deltas, first.deltas + 1, equal_nan=True)


def test_workers_give_the_batches_of_the_main_process(examples: AnnotatedExamples, data: Data) -> None:
    collator = ExampleCollator(encoder=data.encoder, dummy=dummy_sample(data.encoder))
    order = [3, 0, DUMMY, 5, 1, 2]
    loaders = [
        DataLoader(examples, batch_size=2, sampler=order, collate_fn=collator, num_workers=workers)
        for workers in (0, 2)
    ]
    alone, spread = (list(loader) for loader in loaders)
    assert len(alone) == 3
    for one, other in zip(alone, spread, strict=True):
        same(one, other)


def test_it_survives_pickling_for_workers_that_are_spawned(examples: AnnotatedExamples) -> None:
    file = io.BytesIO()
    pickle.dump(examples, file)
    assert file.tell() < 2_000_000
    copy = pickle.loads(file.getvalue())
    torch.testing.assert_close(copy[2].deltas, examples[2].deltas, equal_nan=True, rtol=0, atol=0)


def test_a_batch_without_a_image_gets_the_dummy_one(examples: AnnotatedExamples, data: Data) -> None:
    collator = ExampleCollator(encoder=data.encoder, dummy=dummy_sample(data.encoder))
    text_only = int(np.flatnonzero(~examples.has_image())[0])
    batch = collator([examples[text_only]])
    assert len(batch["labels"]) == 2
    assert bool((batch["labels"][1] == IGNORE_INDEX).all())
    assert bool(batch["image_mask"][1].any())
    assert len(collator([examples[text_only], examples[DUMMY]])["labels"]) == 2


def test_a_contrast_that_perturbs_takes_a_twin_of_the_rows_with_perturbed_images_beside_them(
    examples: AnnotatedExamples, data: Data
) -> None:
    assert examples.contrasted(ContrastSpec()) is examples
    blurred = examples.contrasted(ContrastSpec(condition="gaussian_blur", blur_sigma=10.0))
    row, twin = examples[0], blurred[0]
    assert row.encoded.contrast_inputs == examples.blank.encoded.contrast_inputs == {}
    same(dict(row.encoded.image_inputs), dict(twin.encoded.image_inputs))
    torch.testing.assert_close(row.deltas, twin.deltas, equal_nan=True, rtol=0, atol=0)
    shown, blurry = twin.encoded.image_inputs["pixel_values"], twin.encoded.contrast_inputs["pixel_values"]
    assert shown.shape == blurry.shape
    assert not torch.equal(shown, blurry)
    same(dict(blurred.blank.encoded.image_inputs), dict(blurred.blank.encoded.contrast_inputs))
    assert dummy_sample(data.encoder, ContrastSpec()).contrast_inputs == {}


def test_the_cells_that_are_painted_over_are_those_of_the_measurement(examples: AnnotatedExamples, data: Data) -> None:
    contrast = ContrastSpec(condition="patch_mask", patch_mask_ratio=0.5)
    row = stored_rows(data.directory)[0]
    sample = sample_from_columns(row)
    images = decode_images(read_images(sample.images, data.images), MAX_IMAGE_PIXELS)
    expected = encode_with_contrast(data.encoder, contrast, sample, images, str(row["sample_key"]))
    same(dict(examples.contrasted(contrast)[0].encoded.contrast_inputs), dict(expected.contrast_inputs))


def test_directories_that_cannot_be_trained_on_say_why(llava: Family, data: Data, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no annotated shards"):
        AnnotatedExamples(tmp_path, llava.encoder)
    shards = plan_shards([str(data.source)], [str(data.images)])
    sidecar = annotate(tmp_path / "sidecar", shards, llava.encoder, llava.model, carry="none")
    with pytest.raises(ConfigError, match=r"is a sidecar.*--source_path"):
        AnnotatedExamples(sidecar, llava.encoder)
    bad = [json.loads(data.source.read_text())[number] for number in (5, 6)]
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    shards = plan_shards([str(tmp_path / "bad.json")], [str(data.images)])
    directory = annotate(tmp_path / "bad", shards, llava.encoder, llava.model, carry="paths")
    with pytest.raises(ConfigError, match=r"none of its 2 rows is ok.*image_error"):
        AnnotatedExamples(directory, llava.encoder, cache_dir=tmp_path)


def test_a_max_length_below_one_image_is_a_config_error(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one small image and a word cannot be encoded"):
        make_dataset(data, tmp_path, Encoder(data.encoder.processor, template="vicuna_v1", max_length=8))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_dummy_row_reaches_every_parameter_of_the_vision_side(family: Callable[[str], Family], name: str) -> None:
    found = family(name)
    model = copy.deepcopy(found.model).train()
    trained = set_trainable(model, ["vision_tower", "projector"])
    dummy = dummy_sample(found.encoder)
    batch = ExampleCollator(encoder=found.encoder, dummy=dummy)(
        [Example(encoded=dummy, deltas=torch.full((dummy.num_tokens,), torch.nan))]
    )
    (model(**StepBatch.of(batch).inputs, use_cache=False).logits.sum() * 0).backward()
    without = [name for name, parameter in model.named_parameters() if name in trained and parameter.grad is None]
    assert without == []


def test_the_dummy_row_has_the_image_with_the_fewest_tokens(family: Callable[[str], Family]) -> None:
    encoder = family("llava_next").encoder
    turns = (Turn(role="user", content="<image>\n?"), Turn(role="assistant", content="."))
    square = encoder(Sample(sample_id="s", images=(), messages=turns), [Image.new("RGB", (32, 32))])
    assert dummy_sample(encoder).num_tokens < square.num_tokens
