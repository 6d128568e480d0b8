"""What `filter --layout` writes is read back as the samples that were chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from cal_pipeline.inspect.cli import EXIT_DONE, EXIT_REFUSED, run
from cal_pipeline.inspect.tables import training_layouts
from cal_pipeline.inspect.tables.training_layouts import LAYOUTS
from cal_pipeline.output.row_reader import numbered_rows
from cal_pipeline.sources.images import read_images
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.annotated import AnnotatedRow, annotated_schema
from cal_schemas.opened import open_annotated
from cal_schemas.sample import ImageRef, Sample, Turn
from cal_schemas.writer import ShardWriter
from examples_of import MEASURED, shard_metadata
from inspect_data import Directories

TEXT = [
    Turn(role="system", content="Be brief."),
    Turn(role="user", content="<image>\nWhat?"),
    Turn(role="assistant", content="", extra={"tool_calls": [{"type": "function", "function": {"name": "look",
                                                                                          "arguments": {"at": 1}}}]}),
    Turn(role="tool", content="42"),
    Turn(role="assistant", content="Nothing.", supervised=False),
    Turn(role="user", content="And?\u2028<image>"),
    Turn(role="assistant", content='A "cat" \U0001f408.', extra={"reasoning_content": "Let me see."}),
]  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


def samples_in(folder: Path, image_folder: Path | None) -> list[tuple[Sample, list[bytes]]]:
    folders = [str(image_folder)] if image_folder else []
    shards = plan_shards([str(folder)], folders, rows_per_shard=1000)
    return [(sample, read_images(sample.images, image_folder)) for shard in shards for sample in read_samples(shard)]


@pytest.mark.parametrize("kind", ["normal", "paths", "sidecar"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_back_as_the_chosen_samples(
    layout: str, kind: str, directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    source = directories.by_name(kind)
    command = ["filter", str(source), "tokens > 6 OR status <> 'ok'", "--layout", layout, "--output", str(output)]
    assert run(command) == EXIT_DONE
    said = capsys.readouterr().out.splitlines()[-1]
    assert "not ok left out" in said
    outside = layout != "webdataset" and kind == "paths"
    assert (f"image paths start at {directories.images}" in said) == outside
    image_folder = None if layout == "webdataset" else directories.images if outside else output
    opened = open_annotated(source)
    rows = [row for row in numbered_rows(opened, range(opened.num_rows))
            if row.annotated.measured and len(row.annotated.measured.label_ids) > 6]  # fmt: skip
    found = samples_in(output, image_folder)
    assert len(found) == len(rows) > 5
    assert len(rows) < 24
    for row, (sample, images) in zip(rows, found, strict=True):
        assert sample.problem is None
        assert sample.messages == row.sample.messages
        assert images == row.image_files()
        assert layout == "webdataset" or sample.sample_id == row.sample.sample_id


def test_a_folder_of_images_that_is_not_there_is_said(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    command = ["filter", str(directories.paths), "TRUE", "--layout", "llava", "--image_folder", str(gone)]
    assert run([*command, "--output", str(tmp_path / "out")]) == EXIT_DONE
    assert f"image paths start at {gone}, which is not there" in capsys.readouterr().out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tools_reasoning_and_answers_that_are_not_learned_stay(
    layout: str, directories: Directories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_layouts, "_ROWS_PER_ARCHIVE", 2)
    image = next(directories.images.glob("*.png")).read_bytes()
    sample = Sample(sample_id="a/b.c", images=(ImageRef(data=image), ImageRef(data=image)), messages=tuple(TEXT),
                    tools=TOOLS)  # fmt: skip
    plain = Sample(sample_id="plain", images=(), messages=(TEXT[0], Turn(role="assistant", content="Yes.")))
    (tmp_path / "in").mkdir()
    with ShardWriter(tmp_path / "in" / "a.parquet", annotated_schema(carry="embedded"),
                     shard_metadata(carry="embedded")) as writer:  # fmt: skip
        for number, one in enumerate([sample, plain] * 3):
            writer.write(AnnotatedRow(sample=one, sample_key=str(number), measured=MEASURED, num_tokens=9))
    output = tmp_path / "out"
    assert run(["filter", str(tmp_path / "in"), "TRUE", "--layout", layout, "--output", str(output)]) == EXIT_DONE
    found = samples_in(output, None if layout == "webdataset" else output)
    assert len(found) == 6
    for (one, images), expected in zip(found, [sample, plain] * 3, strict=True):
        assert one.problem is None
        assert (one.messages, one.tools) == (expected.messages, expected.tools)
        assert images == [image] * len(expected.images)
    assert layout != "webdataset" or len(list(output.glob("*.tar"))) == 3


def test_an_image_that_is_gone_stops_it_and_leaves_nothing(
    directories: Directories, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "other").touch()
    command = ["filter", str(directories.paths), "TRUE", "--layout", "webdataset", "--image_folder",
               str(tmp_path / "none"), "--output", str(tmp_path / "out")]  # fmt: skip
    assert run(command) == EXIT_REFUSED
    assert "Restore its images (--image_folder)" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["none"]
