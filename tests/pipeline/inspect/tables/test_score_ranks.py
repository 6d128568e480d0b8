from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.inspect.tables import score_ranks
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.score_ranks import cached_scores, rank_scores
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from conftest import Family
from inspect_data import write
from inspected_data import conversations, measured

DELTAS = [[0.5, 4.0, -2.0, None, 1.0], [3.0, 0.1, 2.0, 0.2, 6.0]]
KL = [[0.1, 0.9, 0.8, 0.7, None], [0.3, 0.05, 0.4, 0.0, 0.01]]
"""Of five tokens of two rows each. Defined in both: 0.5 4 -2 and 3 0.1 2 0.2 6; 0.1 0.9 0.8 and 0.3 0.05 0.4 0 0.01."""


@pytest.fixture(scope="module")
def written(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> AnnotatedDataset:
    """Two rows with images and one without, measured, with these numbers for their first five tokens each."""
    folder = tmp_path_factory.mktemp("ranks")
    data = conversations(folder / "data", ["a b c d", "e f g h"])
    path = measured(llava, folder / "out", [data], folder / "data" / "images", extra_columns=("kl",))
    (file,) = path.glob("*.parquet")
    table = pq.read_table(file)
    lengths = [len(ids) for ids in table["label_ids"].to_pylist()]
    assert min(lengths) >= 5
    for name, given in (("delta_logits", DELTAS), ("kl_with_without", KL)):
        rest = [[*own, *[None] * (length - 5)] for own, length in zip(given, lengths, strict=True)]
        table = table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), pa.array(rest, pa.list_(pa.float32()))
        )
    write(file, table)
    return open_paths([path])


def test_ranks_differences_and_means_are_those_by_hand(written: AnnotatedDataset) -> None:
    ranked = rank_scores(written, ["kl"], top=2)
    assert ranked.scores == ("delta_logit", "kl")
    undefined = sum(len(ids) - 4 for ids in DELTAS[:1]) + 1
    assert (ranked.rows, ranked.tokens, ranked.compared) == (2, 8, 8)
    assert ranked.undefined >= undefined
    # Places by delta 4 7 1 and 6 2 5 3 8; by KL 4 8 7 and 5 3 6 1 2.
    differences = [0, 1, 6, 1, 1, 1, 2, 6]
    expected = 1 - 6 * sum(value**2 for value in differences) / (8 * 63)
    np.testing.assert_allclose(ranked.of_tokens, [[1, expected], [expected, 1]])
    # Means of deltas 0.83 and 2.26; of KL 0.6 and 0.152: the other way round.
    np.testing.assert_allclose(ranked.of_samples, [[1, -1], [-1, 1]])
    first, second = ranked.differing["kl"]
    assert {(item.token.score, round(item.value, 6)) for item in (first, second)} == {(-2.0, 0.8), (6.0, 0.01)}
    by_delta = {item.token.score: item for item in (first, second)}
    assert by_delta[-2.0].below == pytest.approx((0.5 / 8, 6.5 / 8))
    assert by_delta[6.0].below == pytest.approx((7.5 / 8, 1.5 / 8))
    assert (by_delta[-2.0].token.order, by_delta[6.0].token.order) == ((0, 2), (1, 4))
    assert by_delta[6.0].token.sample_id == "row-1"


def test_of_more_tokens_so_many_are_drawn_evenly_and_the_same_each_time(
    written: AnnotatedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (rank_scores(written, ["kl"], top=4, limit=4) for _ in range(2))
    assert (one.tokens, one.compared) == (8, 4)
    assert one.differing == other.differing
    counts = np.zeros(20, int)
    for seed in range(400):
        monkeypatch.setattr(np.random, "default_rng", lambda _, seed=seed: np.random.Generator(np.random.PCG64(seed)))
        drawn = score_ranks._Drawn(5)
        for start in range(0, 20, 4):
            places = np.arange(start, start + 4)
            drawn.add(places[None].astype(np.float32), places, places)
        values, rows, _ = drawn.drawn()
        assert values[0].tolist() == rows.tolist()
        assert len(rows) == 5
        counts[rows] += 1
    # 100 each is expected, with a standard deviation of 8.7.
    assert counts.min() > 65
    assert counts.max() < 135


def test_only_what_the_shards_hold_is_compared(written: AnnotatedDataset) -> None:
    assert cached_scores(written) == ("delta_logit", "kl", "kl_reverse", "js")
    with pytest.raises(ConfigError, match="--extra_columns entropy"):
        rank_scores(written, ["entropy"], top=0)


def test_texts_alone_are_nothing_to_compare(llava: Family, tmp_path: Path) -> None:
    data = conversations(tmp_path, ["a b", "c d"], images=False)
    opened = open_paths([measured(llava, tmp_path / "out", [data], extra_columns=("kl",))])
    with pytest.raises(ConfigError, match=r"of the 2 rows of .* 0 show an image and are ok"):
        rank_scores(opened, ["kl"], top=0)


def test_rows_of_one_value_have_no_order_whatever_their_lengths() -> None:
    lengths = np.array([3, 7, 10, 0, 33])
    values = np.full(53, 0.1, np.float32)
    values[1] = np.nan
    means = score_ranks._means(values, lengths)
    assert np.unique(means[~np.isnan(means)]).tolist() == [float(np.float32(0.1))]
    assert np.isnan(means).tolist() == [False, False, False, True, False]
