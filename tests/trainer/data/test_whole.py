"""Incomplete, damaged and doctored shards in training: each way of reading refuses, in one line that names them."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cal_schemas.errors import ConfigError, FormatError
from cal_trainer.config import Quantile
from cal_trainer.data.dataset import AnnotatedExamples
from cal_trainer.data.sidecar import SidecarExamples
from cal_trainer.data.streaming import StreamedExamples
from cal_trainer.run.bounds import resolve_bounds
from conftest import Family
from damage import flip_a_byte, flip_a_page_header, put_in, rewrite, whole_output

Read = Callable[[Path], Any]


@pytest.fixture(scope="module")
def whole(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_output(tmp_path_factory.mktemp("whole"), llava)


@pytest.fixture
def output(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.fixture(params=["mapped", "streamed", "sidecar", "bounds"])
def read(request: pytest.FixtureRequest, llava: Family, whole: Path, tmp_path: Path) -> Read:
    """Reads all rows as that way of training does; takes the directory and `partial`."""

    def rows(examples: Any) -> int:
        return sum(1 for row in range(len(examples)) if examples[row])

    def mapped(path: Path, **options: Any) -> int:
        return rows(AnnotatedExamples(path, llava.encoder, cache_dir=tmp_path / "cache", **options))

    def streamed(path: Path, **options: Any) -> int:
        return rows(StreamedExamples(path, llava.encoder, **options))

    def sidecar(path: Path, **options: Any) -> int:
        source = [str(whole.parent / "raw" / "data.json")]
        missing = "uniform" if options else "error"
        return rows(
            SidecarExamples(path, source, llava.encoder, cache_dir=tmp_path / "cache", on_missing=missing, **options)  # type: ignore[arg-type]
        )

    def bounds(path: Path, **options: Any) -> int:
        return len(resolve_bounds({"alpha": 0.0, "beta": Quantile(0.9)}, [path], None, **options))

    return {"mapped": mapped, "streamed": streamed, "sidecar": sidecar, "bounds": bounds}[request.param]


def test_shards_that_are_missing_are_refused_unless_part_of_them_is_asked_for(
    read: Any, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read(output)
    gone = min(output.glob("*.parquet"))
    gone.unlink()
    with pytest.raises(ConfigError) as caught:
        read(output)
    said = f"{output} is not whole: 1 of 3 planned shards with 10 of 30 rows are not there ({gone})"
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("To train on what is there: --partial")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert read(output, partial=True)
    assert said in caplog.text


def test_rows_that_somebody_took_out_are_refused_too(read: Any, output: Path) -> None:
    file = max(output.glob("*.parquet"))
    rewrite(file, pq.read_table(file).slice(0, 6))
    with pytest.raises(ConfigError, match=rf"{file} has 6 rows, its source gave 10"):
        read(output)
    assert read(output, partial=True)


def test_a_flipped_byte_is_refused_in_one_line_that_names_the_shard(read: Any, output: Path) -> None:
    file = flip_a_byte(max(output.glob("*.parquet")))
    with pytest.raises(FormatError, match=rf"^{file} is damaged: ") as caught:
        read(output)
    assert "\n" not in str(caught.value)


def test_rows_that_a_broken_page_header_hides_are_missed_by_the_name_of_their_shard(read: Any, output: Path) -> None:
    file = flip_a_page_header(max(output.glob("*.parquet")))
    with pytest.raises(FormatError, match=rf"^{file} is damaged: .*0 of 10 rows can be read|expected length 10"):
        read(output)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_by_file_and_row(read: Any, output: Path, value: float) -> None:
    file = max(output.glob("*.parquet"))
    row = next(number for number, ids in enumerate(pq.read_table(file)["label_ids"].to_pylist()) if ids)
    put_in(file, value, row)
    with pytest.raises(FormatError, match=rf"^{file}: row {row} .*holds (nan|inf) in delta_logits"):
        read(output)


def test_nan_is_refused_before_a_row_is_read_for_training(llava: Family, output: Path, tmp_path: Path) -> None:
    put_in(max(output.glob("*.parquet")), float("nan"))
    with pytest.raises(FormatError, match=r"row 0 .*holds nan in delta_logits"):
        AnnotatedExamples(output, llava.encoder, cache_dir=tmp_path / "cache")


def test_a_verified_copy_is_made_once(llava: Family, output: Path, tmp_path: Path) -> None:
    for _ in range(2):
        AnnotatedExamples(output, llava.encoder, cache_dir=tmp_path / "cache")
        copies = list((tmp_path / "cache").rglob("*.arrow"))
        assert len(copies) == 1
