"""Paths as people have them: what `datasets`, fsspec and Arrow read into a path is not in it."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotated_data import annotate
from cal_pipeline.inspect import cli as inspect_cli
from cal_pipeline.sources.planning import plan_shards
from cal_trainer import cli
from cal_trainer.data.dataset import AnnotatedExamples
from conftest import Family
from tiny_data import write_llava_json
from trained import command

NAMES = ["gzip::x/y", "-a b%20#?[x]*", "new\nline"]
MORE_NAMES = ["run::1", "~", "memory:", "zürich"]


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.full) for name in MORE_NAMES)])
def test_relative_paths_of_any_name_are_measured_inspected_and_trained(
    llava: Family, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir(parents=True)
    data, images = write_llava_json(folder, 6)
    annotate(folder.absolute() / "out", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)

    def train(*flags: str) -> int:
        return cli.run([
            "--model_name_or_path", str(llava.directory), "--use_cpu", "true", "--max_steps", "1", "--disable_tqdm",
            "true", f"--output_dir={tmp_path / name / 'trained'}", "--cache_dir", str(tmp_path / "cache"), *flags,
        ])  # fmt: skip

    assert train(f"--data_path={folder / 'out'}") == 0
    assert train(f"--source_path={data}", f"--image_folder={images}", "--delta_source", "uniform") == 0
    assert (folder / "trained" / "model.safetensors").is_file()
    assert inspect_cli.run(["filter", f"--output={folder / 'kept'}", "--", str(folder / "out"), "tokens > 0"]) == 0
    os.chdir(folder)
    assert train("--data_path", "kept", "--streaming", "true") == 0
    assert train("--data_path", "kept") == 0
    assert "Traceback" not in capfd.readouterr().err


def test_a_shard_that_was_written_anew_is_not_taken_from_the_old_copy(llava: Family, tmp_path: Path) -> None:
    (shard,) = plan_shards(*([str(path)] for path in write_llava_json(tmp_path, 6)))
    output, cache = tmp_path / "a::b", tmp_path / "cache"
    for beta in (0.0, 1.0):
        annotate(output, [shard], llava.encoder, llava.model)
        (file,) = output.glob("*.parquet")
        table = pq.read_table(file)
        rows = table.to_pylist()
        rows[0]["delta_logits"] = [beta] * len(rows[0]["delta_logits"])
        pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
        deltas = AnnotatedExamples(output, llava.encoder, cache_dir=cache)[0].deltas
        assert deltas[deltas.isfinite()].unique().tolist() == [beta]
        file.unlink()


def test_a_cache_that_datasets_could_not_open_is_refused_by_its_flag(
    llava: Family, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data, images = write_llava_json(tmp_path, 6)
    annotated = annotate(tmp_path / "out", plan_shards([str(data)], [str(images)]), llava.encoder, llava.model)
    (tmp_path / "file").write_text("")
    for cache, reason in (("c::d", "splits paths at ::"), ("file/c", "Not a directory")):
        flags = command(llava, annotated, tmp_path / "t", "--cache_dir", tmp_path / cache, "--max_steps", 1)
        assert cli.run(flags) == 2
        err = capfd.readouterr().err
        assert reason in err
        assert "--cache_dir" in err
        assert "Traceback" not in err
