"""Rows of an epoch by shares of their sources."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_schemas.errors import ConfigError
from cal_trainer.config import GroupBy
from cal_trainer.data.dataset import DUMMY
from cal_trainer.data.mixing import Stratum, draw, rows_taken, strata_of
from cal_trainer.data.sampling import EpochSampler, epoch_order, pools_of

NAMES = ("a", "b")
SOURCE_OF = np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
"""Three rows of a, seven of b."""
HAS_IMAGE = np.array([True, True, False, True, True, True, True, True, True, True])
GROUPINGS: tuple[GroupBy, ...] = ("none", "length", "modality_length")


def strata(share_of_a: float, group_by: GroupBy = "none") -> list[list[Stratum]]:
    return strata_of(pools_of(HAS_IMAGE, group_by), SOURCE_OF, NAMES, {"a": share_of_a, "b": 1 - share_of_a})


def epoch(share_of_a: float, number: int, group_by: GroupBy = "none", seed: int = 0, step_size: int = 1) -> np.ndarray:
    return epoch_order(
        np.arange(10), HAS_IMAGE, group_by=group_by, step_size=step_size, seed=seed, epoch=number,
        strata=strata(share_of_a, group_by),
    )  # fmt: skip


@pytest.mark.parametrize("group_by", GROUPINGS)
@pytest.mark.parametrize(("share", "of_a"), [(0.7, 7), (0.5, 5), (0.3, 3)])
def test_an_epoch_is_as_long_as_the_data_and_each_source_has_its_share(
    share: float, of_a: int, group_by: GroupBy
) -> None:
    for number in range(3):
        order = epoch(share, number, group_by)
        assert len(order) == 10
        assert int((SOURCE_OF[order] == 0).sum()) == of_a


def test_a_source_comes_in_permutations_that_go_on_where_the_last_epoch_ended() -> None:
    # Seven rows of a an epoch, of which there are three: epoch 0 takes two passes and one row of the third.
    drawn = np.concatenate([epoch(0.7, number) for number in range(3)])
    of_a, of_b = drawn[SOURCE_OF[drawn] == 0], drawn[SOURCE_OF[drawn] == 1]
    assert [sorted(part) for part in of_a.reshape(7, 3).tolist()] == [[0, 1, 2]] * 7
    # And three of the seven of b: the first two epochs take six, the third the seventh and two of the next pass.
    assert sorted(of_b[:7].tolist()) == [3, 4, 5, 6, 7, 8, 9]
    assert len(of_b) == 9


def test_passes_epochs_and_seeds_have_orders_of_their_own() -> None:
    drawn = np.concatenate([epoch(0.7, number) for number in range(6)])
    of_a = drawn[SOURCE_OF[drawn] == 0].reshape(-1, 3)
    assert len({tuple(part) for part in of_a.tolist()}) > 3
    orders = {tuple(epoch(0.7, number, seed=seed)) for number in range(4) for seed in range(4)}
    assert len(orders) == 16


def test_every_part_of_an_epoch_has_the_shares_to_a_row() -> None:
    rows = np.arange(1000)
    of_a, of_b = (Stratum(source=at, rows=rows[at::2], count=count) for at, count in enumerate((700, 300)))
    order = draw([of_a, of_b], seed=[3], epoch=0)
    of_source = order % 2 == 0
    for stop in range(1, 1001):
        assert abs(of_source[:stop].sum() - 0.7 * stop) <= 1
    # Not a fixed pattern: ten rows hold seven of a, in many orders.
    assert len({tuple(part) for part in of_source.reshape(-1, 10).tolist()}) > 20


def test_a_share_below_a_row_is_one_row() -> None:
    assert [stratum.count for stratum in strata(0.01)[0]] == [1, 10]


@given(st.lists(st.integers(1, 30), min_size=2, max_size=4), st.data(), st.sampled_from(GROUPINGS), st.integers(1, 7))
def test_all_epochs_have_equal_length_and_no_row_comes_again_before_its_source_was_through(
    sizes: list[int], data: st.DataObject, group_by: GroupBy, step_size: int
) -> None:
    given_shares = data.draw(st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    source_of = np.repeat(np.arange(len(sizes)), sizes)
    has_image = np.array(data.draw(st.lists(st.booleans(), min_size=len(source_of), max_size=len(source_of))))
    names = [str(at) for at in range(len(sizes))]
    shares = {name: share / sum(given_shares) for name, share in zip(names, given_shares, strict=True)}
    parts = strata_of(pools_of(has_image, group_by), source_of, names, shares)
    sampler = EpochSampler(
        np.arange(len(source_of)), has_image, group_by=group_by, step_size=step_size, seed=1, strata=parts
    )
    counted = np.zeros((3, len(source_of)), int)
    for number in range(3):
        sampler.set_epoch(number)
        order = np.array(list(sampler))
        assert len(order) == len(sampler) == sampler.steps_per_epoch * step_size
        real = order[order != DUMMY]
        counted[number] = np.bincount(real, minlength=len(source_of))
        assert len(real) == sum(stratum.count for of_pool in parts for stratum in of_pool)
        for at, name in enumerate(names):
            wanted = shares[name] * len(source_of)
            assert abs(int((source_of[real] == at).sum()) - wanted) <= 1.0 + (group_by == "modality_length")
        if group_by == "modality_length":
            for step in order.reshape(-1, step_size):
                assert len(set(has_image[step[step != DUMMY]].tolist())) == 1
    for stratum in (stratum for of_pool in parts for stratum in of_pool):
        times = counted.sum(0)[stratum.rows]
        assert times.max() - times.min() <= 1


def test_the_order_in_time_is_the_order_of_the_passes() -> None:
    order = epoch(0.7, 0)
    of_a = order[SOURCE_OF[order] == 0]
    assert all(set(part) == {0, 1, 2} for part in (of_a[:3].tolist(), of_a[3:6].tolist()))
    places = np.flatnonzero(SOURCE_OF[order] == 0)
    assert max(later - earlier for earlier, later in pairwise(places)) <= 3


def test_what_an_epoch_takes_is_said() -> None:
    assert rows_taken(NAMES, [7, 3], [3, 7]) == "7 of a, which has 3, 3 of b, which has 7"


def test_a_source_of_which_no_row_is_usable_is_refused() -> None:
    with pytest.raises(ConfigError, match="--mix c: no row of this source can be used"):
        strata_of([np.arange(10)], SOURCE_OF, ("a", "b", "c"), {"a": 0.5, "b": 0.3, "c": 0.2})


def test_without_a_mix_the_order_is_what_it_was() -> None:
    plain = epoch_order(np.arange(10), HAS_IMAGE, group_by="none", step_size=5, seed=3, epoch=2)
    assert plain.tolist() == np.random.default_rng([3, 2]).permutation(10).tolist()
