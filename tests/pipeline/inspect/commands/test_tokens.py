"""Counts, means and extremes of tokens, against the columns themselves."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.token_statistics import token_statistics
from inspect_data import Directories


def test_counts_means_and_extremes_are_those_of_the_columns(directories: Directories) -> None:
    rows = pd.concat([pd.read_parquet(path) for path in sorted(directories.normal.glob("*.parquet"))])
    tokens = pd.DataFrame(
        {
            "sample_id": np.repeat(rows["sample_id"].to_numpy(), rows["label_ids"].map(len)),
            "id": np.concatenate(rows["label_ids"].to_list()),
            "delta": np.concatenate(rows["delta_logits"].to_list()),
        }
    ).dropna()
    statistics = token_statistics(open_paths([directories.normal]), top=5)
    by_id = tokens.groupby("id")["delta"].agg(["count", "mean"])
    assert statistics.count[by_id.index].tolist() == by_id["count"].tolist()
    assert statistics.count.sum() == len(tokens)
    np.testing.assert_allclose(statistics.mean()[by_id.index], by_id["mean"], rtol=1e-5, atol=1e-6)
    assert np.isnan(statistics.mean()[~np.isin(np.arange(len(statistics.count)), by_id.index)]).all()
    ordered = tokens.sort_values("delta")
    assert [item.score for item in statistics.lowest] == ordered["delta"][:5].tolist()
    assert [item.score for item in statistics.highest] == ordered["delta"][::-1][:5].tolist()
    extreme = ordered.iloc[-1]
    assert (statistics.highest[0].sample_id, statistics.highest[0].token_id) == (extreme["sample_id"], extreme["id"])


def test_the_table_of_all_tokens_is_written_though_the_reader_of_the_others_leaves(
    directories: Directories, tmp_path: Path
) -> None:
    command = (
        f"{sys.executable} -m cal_pipeline.inspect.cli tokens {directories.normal} "
        f"--tokenizer {directories.family.directory} --top 1000 --output {tmp_path / 'x.csv'} | true"
    )
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    statistics = token_statistics(open_paths([directories.normal]), top=1)
    assert len(pd.read_csv(tmp_path / "x.csv")) == (statistics.count > 0).sum() > 10
