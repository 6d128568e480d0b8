"""Maps of scores to weights, by hand, and the same in numpy, in torch, and for many samples at once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from cal_schemas.errors import ConfigError
from cal_schemas.map_definitions import MAPS
from cal_schemas.maps import Map, check_score, weigh
from cal_schemas.ragged import least_of_share, ragged_means, ragged_scores, ragged_weights
from cal_schemas.scores import SCORES, Score
from cal_trainer.objective.weights import token_weights

NAN = math.nan
SCORES_OF_TWO = np.array([[0.5, NAN, 3.0, -1.0, 7.0], [2.0, 2.0, 2.0, 0.0, 0.0]], np.float32)
MEMBER = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
E = math.exp
SUM = E(0.25) + E(1.5) + E(-0.5) + E(3.5)


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("clamp", [1, 1, 3, 1, 5], [2, 2, 2]),
        ("inverse", [1, 1, 1, 1, 1], [1, 1, 1]),
        ("linear", [1 + 4 * 1.5 / 8, 1, 1 + 4 * 4 / 8, 1, 5], [1, 1, 1]),
        ("softmax=2", [4 * E(0.25) / SUM, 0, 4 * E(1.5) / SUM, 4 * E(-0.5) / SUM, 4 * E(3.5) / SUM], [1, 1, 1]),
        ("threshold=2", [0, 0, 1, 0, 1], [1, 1, 1]),
        ("top_share=0.5", [0, 0, 1, 0, 1], [1, 1, 1]),
        ("top_share=0.25", [0, 0, 0, 0, 1], [1, 1, 1]),
        ("batch_share=0.5", [0, 0, 1, 0, 1], [1, 1, 1]),
        ("top_samples=0.5@2.1", [1, 0, 1, 1, 1], [0, 0, 0]),
        ("vig=0.5@2.1", [0, 0, 1, 0, 1], [0, 0, 0]),
    ],
)
def test_a_map_by_hand(text: str, first: list[float], second: list[float]) -> None:
    rule = Map.parse(text)
    settings = rule.settings(alpha=None, beta=None, window=1)
    run = np.zeros(MEMBER.shape, int)
    found = weigh(SCORES_OF_TWO, MEMBER, run, rule, **settings)
    assert found[0].tolist() == pytest.approx(first, abs=1e-6)
    assert found[1, :3].tolist() == pytest.approx(second, abs=1e-6)
    inverse = weigh(-SCORES_OF_TWO, MEMBER, run, Map("inverse"), alpha=1, beta=5, window=1)
    clamp = weigh(SCORES_OF_TWO, MEMBER, run, Map("clamp"), alpha=1, beta=5, window=1)
    assert inverse[MEMBER].tolist() == clamp[MEMBER].tolist()


def test_a_sample_of_text_keeps_its_words_under_vig_and_top_share() -> None:
    nothing, member = np.zeros((1, 3), np.float32), np.ones((1, 3), bool)
    run = np.zeros((1, 3), int)
    for text in ("vig=0.5@0.2", "top_share=0.3", "softmax=1", "pgpo=0.4"):
        rule = Map.parse(text)
        assert weigh(nothing, member, run, rule, **rule.settings(alpha=None, beta=None, window=None)).tolist() == [
            [1.0] * 3
        ]


@pytest.mark.parametrize("pool", ["span", "joined"])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("name", sorted(set(MAPS) - {"batch_share"}))
def test_looking_and_training_weigh_alike_whatever_the_map(name: Any, window: int, pool: Any) -> None:
    rng = np.random.default_rng(7)
    number = {"softmax": "=0.7", "threshold": "=0.4", "top_samples": "=0.5@0.3", "vig": "=0.5@0.3", "focal": "=2"}
    text = name + number.get(name, "=0.4" if MAPS[name].parameter else "")
    length = 40
    supervised = rng.random((6, length)) < 0.6
    supervised[2], supervised[:, 0] = False, False
    scores = rng.normal(0.5, 1.5, (6, length)).astype(np.float32)
    scores = np.abs(scores) if name in ("pgpo", "focal") else scores
    scores[rng.random((6, length)) < 0.1] = np.nan
    labels = np.where(supervised, 5, -100)
    trained = token_weights(torch.tensor(scores), torch.tensor(labels), window=window, pool=pool, map=text)
    lengths = supervised.sum(1)
    starts = np.concatenate([np.diff(np.flatnonzero(row), prepend=-9) != 1 for row in supervised])
    run = np.cumsum(starts) if pool == "span" else np.zeros(len(starts), int)
    rule = Map.parse(text)
    settings = rule.settings(alpha=None, beta=None, window=window)
    looked = ragged_weights(scores[supervised], lengths, run, rule, **settings)
    assert looked.tolist() == pytest.approx(trained.numpy()[supervised].tolist(), abs=1e-5)
    assert not trained.numpy()[~supervised].any()


def test_one_long_sample_among_many_is_padded_by_itself() -> None:
    rng = np.random.default_rng(0)
    lengths = np.array([3] * 1000 + [500_000] + [0, 2] * 1000)
    scores = rng.normal(size=lengths.sum()).astype(np.float32)
    rule = Map.parse("top_share=0.5")
    found = ragged_weights(scores, lengths, np.zeros(len(scores), int), rule, alpha=0.0, beta=1.0, window=1)
    ends = np.cumsum(lengths)
    for row in (0, 999, 1000, 1002):
        own = slice(ends[row] - lengths[row], ends[row])
        kept = -(-lengths[row] // 2)
        assert found[own].sum() == kept
        assert scores[own][found[own] == 1].min() > scores[own][found[own] == 0].max(initial=-np.inf)


@pytest.mark.parametrize("count", [5, 10, 25, 30, 45, 50, 5000])
def test_a_share_of_tokens_is_rounded_up_in_whole_numbers(count: int) -> None:
    scores = np.random.default_rng(1).permutation(count)[None].astype(np.float32)
    member, run = np.ones((1, count), bool), np.zeros((1, count), int)
    for tenths in (1, 2, 4, 6):
        rule = Map("top_share", tenths / 10)
        for values in (scores, torch.tensor(scores)):
            alike = (values, member, run) if values is scores else (values, torch.tensor(member), torch.tensor(run))
            assert float(weigh(*alike, rule, alpha=0.0, beta=1.0, window=1).sum()) == -(-count * tenths // 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clip", "map clip: expected one of clamp, inverse, linear, softmax=T"),
        ("clamp=2", "map clamp=2: expected clamp"),
        ("softmax", "map softmax: expected softmax=T"),
        ("softmax=warm", "warm is no number"),
        ("softmax=0", "T must be above 0 and below inf"),
        ("top_share=1", "q must be above 0 and below 1"),
        ("threshold=q1.5", "x must be above 0 and below 1"),
        ("threshold=nan", "x must be above -inf and below inf"),
        ("top_share=q0.5", "q0.5 is no number"),
        ("top_share=0.5@3", "nothing follows the number of top_share=q"),
        ("vig=0.7@inf", "q must be above 0 and below 1"),
    ],
)
def test_what_is_no_map_is_refused_with_what_is_taken(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Map.parse(text)


@pytest.mark.parametrize("text", ["clamp", "softmax=0.5", "threshold=q0.6", "threshold=q0.6@1.25", "vig=0.7@-0.031"])
def test_a_map_is_read_as_it_is_written(text: str) -> None:
    assert str(Map.parse(text)) == text


def test_copies_of_a_sample_at_the_edge_of_a_share_are_kept_together() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        one = rng.normal(1, 1, 37).astype(np.float32)
        lengths = np.array([37, 37, 5, 90, 8])
        rest = [rng.normal(-9, 1, size).astype(np.float32) for size in (5, 90, 8)]
        scores = np.concatenate([one, rng.permutation(one), *rest])
        rule = Map("top_samples", 0.34, least_of_share(ragged_means(scores, lengths), 0.34))
        for values in (scores, np.concatenate([scores, np.zeros(500, np.float32)])):
            sizes = lengths if len(values) == len(scores) else np.append(lengths, 500)
            run = np.zeros(len(values), int)
            found = ragged_weights(values, sizes, run, rule, alpha=0.0, beta=1.0, window=1)
            assert found[:74].all()
            assert not found[74 : len(scores)].any()


@pytest.mark.parametrize(
    ("score", "text", "said"),
    [
        ("delta_logit", "pgpo=0.4", "map pgpo=0.4 is of score kl or kl_reverse or js, and not of delta_logit"),
        ("probability", "focal=2", "is of score nll, and not of probability"),
        ("ratio", "vig=0.7", "is of score delta_logprob or delta_logit, and not of ratio"),
    ],
)
def test_a_map_of_other_scores_is_refused(score: Score, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_score(score, Map.parse(text))
    for good in MAPS[Map.parse(text).name].scores:
        check_score(good, Map.parse(text))


def test_what_is_no_number_does_not_become_weight_one() -> None:
    scores = torch.tensor([[0.02, 1.5, -1.2, 0.4]])
    assert bool(token_weights(scores, torch.ones(1, 4, dtype=torch.long), map="pgpo=0.4").isnan().any())


def test_an_infinite_score_weighs_beta_and_its_neighbours_what_they_would() -> None:
    scores = torch.tensor([[2.0, math.inf, 3.0, 4.0, 1.0]])
    found = token_weights(scores, torch.ones(1, 5, dtype=torch.long), beta=math.inf)
    assert found[0, 3:].tolist() == pytest.approx([8 / 3, 2.5])
    assert not bool(found.isnan().any())


def test_what_depends_on_all_data_says_so_before_it_is_known() -> None:
    with pytest.raises(ConfigError, match=r"map vig=0.7 depends on the scores of all samples.*vig=0.7@X"):
        token_weights(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.long), map="vig=0.7")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"map": "top_share=0.5", "alpha": 1.0, "beta": 5.0}, "alpha must be below 1 and beta 1 or more"),
        ({"map": "linear", "beta": math.inf}, "must be finite"),
        ({"map": "inverse", "pool": "released"}, "whose map is clamp"),
    ],
)
def test_settings_that_would_make_all_weights_alike_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        token_weights(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.long), **settings)


def test_scores_are_their_equations() -> None:
    columns = {name: np.array([[-0.5, NAN, -2.0]], np.float32) for names in SCORES.values() for name in names.columns}
    columns["logprobs_without_image"] = np.array([[-1.5, -1.0, -1.0]], np.float32)
    for score, values in (("delta_logprob", [1.0, NAN, -1.0]), ("ratio", [math.e, NAN, 1 / math.e])):
        for given in (columns, {name: torch.tensor(value) for name, value in columns.items()}):
            assert SCORES[score].compute(given)[0].tolist() == pytest.approx(values, nan_ok=True)  # type: ignore[index]
    far = {"logprobs_with_image": np.float32([[0.0]]), "logprobs_without_image": np.float32([[-120.0]])}
    assert np.isfinite(SCORES["ratio"].compute(far)).all()
    flat = {name: value[0] for name, value in columns.items()}
    assert ragged_scores("delta_logprob", flat, np.array([3])).tolist() == pytest.approx([1.0, NAN, -1.0], nan_ok=True)
    with pytest.raises(ConfigError, match="needs the model in training"):
        ragged_scores("probability", flat, np.array([3]))
