"""The study's worlds, statistics and record; its committed results come from their seeds, and its page from them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import arm
import comparison
import paired
import report
import results
import run
import worlds
from arms.noise import FEW
from condition import MAIN_NOISE, REFERENCES, Measurement, Run
from unit import Unit, work

TOLERANCE = 0.03
"""In nats, of about 1.2: other processors round differently, and two hundred steps amplify it."""


@pytest.mark.parametrize("name", worlds.WORLDS)
def test_words_are_correlated_exactly_when_they_are_true_of_the_picture(name: str) -> None:
    for sample in worlds.draw(name, 200, seed=5, noise=0.3):
        told, true = sample.caption.split(), sample.clean_caption.split()
        for word, right, kind in zip(told, true, sample.word_kinds, strict=True):
            assert (word != right) == (kind == "contradictory"), sample
    clean = worlds.draw(name, 200, seed=5)
    assert all("contradictory" not in sample.word_kinds and "correlated" in sample.word_kinds for sample in clean)


@pytest.mark.parametrize("name", worlds.WORLDS)
def test_noise_exchanges_pictures_and_nothing_else(name: str) -> None:
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
    found = paired.mean([1.0, 2.0, 3.0, 4.0])
    assert (found.value, found.count) == (2.5, 4)
    assert (found.low, found.high) == pytest.approx((0.44575, 4.55425), abs=1e-4)
    assert found.excludes_zero
    assert paired.mean([1.0]).low == -math.inf


def test_a_share_has_fieller_s_interval() -> None:
    # A whole without spread only scales the mean's interval.
    found = paired.share([1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0])
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.44575 / 5, 4.55425 / 5), abs=1e-4)
    # Gains that are half of the whole in every pair leave nothing else to be possible.
    exact = paired.share([2.5, 3.0, 3.5], [5.0, 6.0, 7.0])
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    # A whole that may be 0 bounds nothing: mean 1, t(2) * 2 / sqrt(3) = 4.97.
    assert paired.share([1.0, 2.0, 3.0], [-1.0, 1.0, 3.0]).high == math.inf


def test_rank_correlation_needs_two_ranks() -> None:
    assert paired.rank_correlation([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)
    assert math.isnan(paired.rank_correlation([1, 1, 1], [1, 2, 3]))


def test_a_condition_is_keyed_by_what_it_is() -> None:
    one = Run(world="shapes", seed=0, noise=0.3, weights="uniform")
    assert one.key == Run(world="shapes", seed=0, noise=0.3, weights="uniform", alpha="0.2").key
    assert one.key != Run(world="shapes", seed=1, noise=0.3, weights="uniform").key
    with pytest.raises(ValueError, match="reference"):
        Run(world="shapes", seed=0, noise=0.3, weights="cached")


def test_arms_share_their_runs(tmp_path: Path) -> None:
    (unit,) = run.missing(["noise", "reference", "swap"], ["shapes"], 1, set(), tmp_path)
    runs = [item for item in unit.todo if isinstance(item, Run)]
    assert len(runs) == 3 * (2 + len(FEW)) + 2 + len(REFERENCES)
    assert len(unit.todo) == len(runs) + len(REFERENCES)
    assert not run.missing(["reference"], ["shapes"], 1, {item.key for item in unit.todo}, tmp_path)


def test_every_arm_has_eight_seeds_and_conditions_that_can_be_run() -> None:
    for name in arm.ARMS:
        chosen = arm.load(name)
        assert chosen.seeds >= 8 or name == "quick"
        assert len({item.key for item in chosen.runs("charts", 0)}) >= 2
        assert not chosen.gain_of or all(chosen.gain_of in conditions for conditions in chosen.groups.values())


def test_a_killed_study_leaves_whole_rows(tmp_path: Path) -> None:
    table = results.runs(tmp_path)
    one = Run(world="shapes", seed=0, noise=0.3, weights="cached", reference="initial")
    table.add(one, {"accuracy": 0.5, "nll": 1.25, "drift_log": [(0, 0.9, 0.1)]})
    with table.path.open("a") as file:
        file.write("abc,shapes,0")
    again = results.runs(tmp_path)
    assert again.keys() == {one.key}
    (row,) = again.read().to_dict("records")
    assert (row["accuracy"], row["nll"], row["alpha"], row["drift_log"]) == (0.5, 1.25, "0.2", "[[0, 0.9, 0.1]]")
    assert math.isnan(row["text_nll"])


def test_conditions_are_compared_over_the_seeds_that_have_both() -> None:
    uniform, online = ({"noise": MAIN_NOISE, "weights": weights} for weights in ("uniform", "online"))
    values = {"uniform": [1.5, 1.6, 1.7], "online": [1.4, 1.3]}
    rows = {
        Run(world="shapes", seed=seed, **fields).key: {"nll": value, "accuracy": 0.5, "text_nll": math.nan}
        for name, fields in (("uniform", uniform), ("online", online))
        for seed, value in enumerate(values[name])
    }
    small = arm.Arm(question="?", groups={"g": {"uniform": uniform, "online": online}}, gain_of="online")
    first, second = comparison.lines(small, "shapes", rows)
    assert (first.nll, first.gain) == (paired.mean([1.5, 1.6, 1.7]), None)
    assert second.gain == paired.mean([1.5 - 1.4, 1.6 - 1.3])
    assert second.accuracy_gain == paired.mean([0.0, 0.0])


def test_the_page_shows_the_committed_results() -> None:
    page = report.PAGE.read_text(encoding="utf-8")
    arms = [name for name in arm.ARMS if name != "quick"]
    assert all(f"<!-- table: {name} -->" in page for name in arms)
    assert report.written(page, report.tables_of(arms, results.RESULTS)) == page, "run python studies/report.py"


@pytest.mark.full
@pytest.mark.filterwarnings("default")
def test_committed_runs_come_from_their_seeds(tmp_path: Path) -> None:
    committed = comparison.rows_by_key(results.runs().read())
    todo = tuple(
        Run(world="shapes", seed=0, noise=MAIN_NOISE, weights=weights)  # type: ignore[arg-type]
        for weights in ("uniform", "online")
    )
    threads = torch.get_num_threads()
    try:
        # The record was made with kept encodings; they change nothing.
        found = list(work(Unit(world="shapes", seed=0, todo=todo, scratch=tmp_path), keep_encodings=False))
    finally:
        torch.set_num_threads(threads)
    for item, scores in found:
        assert scores["nll"] == pytest.approx(committed[item.key]["nll"], abs=TOLERANCE), item


def test_a_measurement_belongs_to_its_run() -> None:
    one = Run(world="charts", seed=2, noise=0.1, weights="cached", reference="final", contrast="mask")
    assert one.measurement == Measurement(world="charts", seed=2, noise=0.1, reference="final", contrast="mask")
    assert np.isclose(one.measurement.noise, 0.1)
