import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import AlignmentError, ConfigError, FormatError
from cal_schemas.metadata import Carry
from cal_trainer.data.dataset import AnnotatedExamples
from cal_trainer.data.factory import make_dataset, train_sampler, validate_rows
from cal_trainer.data.sampling import EpochSampler, StepShape
from cal_trainer.data.sidecar import SidecarExamples
from cal_trainer.data.source import SourceExamples
from cal_trainer.data.streaming import StreamedExamples, StreamSampler
from conftest import Family
from tiny_data import write_llava_json, write_parquet

SHAPE = StepShape(batch_size=2)


@pytest.fixture(scope="module")
def paths(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("opening")
    source = str(write_parquet(folder / "raw" / "p.parquet", 3))
    return annotate(folder / "out", plan_shards([source]), llava.encoder, llava.model), source


def test_flags_decide_the_dataset_and_its_sampler(llava: Family, paths: tuple[Path, str], tmp_path: Path) -> None:
    annotated, source = paths
    found = [
        make_dataset(annotated, llava.encoder, cache_dir=tmp_path),
        make_dataset(annotated, llava.encoder, cache_dir=tmp_path, source_paths=[source]),
        make_dataset(None, llava.encoder, cache_dir=tmp_path, source_paths=[source], use_deltas=False),
        make_dataset(annotated, llava.encoder, streaming=True),
    ]
    assert [type(item) for item in found] == [AnnotatedExamples, SidecarExamples, SourceExamples, StreamedExamples]
    samplers = [train_sampler(item, SHAPE, group_by="none", seed=0) for item in found]
    assert [type(item) for item in samplers] == [EpochSampler] * 3 + [StreamSampler]
    assert [len(item) for item in samplers] == [4] * 4


def test_an_image_folder_that_is_not_there_is_refused(llava: Family, paths: tuple[Path, str]) -> None:
    with pytest.raises(ConfigError, match="/nowhere: no such directory"):
        make_dataset(paths[0], llava.encoder, image_folders=["/nowhere"])


def test_images_that_moved_show_at_the_first_look_though_a_row_of_text_comes_first(
    llava: Family, tmp_path: Path
) -> None:
    data, images = write_llava_json(tmp_path, 4)
    rows = json.loads(data.read_text())
    text = {"id": "text", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    data.write_text(json.dumps([text, *rows]))
    shards = plan_shards([str(data)], [str(images)])
    annotated = annotate(tmp_path / "out", shards, llava.encoder, llava.model, carry="paths")
    images.rename(tmp_path / "moved")
    examples = make_dataset(annotated, llava.encoder, cache_dir=tmp_path / "cache")
    assert not examples[0].unusable
    with pytest.raises(AlignmentError, match="say where they are now"):
        validate_rows(examples)
    moved = make_dataset(
        annotated, llava.encoder, cache_dir=tmp_path / "cache", image_folders=[str(tmp_path / "moved")]
    )
    validate_rows(moved)


def test_a_cross_fit_trains_each_row_on_the_deltas_of_the_reference_that_measured_it(
    llava: Family, tmp_path: Path
) -> None:
    other = copy.deepcopy(llava.model)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(2)  # doubles every logit, and so every delta
    halves = [str(write_parquet(tmp_path / "halves" / f"{seed}.parquet", 3, seed=seed)) for seed in (0, 10)]
    whole = annotate(tmp_path / "whole", plan_shards(halves), llava.encoder, llava.model)
    first = annotate(tmp_path / "first", plan_shards(halves[:1]), llava.encoder, llava.model)
    second = annotate(tmp_path / "second", plan_shards(halves[1:]), llava.encoder, other, weights_digest="other")
    for options in ({}, {"streaming": True}, {"source_paths": halves}):
        with pytest.raises(FormatError, match=r"weights_digest is 'w' in .*a cross-fit: --crossfit true"):
            make_dataset([first, second], llava.encoder, cache_dir=None, **options)
    one = make_dataset(whole, llava.encoder, cache_dir=tmp_path / "cache")
    wanted = [one[row].deltas * (1 if row < len(one) // 2 else 2) for row in range(len(one))]
    for options in ({}, {"streaming": True}, {"source_paths": halves}):
        both = make_dataset([first, second], llava.encoder, cache_dir=tmp_path / "cache", crossfit=True, **options)
        assert len(both) == len(wanted)
        for row, deltas in enumerate(wanted):
            assert torch.allclose(both[row].deltas, deltas, atol=1e-5, equal_nan=True), (options, row)


@pytest.mark.parametrize("reader", ["mapped", "streamed", "sidecar"])
def test_a_cross_fit_whose_references_measured_copies_of_one_file_is_refused_in_any_order(
    llava: Family, tmp_path: Path, reader: str
) -> None:
    first = write_parquet(tmp_path / "first.parquet", 3)
    copied = Path(shutil.copy(first, tmp_path / "copied.parquet"))
    carry: Carry = "none" if reader == "sidecar" else "images"
    options: dict[str, dict[str, Any]] = {"mapped": {}, "streamed": {"streaming": True},
                                          "sidecar": {"source_paths": [str(first)]}}  # fmt: skip
    directories = [
        annotate(tmp_path / name, plan_shards([str(data)]), llava.encoder, llava.model, carry=carry,
                 model_id=name, weights_digest=name)
        for name, data in (("one", first), ("two", copied))
    ]  # fmt: skip
    for order in (directories, directories[::-1]):
        with pytest.raises(
            FormatError, match=r"'first-0', one of 3 such, was measured by .*one.* and by .*two|two.* and by .*one"
        ):
            make_dataset(order, llava.encoder, cache_dir=tmp_path, crossfit=True, **options[reader])
