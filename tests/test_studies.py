"""The study's worlds, statistics and record; its committed results come from their seeds, and its page from them."""

from __future__ import annotations

import dataclasses
import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import adaptive
import arm_tables
import comparison
import estimates
import repeated
import report
import results
import run
import world
import worlds
from arms import ARMS, NOISE_ARMS, NOISES, Arm
from cal_schemas.presets import PRESETS
from cal_schemas.sample import ImageRef
from commands import kept_encodings
from condition import GENERATED, MAIN_NOISE, REFERENCES, Measurement, Run
from conftest import Family
from examples_of import conversation


@pytest.mark.parametrize("name", GENERATED)
def test_words_are_correlated_exactly_when_they_are_true_of_the_image(name: str) -> None:
    for sample in worlds.draw(name, 200, seed=5, noise=0.3):
        written, true = sample.caption.split(), sample.clean_caption.split()
        for word, right, kind in zip(written, true, sample.word_kinds, strict=True):
            assert (word != right) == (kind == "contradictory"), sample
    clean = worlds.draw(name, 200, seed=5)
    assert all("contradictory" not in sample.word_kinds and "correlated" in sample.word_kinds for sample in clean)


@pytest.mark.parametrize("name", GENERATED)
def test_noise_exchanges_images_and_nothing_else(name: str) -> None:
    clean, some, more = (worlds.draw(name, 100, seed=3, noise=noise) for noise in (0.0, 0.1, 0.3))
    assert [sample.caption for sample in clean] == [sample.caption for sample in more]
    moved = [
        {place for place in range(100) if drawn[place].image_png != clean[place].image_png} for drawn in (some, more)
    ]
    assert [len(places) for places in moved] == [10, 30]
    assert moved[0] < moved[1]
    assert sorted(sample.image_png for sample in more) == sorted(sample.image_png for sample in clean)


def test_a_paired_mean_has_student_s_interval() -> None:
    # sd = sqrt(5 / 3), t(3) = 3.18245: 2.5 -+ 3.18245 * 1.29099 / 2
    mean = estimates.mean([1.0, 2.0, 3.0, 4.0])
    assert (mean.value, mean.count) == (2.5, 4)
    assert (mean.low, mean.high) == pytest.approx((0.44575, 4.55425), abs=1e-4)
    assert mean.excludes_zero
    assert estimates.mean([1.0]).low == -math.inf


def test_intervals_of_several_comparisons_hold_together() -> None:
    # t(3) of 1 - 0.05 / 2 / 10 is 7.45332.
    assert estimates.mean([1.0, 2.0, 3.0, 4.0], 10).low == pytest.approx(2.5 - 7.45332 * 1.290994 / 2, abs=1e-5)
    run_of = {label: Run(world="shapes", seed=0, **fields) for label, fields in ARMS["quick"].groups["p = 0.3"].items()}
    rows = {
        dataclasses.replace(one, seed=seed).key: {"nll": value + seed * step, "accuracy": 0.5, "text_nll": math.nan}
        for (_, one), value, step in zip(run_of.items(), (1.0, 0.9, 0.8), (0.0, 0.01, 0.02), strict=True)
        for seed in range(4)
    }
    plain, corrected = (
        {
            line.label: line.gain
            for line in comparison.lines(dataclasses.replace(ARMS["quick"], corrected=wide), "shapes", rows)
        }
        for wide in (False, True)
    )
    assert plain["uniform"] is None
    for label in ("online", "final"):
        narrow, wide = plain[label], corrected[label]
        assert narrow is not None
        assert wide is not None
        assert wide.value == narrow.value
        # Two comparisons: t(3) of 1 - 0.0125 is 4.17653 in 3.18245's place.
        assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(4.17653 / 3.18245, abs=1e-5)


def test_adapted_deltas_follow_the_sample_s_range_the_data_s_or_the_entropy(tmp_path: Path) -> None:
    deltas = [[0.0, 1.0, None, 2.0, 10.0], [4.0, 4.0], []]
    entropies = [[1.0, 2.0, None, 3.0, 0.0], [2.0, 4.0], []]
    lists = pa.list_(pa.float32())
    table = pa.table(
        {
            "delta_logits": pa.array(deltas, lists),
            "entropy_with_image": pa.array(entropies, lists),
            "kept": ["a", "b", "c"],
        }
    )
    (tmp_path / "measured").mkdir()
    pq.write_table(table, tmp_path / "measured" / "part.parquet")
    found = {}
    for by in ("data", "sample", "entropy"):
        adaptive.write(tmp_path / "measured", tmp_path / by, by)
        written = pq.read_table(tmp_path / by / "part.parquet")
        assert written.drop_columns("delta_logits").equals(table.drop_columns("delta_logits"))
        found[by] = written.column("delta_logits").to_pylist()
    # Of 0, 1, 2, 10 the median is 1.5, nine in ten are below 7.6; of all six 3 and 7.
    assert found["sample"][0] == pytest.approx([0.2, 0.2, None, 0.2 + 0.8 * 0.5 / 6.1, 1.0], abs=1e-6)
    assert found["sample"][1:] == [pytest.approx([0.2, 0.2]), []]
    assert found["data"][0] == pytest.approx([0.2, 0.2, None, 0.2, 1.0], abs=1e-6)
    assert found["data"][1] == pytest.approx([0.4, 0.4], abs=1e-6)
    # The mean entropy is 2.
    assert found["entropy"][0] == pytest.approx([0.2, 1.0, None, 1.5, 0.2], abs=1e-6)
    assert found["entropy"][1] == pytest.approx([1.0, 2.0], abs=1e-6)


def test_the_arm_of_scores_runs_presets_as_they_are() -> None:
    for title, conditions in ARMS["scores"].groups.items():
        names = {"vppo", "dft", "focal"} | ({"vig", "pgpo", "vepo", "rho1"} if "larger" in title else set())
        assert names == conditions.keys() & PRESETS.keys()
        for name in names:
            fields = conditions[name]
            assert (fields["score"], fields["map"]) == (PRESETS[name].score, PRESETS[name].map)
            assert fields["noise"] == (0.0 if "p = 0," in title else MAIN_NOISE)
        assert next(iter(conditions)) == title.split(",")[0]


def test_a_share_has_fieller_s_interval() -> None:
    # A whole without spread only scales the mean's interval.
    share = estimates.share([1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0])
    assert (share.value, share.low, share.high) == pytest.approx((0.5, 0.44575 / 5, 4.55425 / 5), abs=1e-4)
    # Gains that are half of the whole in every pair leave nothing else to be possible.
    exact = estimates.share([2.5, 3.0, 3.5], [5.0, 6.0, 7.0])
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    # A whole that may be 0 bounds nothing: mean 1, t(2) * 2 / sqrt(3) = 4.97.
    assert estimates.share([1.0, 2.0, 3.0], [-1.0, 1.0, 3.0]).high == math.inf


def test_rank_correlation_needs_two_ranks() -> None:
    assert estimates.rank_correlation([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert math.isnan(estimates.rank_correlation([1, 1, 1], [1, 2, 3]))


def test_arms_share_their_runs(tmp_path: Path) -> None:
    (unit,) = run.missing(["noise", "reference", "swap"], ["shapes"], 1, set(), tmp_path)
    runs = [item for item in unit.todo if isinstance(item, Run)]
    assert len(runs) == 3 * len(("uniform", "online", "initial", "final")) + 2 + len(REFERENCES)
    assert len(unit.todo) == len(runs) + len(REFERENCES)
    assert not run.missing(["reference"], ["shapes"], 1, {item.key for item in unit.todo}, tmp_path)


def test_an_arm_runs_in_its_own_worlds_unless_another_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = dataclasses.replace(ARMS["quick"], worlds=("charts",))
    monkeypatch.setitem(ARMS, "quick", alone)
    monkeypatch.setitem(ARMS, "contrast", dataclasses.replace(ARMS["contrast"], worlds=("shapes",)))
    own, named = (run.missing(["quick", "contrast"], worlds, 1, set(), tmp_path) for worlds in (None, ["shapes"]))
    contrasts = {"drop", "mask", "patch_mask 0.5", "patch_mask 0.7", "patch_mask 0.9", "gaussian_blur 1",
                 "gaussian_blur 10"}  # fmt: skip
    assert [(unit.world, {item.contrast for item in unit.todo}) for unit in own] == [
        ("shapes", contrasts), ("charts", {"drop"}),
    ]  # fmt: skip
    assert [unit.world for unit in named] == ["shapes"]
    assert set(alone.runs("shapes", 0)) <= set(named[0].todo)


def test_the_page_has_an_arm_s_own_worlds_and_a_look_has_what_ran() -> None:
    fields = ARMS["quick"].groups[f"p = {MAIN_NOISE:g}"].values()
    runs = {
        Run(world="shapes", seed=seed, **one).key: {"nll": 1.0, "accuracy": 0.5, "text_nll": math.nan}
        for seed in range(2)
        for one in fields
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARMS, "quick", dataclasses.replace(ARMS["quick"], worlds=("charts",)))
        own, all_that_ran = (arm_tables.tables_of(["quick"], runs, {}, elsewhere=one)["quick"] for one in (False, True))
    assert "shapes" not in own
    assert "charts: not run" in own
    assert "World of shapes:\n\n|" in all_that_ran


def test_every_reference_is_tried_at_every_noise(tmp_path: Path) -> None:
    (unit,) = run.missing(NOISE_ARMS, ["shapes"], 1, set(), tmp_path)
    tried = {(item.noise, item.weights, item.reference) for item in unit.todo if isinstance(item, Run)}
    sources = [("uniform", ""), ("online", ""), *(("cached", name) for name in REFERENCES)]
    assert tried == {(noise, *source) for noise in NOISES for source in sources}


def test_every_arm_has_eight_seeds_and_conditions_that_can_be_run() -> None:
    for name, chosen in ARMS.items():
        assert chosen.seeds >= 8 or name == "quick"
        assert len({item.key for item in chosen.runs("charts", 0)}) >= 2
        assert not chosen.gain_of or all(chosen.gain_of in conditions for conditions in chosen.groups.values())


def test_conditions_are_compared_over_the_seeds_that_have_both() -> None:
    uniform, online = ({"noise": MAIN_NOISE, "weights": weights} for weights in ("uniform", "online"))
    values = {"uniform": [1.5, 1.6, 1.7], "online": [1.4, 1.3]}
    rows = {
        Run(world="shapes", seed=seed, **fields).key: {"nll": value, "accuracy": 0.5, "text_nll": math.nan}
        for name, fields in (("uniform", uniform), ("online", online))
        for seed, value in enumerate(values[name])
    }
    small = Arm(question="?", groups={"g": {"uniform": uniform, "online": online}}, gain_of="online")
    first, second = comparison.lines(small, "shapes", rows)
    assert (first.nll, first.gain) == (estimates.mean([1.5, 1.6, 1.7]), None)
    assert second.gain == estimates.mean([1.5 - 1.4, 1.6 - 1.3])
    assert second.accuracy_gain == estimates.mean([0.0, 0.0])


@pytest.mark.parametrize(("online", "share"), [(1.0, 0.5), (3.0, None)])
def test_there_is_a_share_of_a_gain_and_none_of_a_loss(online: float, share: float | None) -> None:
    cached = {"noise": MAIN_NOISE, "weights": "cached", "reference": "final"}
    nlls = {"uniform": 2.0, "online": online, "final": 1.5}
    conditions = {name: cached if name == "final" else {"noise": MAIN_NOISE, "weights": name} for name in nlls}
    rows = {
        Run(world="shapes", seed=seed, **fields).key: {"nll": nlls[name], "accuracy": 0.5, "text_nll": math.nan}
        for seed in range(3)
        for name, fields in conditions.items()
    }
    small = Arm(question="?", groups={"g": conditions}, gain_of="online")
    shown = list(comparison.lines(small, "shapes", rows))[-1].share
    assert shown is None if share is None else shown is not None and shown.value == pytest.approx(share)


def test_the_page_shows_the_committed_results() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    runs, measurements = (comparison.rows_by_key(table.read()) for table in (results.runs(), results.measurements()))
    tables = arm_tables.page_tables(runs, measurements)
    assert all(f"<!-- table: {name} -->" in page for name in tables)
    assert report.written(page, tables) == page, "run python studies/report.py"
    assert "@@" not in page, "a place that was left to be filled"


def test_every_arm_has_a_table_of_its_own_to_print() -> None:
    runs, measurements = (comparison.rows_by_key(table.read()) for table in (results.runs(), results.measurements()))
    tables = arm_tables.tables_of(list(ARMS), runs, measurements)
    assert sorted(tables) == sorted(ARMS)
    assert all("World of shapes" in table for table in tables.values())


@pytest.mark.parametrize("table", [results.runs(), results.measurements()], ids=lambda table: table.path.stem)
def test_committed_rows_are_keyed_by_what_they_are(table: results.Table) -> None:
    for row in table.read().to_dict("records"):
        assert table.item(row).key == row["key"], row


COMPARED = ("uniform", "online", "final")


@pytest.mark.full
def test_a_committed_arm_comes_from_its_seeds(tmp_path: Path) -> None:
    flags = ["--world", "shapes", "--seeds", "1", "--results_dir", str(tmp_path), "--scratch_dir", str(tmp_path)]
    command = [sys.executable, str(run.__file__), "reference", "--only", *COMPARED, *flags]
    subprocess.run(command, check=True, timeout=600)
    differences = repeated.differences(results.runs(tmp_path), results.runs(), ("nll", "accuracy"))
    assert [(one.item.reference or one.item.weights) for one in differences if isinstance(one.item, Run)] == list(
        COMPARED
    )
    assert repeated.compare(tmp_path, results.RESULTS) == 0


def test_kept_encodings_are_those_that_the_encoder_makes(llava: Family) -> None:
    drawn = worlds.draw("shapes", 2, seed=1)
    images = [Image.open(io.BytesIO(sample.image_png)) for sample in drawn]
    texts = [conversation(*(turn["content"] for turn in sample.messages), images=(ImageRef(data=b"", path=None),))
            for sample in drawn]  # fmt: skip
    pairs = [(text, image) for text in texts for image in images]  # the same words with other pixels too
    made = [llava.encoder(text, [image]) for text, image in pairs]
    with kept_encodings():
        for _ in range(2):
            for wanted, (text, image) in zip(made, pairs, strict=True):
                kept = llava.encoder(text, [image])
                one, other = ({**item.sequence_inputs, **item.image_inputs} for item in (wanted, kept))
                assert one.keys() == other.keys()
                assert all(torch.equal(one[name], other[name]) for name in one)
                assert torch.equal(wanted.labels, kept.labels)


def test_a_second_answer_is_of_the_same_scene_and_changes_nothing_else(tmp_path: Path) -> None:
    samples = worlds.draw("shapes", 4, seed=1, noise=0.5)
    worlds.write(samples, [], tmp_path / "one")
    worlds.write(samples, [], tmp_path / "two", worlds.earlier_answers("shapes", 4, seed=1))
    one, two = (pd.read_parquet(tmp_path / name).to_dict("records") for name in ("one", "two"))
    scenes = {sample.sample_id: sample.scene for sample in worlds.draw("shapes", 4, seed=1)}
    for single, double in zip(one, two, strict=True):
        asked, answer, asked_again, last = double.pop("messages")
        question, only = single.pop("messages")
        assert [turn["role"] for turn in (asked, answer, asked_again, last)] == ["user", "assistant"] * 2
        assert asked["content"].startswith("<image>\n")
        assert "<image>\n" + asked_again["content"] == question["content"]
        assert last == only
        words = set(answer["content"].lower().rstrip(".").split())
        said = words & {*world.COLOURS, *world.SHAPES, *world.SIZES}
        assert said
        assert said <= set(dataclasses.asdict(scenes[single["id"]]).values())
        assert list(single["word_kinds"]) == list(double["word_kinds"])


def test_a_measurement_belongs_to_its_run() -> None:
    one = Run(world="charts", seed=2, noise=0.1, weights="cached", reference="final", contrast="mask")
    assert one.measurement == Measurement(world="charts", seed=2, noise=0.1, reference="final", contrast="mask")
    assert np.isclose(one.measurement.noise, 0.1)
