import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cal_pipeline.output.row_reader import numbered_rows
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.annotated import AnnotatedRow, annotated_schema
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.metadata import Carry
from cal_schemas.opened import AnnotatedDataset, open_annotated
from cal_schemas.sample import sample_key
from cal_schemas.spec import MeasurementSpec
from cal_schemas.writer import ShardWriter
from examples_of import MEASURED, measurement_spec, shard_metadata
from tiny_models import sample_image

SPEC: MeasurementSpec = measurement_spec()


def annotated(folder: Path, carry: Carry) -> AnnotatedDataset:
    """Two shards of three rows with an image each; row 1 could not be measured."""
    (folder / "images").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number in range(6):
        sample_image(number).save(folder / "images" / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": f"answer {number}"}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for shard in plan_shards([str(folder / "a.jsonl")], [str(folder / "images")], rows_per_shard=3):
        metadata = shard_metadata(spec=SPEC, source=shard.source, carry=carry)
        (folder / "out").mkdir(exist_ok=True)
        with ShardWriter(folder / "out" / f"{shard.name}.parquet", annotated_schema(carry=carry), metadata) as writer:
            for sample in read_samples(shard):
                row = AnnotatedRow(sample=sample, sample_key=sample_key(sample), measured=MEASURED)
                writer.write(replace(row, measured=None, status="too_long") if sample.sample_id == "1" else row)
    return open_annotated(folder / "out")


@pytest.mark.parametrize("carry", ["paths", "none"])
def test_rows_come_ascending_with_their_samples_whether_the_file_holds_those_or_not(
    tmp_path: Path, carry: Carry
) -> None:
    rows = list(numbered_rows(annotated(tmp_path, carry), [4, 1, 1]))
    assert [(row.number, row.annotated.status) for row in rows] == [(1, "too_long"), (4, "ok")]
    assert [row.sample.messages[1].content for row in rows if row.sample.messages] == ["answer 1", "answer 4"]
    assert all(row.key_matches for row in rows)
    assert rows[0].annotated.measured is None
    measured = rows[1].annotated.measured
    assert measured is not None
    assert (measured.label_ids.tolist(), measured.label_positions.tolist()) == ([7, 8], [4, 5])
    assert rows[1].image_files() == [(tmp_path / "images" / "4.png").read_bytes()]


def test_another_image_folder_takes_the_place_of_the_measured_one(tmp_path: Path) -> None:
    dataset = annotated(tmp_path, "paths")
    (tmp_path / "images").rename(tmp_path / "moved")
    (row,) = numbered_rows(dataset, [0])
    with pytest.raises(ShardError, match=r"images is gone or empty \(moved, or unmounted\?\)"):
        row.image_files()
    (row,) = numbered_rows(dataset, [0], tmp_path / "moved")
    assert row.image_files() == [(tmp_path / "moved" / "0.png").read_bytes()]


def test_a_key_does_not_match_other_words_and_a_source_that_is_gone_is_said(tmp_path: Path) -> None:
    dataset = annotated(tmp_path, "none")
    (row,) = numbered_rows(dataset, [0])
    other = replace(row, annotated=replace(row.annotated, sample=replace(row.sample, messages=())))
    assert not other.key_matches
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"a\.jsonl is gone, and the samples of this shard"):
        list(numbered_rows(dataset, [0]))
