import io
import json
import logging
import random
import shutil
import tarfile
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import AlignmentError, ConfigError, MissingDeltaError
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.data.alignment import Example
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.data.dataset import DUMMY, AnnotatedExamples
from cal_trainer.data.dummy import dummy_sample
from cal_trainer.data.factory import mean_tokens
from cal_trainer.data.join import ABSENT, key_array, match_keys
from cal_trainer.data.sidecar import SidecarExamples
from cal_trainer.data.source import SourceExamples
from cal_trainer.data.streaming import StreamedExamples
from conftest import Family
from damage import put_in, rewrite
from tiny_data import BAD_ROWS, MAX_IMAGE_PIXELS, write_llava_json, write_parquet
from tiny_models import sample_image


@dataclass(frozen=True, slots=True)
class Data:
    """One measurement of 24 rows, written as a sidecar and self-contained."""

    family: Family
    source: Path
    images: Path
    sidecar: Path
    whole: Path
    cache: Path

    def open(self, source: Path | None = None, **options: Any) -> SidecarExamples:
        values = {"cache_dir": self.cache, "max_image_pixels": MAX_IMAGE_PIXELS, **options}
        return SidecarExamples(self.sidecar, [str(source or self.source)], self.family.encoder, **values)


@pytest.fixture(scope="module")
def measured(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("sidecar")
    source, images = write_llava_json(folder / "raw", 24)
    shards = plan_shards([str(source)], [str(images)], rows_per_shard=10)
    sidecar = annotate(folder / "sidecar", shards, llava.encoder, llava.model, carry="none")
    whole = annotate(folder / "whole", shards, llava.encoder, llava.model, carry="images")
    return Data(llava, source, images, sidecar, whole, folder)


@pytest.fixture
def data(measured: Data, tmp_path: Path) -> Data:
    return replace(measured, cache=tmp_path)


def rows_of(data: Data) -> list[dict[str, Any]]:
    return json.loads(data.source.read_text())  # type: ignore[no-any-return]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def batches(examples: Dataset[Example], data: Data, order: list[int]) -> list[dict[str, torch.Tensor]]:
    collator = ExampleCollator(encoder=data.family.encoder, dummy=dummy_sample(data.family.encoder))
    return [collator([examples[i] for i in order[start : start + 3]]) for start in range(0, len(order), 3)]


def identical(one: list[dict[str, torch.Tensor]], other: list[dict[str, torch.Tensor]]) -> None:
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            torch.testing.assert_close(value, theirs[key], equal_nan=True, rtol=0, atol=0)


def test_sidecar_and_self_contained_shards_give_the_same_batches(data: Data) -> None:
    whole = AnnotatedExamples(data.whole, data.family.encoder, cache_dir=data.cache, max_image_pixels=MAX_IMAGE_PIXELS)
    joined = data.open()
    assert joined.skipped == whole.skipped
    np.testing.assert_array_equal(joined.lengths(), whole.lengths())
    np.testing.assert_array_equal(joined.has_image(), whole.has_image())
    order = [*range(len(whole)), DUMMY]
    identical(batches(joined, data, order), batches(whole, data, order))


def test_a_source_that_was_shuffled_filtered_and_resharded_keeps_its_deltas(data: Data, tmp_path: Path) -> None:
    rows = rows_of(data)
    kept = [row for number, row in enumerate(rows) if number not in BAD_ROWS]
    # Row 12 is the good row of which the bad row 13 is a copy with another image.
    shuffled = random.Random(0).sample(list(range(len(kept))), 11)
    (tmp_path / "other").mkdir()
    for part in range(2):
        write(tmp_path / "other" / f"{part}.jsonl", [kept[number] for number in shuffled[part::2]])
    joined = data.open(tmp_path / "other", image_folders=[str(data.images)])
    assert len(joined) == 11
    original = data.open()
    order = shuffled[0::2] + shuffled[1::2]
    identical(batches(joined, data, list(range(11))), batches(original, data, order))


def test_turns_that_are_not_learned_train_as_they_were_measured(llava: Family, tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "On the left.", "loss": False},
            {"role": "user", "content": "And what?"}, {"role": "assistant", "content": "A red cat."}]  # fmt: skip
    source = write(tmp_path / "a.jsonl", [{"messages": talk, "system": "See."}, {"messages": talk[2:]}])
    shards = plan_shards([str(source)])
    whole = annotate(tmp_path / "whole", shards, llava.encoder, llava.model)
    sidecar = annotate(tmp_path / "sidecar", shards, llava.encoder, llava.model, carry="none")
    cache = tmp_path / "cache"
    readers = (
        AnnotatedExamples(whole, llava.encoder, cache_dir=cache),
        StreamedExamples(whole, llava.encoder),
        SidecarExamples(sidecar, [str(source)], llava.encoder, cache_dir=cache),
        SourceExamples([str(source)], llava.encoder, cache_dir=cache, use_deltas=False),
    )
    answers = []
    for examples in readers:
        labels = [examples[row].encoded.labels for row in range(2)]
        answers.append([label[label != IGNORE_INDEX].tolist() for label in labels])
    # The same answer in both rows, and no word of the first one.
    assert answers == [answers[0]] * 4
    assert answers[0][0] == answers[0][1]


def test_a_source_row_that_the_sidecar_lacks_is_an_error_by_default(data: Data, tmp_path: Path) -> None:
    rows = rows_of(data)
    rows[2] = {**rows[2], "id": "new one", "conversations": [*rows[2]["conversations"], *rows[2]["conversations"][1:]]}
    with pytest.raises(
        MissingDeltaError, match=r"no row for 1 of the 24 rows of .*; the first is new one\. .*--on_missing uniform"
    ):
        data.open(write(tmp_path / "more.jsonl", rows))
    with pytest.raises(ConfigError, match="on_missing must be one of error, uniform, got 'Error'"):
        data.open(write(tmp_path / "more.jsonl", rows), on_missing="Error")


def test_missing_rows_train_with_undefined_deltas_and_are_counted(
    data: Data, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of(data)[:3]
    for row in rows[1:]:
        row["conversations"][1]["value"] = "Something new."
    unreadable = {"id": "no turns", "image": "0.png", "conversations": "?"}
    gone = {**rows[1], "id": "no image", "image": "gone.png"}
    source = write(tmp_path / "more.jsonl", [*rows, unreadable, gone])
    with caplog.at_level(logging.WARNING):
        joined = data.open(source, on_missing="uniform")
    assert joined.num_missing == 4
    assert joined.num_unmeasured() == 3  # One of them is nothing to train on.
    assert "no row for 4 of 5 source rows: they train without deltas" in caplog.text
    assert joined.skipped == {"encode_error": 1}
    assert len(joined) == 4
    assert not joined[0].deltas.isnan().all()
    assert joined[1].deltas.isnan().all()
    assert (joined[1].encoded.labels != IGNORE_INDEX).any()
    assert (joined.lengths() == joined.lengths()[0]).all()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert (joined[3].encoded.labels == IGNORE_INDEX).all()
    assert "no image trains nothing: image_error" in caplog.text


def test_tokens_of_a_source_of_which_nothing_was_measured_are_those_of_its_encodings(
    data: Data, tmp_path: Path
) -> None:
    rows = [row for number, row in enumerate(rows_of(data)) if number not in BAD_ROWS][:3]
    for row in rows:
        row["conversations"][1]["value"] = "Something new."
    joined = data.open(write(tmp_path / "new.jsonl", rows), on_missing="uniform")
    assert mean_tokens(joined) == np.mean([joined[row].encoded.num_tokens for row in range(3)])


def test_rows_whose_sidecar_status_is_not_ok_are_skipped_and_counted(
    data: Data, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        joined = data.open()
    assert joined.skipped == {"image_error": 5, "no_supervised_tokens": 1, "encode_error": 2}
    assert "8 of 24 rows are skipped" in caplog.text


def test_a_sidecar_none_of_whose_rows_is_ok_says_so(data: Data, tmp_path: Path) -> None:
    sidecar = shutil.copytree(data.sidecar, tmp_path / "sidecar")
    for file in sidecar.glob("*.parquet"):
        table, values = pq.read_table(file), {"status": "image_error", "label_ids": [], "delta_logits": []}
        for name, value in values.items():
            field = table.schema.field(name)
            table = table.set_column(
                table.schema.get_field_index(name), field, pa.array([value] * len(table), field.type)
            )
        rewrite(file, table)
    with pytest.raises(ConfigError, match=r"none of its 24 rows is ok \({'image_error': 24}\)"):
        replace(data, sidecar=sidecar).open()


def test_an_edited_answer_is_another_sample(data: Data, tmp_path: Path) -> None:
    rows = rows_of(data)[:1]
    rows[0]["conversations"][1]["value"] += "!"
    with pytest.raises(MissingDeltaError, match="the first is id-0"):
        data.open(write(tmp_path / "edited.jsonl", rows))


def test_labels_are_checked_row_by_row(llava: Family, data: Data, tmp_path: Path) -> None:
    joined = data.open()
    joined._match = joined._match[::-1].copy()
    with pytest.raises(AlignmentError, match="supervised tokens were measured"):
        _ = [joined[number] for number in range(len(joined))]


def test_a_parquet_source_with_embedded_images_joins_by_their_bytes(llava: Family, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "raw" / "p.parquet", 5)
    shards = plan_shards([str(source)])
    sidecar = annotate(tmp_path / "sidecar", shards, llava.encoder, llava.model, carry="none")
    joined = SidecarExamples(sidecar, [str(source)], llava.encoder, cache_dir=tmp_path)
    assert [bool(joined[number].deltas.isfinite().any()) for number in range(5)] == [True] * 5


def test_the_copy_of_an_edited_source_is_made_anew(data: Data, tmp_path: Path) -> None:
    rows = [row for number, row in enumerate(rows_of(data)) if number not in BAD_ROWS]
    source = write(tmp_path / "a.jsonl", rows[:4])
    assert len(data.open(source)) == 4
    write(source, rows[:6])
    assert len(data.open(source)) == 6


def test_a_source_that_cannot_be_read_says_so(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file there"):
        data.open(tmp_path / "nothing.json")


def test_a_source_whose_images_lie_elsewhere_is_refused_before_training(data: Data, tmp_path: Path) -> None:
    rows = [row for number, row in enumerate(rows_of(data)) if number not in BAD_ROWS]
    source = write(tmp_path / "a.jsonl", rows)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"^--source_path {source}: none of the 8 images looked at can be read"):
        SourceExamples(
            [str(source)], data.family.encoder, image_folders=[str(tmp_path / "empty")], cache_dir=data.cache
        )


def test_an_unmeasured_source_trains_without_deltas(data: Data) -> None:
    examples = SourceExamples(
        [str(data.source)],
        data.family.encoder,
        image_folders=[str(data.images)],
        cache_dir=data.cache,
        max_image_pixels=MAX_IMAGE_PIXELS,
    )
    assert len(examples) == 23
    assert examples.skipped == {"encode_error": 1}
    assert examples[0].deltas.isnan().all()
    assert (examples[0].encoded.labels != IGNORE_INDEX).any()
    assert (examples[DUMMY].encoded.labels == IGNORE_INDEX).all()
    turns = [row["conversations"] for number, row in enumerate(rows_of(data)) if number != 14]
    assert examples.lengths().tolist() == [sum(len(turn["value"]) for turn in row) for row in turns]
    assert examples.has_image().sum() == 21


def two_folders(folder: Path, images: tuple[int, int]) -> list[Path]:
    """Two sources with equal names and words; `images` are what they show under the one name."""
    sources = []
    for name, number in zip("ab", images, strict=True):
        (folder / name).mkdir()
        sample_image(number, (48, 40)).save(folder / name / "one.png")
        talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A red cat on a mat."}]
        row = {"id": name, "image": "one.png", "conversations": talk}
        sources.append(write(folder / f"{name}.jsonl", [row]))
    return sources


def join_two(llava: Family, folder: Path, sources: list[Path], **spec: Any) -> SidecarExamples:
    names, folders = [str(path) for path in sources], [str(folder / name) for name in "ab"]
    sidecar = annotate(
        folder / "out", plan_shards(names, folders), llava.encoder, llava.model, carry="none", **spec
    )  # fmt: skip
    return SidecarExamples(sidecar, names, llava.encoder, image_folders=folders, cache_dir=folder / "cache")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_different_images_of_one_path_are_refused_where_their_words_are_equal(
    llava: Family, tmp_path: Path, dtype: str
) -> None:
    with pytest.raises(ConfigError, match=r"rows with different deltas, in .*a-r0.*\(images in .*/a\) and in .*b-r0"):
        join_two(llava, tmp_path, two_folders(tmp_path, (1, 2)), dtype=dtype)


def test_one_image_under_one_path_in_two_folders_has_one_measurement_and_that_paths_join_is_said(
    llava: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        joined = join_two(llava, tmp_path, two_folders(tmp_path, (1, 1)))
    assert torch.equal(joined[0].deltas.nan_to_num(9), joined[1].deltas.nan_to_num(9))
    assert "2 of 2 source rows are joined by the paths of their images, not by what these show" in caplog.text


def test_embedded_images_are_joined_by_what_they_show(
    llava: Family, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_parquet(tmp_path / "raw" / "p.parquet", 5)
    sidecar = annotate(tmp_path / "sidecar", plan_shards([str(source)]), llava.encoder, llava.model, carry="none")
    with caplog.at_level(logging.INFO):
        SidecarExamples(sidecar, [str(source)], llava.encoder, cache_dir=tmp_path)
    assert "joined by the paths" not in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_image_measured_twice_may_differ_by_what_half_precision_rounds(
    llava: Family, tmp_path: Path, dtype: str
) -> None:
    source, _ = two_folders(tmp_path, (1, 1))
    write(source, [json.loads(source.read_text())] * 2)
    shards = plan_shards([str(source)], [str(tmp_path / "a")])
    sidecar = annotate(tmp_path / "out", shards, llava.encoder, llava.model, carry="none", dtype=dtype)
    put_in(next(sidecar.glob("*.parquet")), 0.25, row=1)
    with nullcontext() if dtype == "bfloat16" else pytest.raises(ConfigError, match="rows with different deltas"):
        SidecarExamples(sidecar, [str(source)], llava.encoder, cache_dir=tmp_path / "cache")


def test_rows_of_one_key_that_the_source_does_not_have_are_not_looked_at(llava: Family, tmp_path: Path) -> None:
    sources = two_folders(tmp_path, (1, 2))
    other = write(tmp_path / "c.jsonl", [{"id": "c", "conversations": [
        {"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Nobody."}]}])  # fmt: skip
    names, folders = [str(path) for path in (*sources, other)], [str(tmp_path / name) for name in "aba"]
    sidecar = annotate(tmp_path / "out", plan_shards(names, folders), llava.encoder, llava.model, carry="none")
    assert len(SidecarExamples(sidecar, [str(other)], llava.encoder, cache_dir=tmp_path / "cache")) == 1


KEYS = st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12)


@given(KEYS, st.lists(st.integers(0, 8), max_size=8))
def test_a_match_has_the_wanted_key_and_is_ok_where_one_is(stored: list[tuple[int, bool]], wanted: list[int]) -> None:
    def keys(values: list[int]) -> np.ndarray:
        # Zero bytes at either end: S16 drops those behind.
        digits = [(value << 120 | value << 8 if value % 2 else value << 64).to_bytes(16).hex() for value in values]
        return key_array(pa.chunked_array([digits[:3], digits[3:]], pa.string()))

    ok = np.array([flag for _, flag in stored], bool)
    match = match_keys(keys(wanted), keys([value for value, _ in stored]), ok)
    for value, found in zip(wanted, match.tolist(), strict=True):
        rows = [row for row, (key, _) in enumerate(stored) if key == value]
        good = [row for row in rows if stored[row][1]]
        assert found == (good or rows or [ABSENT])[0]


def test_a_sidecar_of_an_archive_joins_to_it_packed_again_in_another_order(llava: Family, tmp_path: Path) -> None:
    def pack(path: Path, order: list[int]) -> Path:
        with tarfile.open(path, "w") as archive:
            for number in order:
                image = io.BytesIO()
                sample_image(number, (48, 40)).save(image, "PNG")
                caption = json.dumps({"caption": "A red cat." + " Yes." * number}).encode()
                for suffix, data in (("png", image.getvalue()), ("json", caption)):
                    info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return path

    first, second = pack(tmp_path / "a.tar", [0, 1, 2, 3]), pack(tmp_path / "b.tar", [2, 0, 3, 1])
    sidecar = annotate(tmp_path / "out", plan_shards([str(first)], rows_per_shard=3), llava.encoder, llava.model,
                       carry="none")  # fmt: skip
    one, other = (
        SidecarExamples(sidecar, [str(path)], llava.encoder, cache_dir=tmp_path / "cache") for path in (first, second)
    )
    assert one.has_image().all()
    for number, place in enumerate([1, 3, 0, 2]):
        mine, theirs = one[number], other[place]
        assert not mine.deltas.isnan().all()
        torch.testing.assert_close(mine.deltas, theirs.deltas, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(mine.encoded.labels, theirs.encoded.labels)
