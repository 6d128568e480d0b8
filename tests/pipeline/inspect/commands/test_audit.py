from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.with_model.audit import SwapReport, draw, swap_partners, swap_report
from cal_schemas.annotated import MeasuredSample
from cal_schemas.errors import TooLongError
from cal_schemas.spec import ContrastSpec
from conftest import Family
from inspected_data import conversations, llava_directory, measured, parquet_directory
from tiny_models import sample_image


def audited(path: Path, *flags: object) -> tuple[int, dict[str, Any]]:
    """Exit code and figures of an audit of every row."""
    report = path.parent / "audit.json"
    code = run(["audit", str(path), "--fraction", "1", "--json", str(report), "--device", "cpu", *map(str, flags)])
    assert (path / ".cal" / "audit.json").read_bytes() == report.read_bytes(), "kept for the page"
    return code, json.loads(report.read_text(encoding="utf-8"))


def rewrite(file: Path, column: str, change: Callable[[list[Any]], None]) -> None:
    """Changes values of one column of a shard, footer and all else kept."""
    table = pq.read_table(file)
    values = table.column(column).to_pylist()
    change(values)
    place = table.schema.get_field_index(column)
    pq.write_table(
        table.set_column(place, table.schema.field(column), pa.array(values, table.schema.types[place])), file
    )


def test_an_untouched_cache_agrees(llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = llava_directory(llava, tmp_path)
    code, found = audited(path, "--tokens_per_batch", 200)
    assert code == 0
    assert found["passed"]
    assert found["max_difference"] < 1e-4
    ok = [status for status in pq.read_table(path, columns=["status"])["status"].to_pylist() if status == "ok"]
    assert found["verdicts"] == {"agrees": len(ok)}
    # Random weights see the image and say nothing about it.
    assert found["swap"]["samples"] > 20
    printed = capsys.readouterr().out
    assert "The cache agrees" in printed
    assert ("WARNING: a swap control under 0.7" in printed) == (found["swap"]["auc"] < 0.7)


def test_a_part_is_drawn_by_the_seed_and_never_nothing(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet_directory(llava, tmp_path, count=12)
    for fraction, said in ((0.25, "3 of 3 rows are"), (1e-9, "1 of 1 row is")):
        assert run(["audit", str(path), "--fraction", str(fraction), "--swap", "0"]) == 0
        assert f"The cache agrees: {said} what is measured now." in capsys.readouterr().out
    candidates = np.arange(100)
    draws = [draw(candidates, 10, np.random.default_rng([seed, 0])).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 10


def test_a_changed_delta_is_found_and_its_row_is_named(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet_directory(llava, tmp_path, count=6)

    def change(deltas: list[Any]) -> None:
        deltas[4][2] += 0.01

    rewrite(path / "a.parquet", "delta_logits", change)
    code, found = audited(path, "--swap", 0)
    assert code == 1
    assert [item["sample_id"] for item in found["differing"]] == ["a-4"]
    assert found["max_difference"] == pytest.approx(0.01, rel=1e-2)
    printed = capsys.readouterr().out
    assert "row 4 (a-4): deltas: max difference 0.01 logits, tolerance 0.001" in printed
    assert "THE CACHE DOES NOT AGREE: 1 of 6 rows differ." in printed


def test_a_delta_that_is_defined_on_one_side_only_is_found(llava: Family, tmp_path: Path) -> None:
    path = parquet_directory(llava, tmp_path, count=3)
    rewrite(path / "a.parquet", "delta_logits", lambda deltas: deltas[0].__setitem__(0, None))
    code, found = audited(path, "--swap", 0)
    assert (code, found["verdicts"]) == (1, {"deltas": 1, "agrees": 2})


def test_an_edited_image_is_found(llava: Family, tmp_path: Path) -> None:
    path = measured(
        llava,
        tmp_path / "annotated",
        [conversations(tmp_path / "data", ["A red cat.", "A blue dog.", "A bus."])],
        tmp_path / "data" / "images",
        carry="paths",
    )
    Image.new("RGB", (48, 40), "black").save(tmp_path / "data" / "images" / "1.png")
    (tmp_path / "data" / "images" / "2.png").unlink()
    code, found = audited(path, "--swap", 0)
    assert code == 1
    assert {item["sample_id"]: item["verdict"] for item in found["differing"]} == {
        "row-1": "deltas",
        "row-2": "unmeasurable",
    }
    assert "not a file" in found["differing"][1]["reason"]


def test_an_edited_row_is_found_by_its_key(llava: Family, tmp_path: Path) -> None:
    path = parquet_directory(llava, tmp_path, count=4)

    def edit_image(images: list[Any]) -> None:
        images[1][0]["bytes"] = images[2][0]["bytes"]

    def edit_words(messages: list[Any]) -> None:
        messages[3][1]["content"] += " Also a bus."

    rewrite(path / "a.parquet", "images", edit_image)
    rewrite(path / "a.parquet", "messages", edit_words)
    code, found = audited(path, "--swap", 0)
    assert code == 1
    assert {item["sample_id"]: item["verdict"] for item in found["differing"]} == {"a-1": "sample", "a-3": "sample"}


def test_other_weights_are_found(llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = parquet_directory(llava, tmp_path, count=4)
    other = tmp_path / "trained_further"
    shutil.copytree(llava.directory, other)
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if "multi_modal_projector" in name and name.endswith("weight"))
    weights[name] = weights[name] * 1.2
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    code, found = audited(path, "--swap", 0, "--model_name_or_path", other)
    assert code == 1
    assert [item["field"] for item in found["spec_differences"]] == ["weights_digest"]
    assert found["verdicts"] == {"deltas": 4}
    assert "DIFFERS  weights_digest: the cache was made with" in capsys.readouterr().out


def test_another_tokenizer_and_template_are_found(llava: Family, tmp_path: Path) -> None:
    path = parquet_directory(llava, tmp_path, count=4)
    other = tmp_path / "retokenized"
    shutil.copytree(llava.directory, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    code, found = audited(path, "--swap", 0, "--model_name_or_path", other)
    assert code == 1
    assert [item["field"] for item in found["spec_differences"]] == ["label.tokenizer_digest"]
    assert found["verdicts"] == {"labels": 4}

    shutil.copytree(llava.directory, tmp_path / "retemplated")
    template = tmp_path / "retemplated" / "chat_template.jinja"
    template.write_text(
        template.read_text(encoding="utf-8").replace("ASSISTANT:", "ROBOT:").replace("upper()", "lower()")
    )
    code, found = audited(path, "--swap", 0, "--model_name_or_path", tmp_path / "retemplated")
    assert code == 1
    assert [item["field"] for item in found["spec_differences"]] == ["label.chat_template_digest"]


def test_a_model_that_is_nowhere_is_asked_for(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet_directory(llava, tmp_path, count=2)
    shutil.rmtree(path / ".cal" / "reports")
    assert run(["audit", str(path)]) == 2
    assert "name it with --model_name_or_path" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("name", ["llava_next", "gemma3", "paligemma", "idefics3"])
def test_every_family_agrees_and_swaps_although_images_take_different_numbers_of_tokens(
    name: str, family: Callable[[str], Family], tmp_path: Path
) -> None:
    reference = family(name)
    folder = tmp_path / "data"
    data = conversations(folder, [f"A {colour} car on the left." for colour in ("red", "blue", "green", "grey")])
    for number, size in enumerate(((120, 30), (30, 120), (64, 64), (40, 90))):
        sample_image(number, size).save(folder / "images" / f"{number}.png")
    path = measured(reference, tmp_path / "annotated", [data], folder / "images", carry="paths")
    code, found = audited(path)
    assert code == 0
    assert found["swap"]["samples"] == 4
    assert found["swap"]["skipped"] == 0


@pytest.mark.full
def test_half_precision_agrees_within_its_tolerance_in_other_batches(llava: Family, tmp_path: Path) -> None:
    import torch

    from cal_pipeline.models.loading import load_reference

    half = Family(
        name="llava",
        directory=llava.directory,
        model=load_reference(llava.directory, dtype="bfloat16"),
        encoder=llava.encoder,
    )
    assert half.model.dtype == torch.bfloat16
    path = parquet_directory(half, tmp_path, count=12, dtype="bfloat16")
    for budget in (30, 4096):
        code, found = audited(path, "--tokens_per_batch", budget, "--swap", 0)
        assert code == 0, found
    assert found["precision"] == "bfloat16"


def test_a_cache_of_an_unknown_format_is_refused(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet_directory(llava, tmp_path, count=1, dtype="float64")
    assert run(["audit", str(path)]) == 2
    assert "measured in 'float64', which this version does not know" in capsys.readouterr().err


def test_a_sidecar_is_audited_through_its_source_and_a_changed_source_is_refused(
    llava: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet_directory(llava, tmp_path, count=6)
    source = tmp_path / "data" / "a.parquet"
    sidecar = measured(llava, tmp_path / "sidecar", [source], carry="none")
    code, found = audited(sidecar)
    assert (code, found["verdicts"], found["swap"]["samples"]) == (0, {"agrees": 6}, 6)
    pq.write_table(pq.read_table(source).slice(1), source)
    assert run(["audit", str(sidecar)]) == 2
    assert "the deltas are of an older source" in capsys.readouterr().err


def measured_sample(*deltas: float) -> MeasuredSample:
    count = len(deltas)
    values = np.array(deltas, np.float32)
    return MeasuredSample(
        label_ids=np.arange(count, dtype=np.int32),
        label_positions=np.arange(count, dtype=np.int32),
        delta_logits=values,
        logits_with_image=values,
        logits_without_image=values,
    )


def test_the_swap_control_by_hand() -> None:
    own = [measured_sample(2.0, 4.0), measured_sample(np.nan, 1.0), measured_sample(0.5), measured_sample(9.0)]
    other = [measured_sample(0.0, 1.0), measured_sample(np.nan, 1.0), measured_sample(2.0), TooLongError("too long")]
    report = swap_report(own, other)
    np.testing.assert_allclose(report.own, [3.0, 1.0, 0.5])
    np.testing.assert_allclose(report.other, [0.5, 1.0, 2.0])
    assert report.skipped == 1
    # Of nine pairs own > other: 3 beats all three; 1 beats 0.5 and ties with 1; 0.5 ties with 0.5.
    assert report.auc == pytest.approx((3 + 1.5 + 0.5) / 9)
    assert report.win_share == pytest.approx((1 + 0.5 + 0) / 3)
    # An image that takes more room may cut the end of the words: the common ones are compared.
    cut = swap_report([measured_sample(1.0, 2.0, 30.0)], [measured_sample(0.0, 1.0)])
    np.testing.assert_allclose([cut.own[0], cut.other[0]], [1.5, 0.5])


def test_the_swap_control_of_a_perfect_and_of_a_blind_reference() -> None:
    rng = np.random.default_rng(0)
    perfect = SwapReport(own=rng.random(50) + 1, other=rng.random(50), skipped=0)
    assert (perfect.auc, perfect.win_share) == (1.0, 1.0)
    same = rng.random(50)
    assert (SwapReport(own=same, other=same, skipped=0).auc, SwapReport(own=same, other=same, skipped=0).win_share) == (
        0.5,
        0.5,
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.integers(0, 5))
def test_nobody_keeps_a_image_and_nobody_lends_twice(digests: list[str], seed: int) -> None:
    pairs = swap_partners(digests, np.random.default_rng(seed))
    assert all(digests[own] != digests[lender] for own, lender in pairs)
    assert len({own for own, _ in pairs}) == len(pairs) == len({lender for _, lender in pairs})
    most = max((digests.count(digest) for digest in digests), default=0)
    assert len(pairs) == min(len(digests), 2 * (len(digests) - most))


@pytest.mark.parametrize(
    "flags", [["--fraction", "0"], ["--fraction", "1.5"], ["--swap", "-1"], ["--tokens_per_batch", "0"]]
)
def test_an_audit_that_makes_no_sense_is_refused(flags: list[str], tmp_path: Path) -> None:
    assert run(["audit", str(tmp_path), *flags]) == 2


@pytest.mark.full
@pytest.mark.parametrize(
    "contrast",
    [
        ContrastSpec(condition="mask"),
        ContrastSpec(condition="patch_mask", patch_mask_ratio=0.5),
        ContrastSpec(condition="gaussian_blur", blur_sigma=10.0),
    ],
)
def test_every_contrast_agrees(contrast: ContrastSpec, llava: Family, tmp_path: Path) -> None:
    path = parquet_directory(llava, tmp_path, count=6, contrast=contrast)
    code, found = audited(path)
    assert (code, found["verdicts"], found["swap"]["samples"]) == (0, {"agrees": 6}, 6)
