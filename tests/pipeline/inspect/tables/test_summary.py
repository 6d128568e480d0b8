"""The figures of a summary, against the columns themselves."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.summary import QUANTILES, measured_with, summarise
from inspect_data import Directories


def test_a_summary_is_what_the_columns_say(directories: Directories) -> None:
    files = sorted(directories.normal.glob("*.parquet"))
    rows = pd.concat([pd.read_parquet(path) for path in files])
    deltas = np.concatenate(rows["delta_logits"].to_list()).astype(np.float64)
    defined = deltas[~np.isnan(deltas)]
    assert len(defined) < len(deltas) or len(defined) > 50
    summary = summarise(open_paths([directories.normal]), alpha=0.5, beta=2.0)
    assert (summary["files"], summary["rows"]) == (len(files), len(rows))
    assert summary["statuses"] == Counter(rows["status"])
    assert next(iter(summary["statuses"])) == "ok"
    assert summary["images"] == sum(map(len, rows["images"]))
    assert (summary["tokens"], summary["undefined"]) == (len(deltas), len(deltas) - len(defined))
    assert summary["encoded_tokens"] == rows.loc[rows["status"] == "ok", "num_tokens"].sum()
    expected = {
        "tokens": len(defined), "mean": defined.mean(), "std": defined.std(), "min": defined.min(),
        "max": defined.max(), "share_negative": (defined < 0).mean(), "share_below_alpha": (defined < 0.5).mean(),
        "share_below_beta": (defined < 2).mean(),
        **{f"q{share:.0%}".rstrip("%"): np.quantile(defined, share) for share in QUANTILES},
    }  # fmt: skip
    assert summary["delta"] == pytest.approx(expected, rel=1e-6)
    assert sum(values["tokens"] for values in summary["turns"].values()) == len(defined)
    assert len(summary["turns"]) > 1
    assert summary["bytes"]["files"] == sum(path.stat().st_size for path in files)
    assert dict(measured_with(summary))["fingerprint"] == summary["fingerprint"]


def test_an_infinite_beta_is_null_in_json(directories: Directories) -> None:
    summary = summarise(open_paths([directories.text_only]), beta=float("inf"))
    assert summary["beta"] is None
    assert summary["delta"]["max"] == 0.0
    assert summary["text_only_rows"] == summary["rows"]
