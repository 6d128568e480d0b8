"""Loader workers hand their batches over in shared memory: what does not fit there is refused, and never waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_trainer import cli, training
from cal_trainer.data.collator import ExampleCollator
from cal_trainer.data.dataset import AnnotatedExamples
from conftest import Family
from tiny_data import write_parquet
from trained import command, losses


@pytest.fixture
def annotated(tmp_path: Path, llava: Family) -> Path:
    shards = plan_shards([str(write_parquet(tmp_path / "data.parquet", 4))])
    return annotate(tmp_path / "annotated", shards, llava.encoder, llava.model)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real file system without a byte of room in place of /dev/shm."""
    monkeypatch.setattr("cal_trainer.data.shared_memory._SHM", Path("/proc"))


@pytest.mark.usefixtures("full")
def test_too_little_shared_memory_is_refused_by_the_flag_before_the_model_is_loaded(
    llava: Family, annotated: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    flags = ("--dataloader_num_workers", 3, "--dataloader_prefetch_factor", 4)
    assert cli.run(command(llava, annotated, tmp_path / "out", *flags)) == 2
    err = capfd.readouterr().err
    # A row of 3 x 42 x 42 floats and its tokens; 13 batches of 2.
    assert "--dataloader_num_workers 3" in err
    assert "0.0 MB free; 3 workers that read 4 batches of 2 rows ahead need about 0.6 MB" in err
    assert "--shm-size" in err


@pytest.mark.usefixtures("full")
def test_without_workers_nothing_is_handed_over(llava: Family, annotated: Path, tmp_path: Path) -> None:
    assert cli.run(command(llava, annotated, tmp_path / "out", "--max_steps", 1)) == 0
    assert len(losses(tmp_path / "out")) == 1


@pytest.mark.usefixtures("full")
def test_a_batch_that_does_not_fit_later_ends_the_run(llava: Family, annotated: Path, tmp_path: Path) -> None:
    examples = AnnotatedExamples(annotated, llava.encoder, cache_dir=tmp_path / "cache")
    collator = ExampleCollator(encoder=llava.encoder, dummy=examples.blank.encoded)
    assert len(collator([examples[0]])["labels"]) == 1
    with pytest.raises(ConfigError, match=r"does not fit into /proc, which has 0\.0 MB free"):
        next(iter(DataLoader(examples, batch_size=2, num_workers=1, collate_fn=collator)))
