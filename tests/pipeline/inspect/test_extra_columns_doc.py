"""The snippet of docs/data-format.md that turns stored log-probabilities into scores, run as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.output.store import LocalStore
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.annotated import annotated_schema
from conftest import Family
from examples_of import measurement_spec
from tiny_data import write_llava_json

DOC = Path(__file__).parents[3] / "docs" / "data-format.md"


def test_scores_follow_from_the_columns(llava: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, images = write_llava_json(tmp_path, 12)
    store = LocalStore(output_dir=tmp_path / "annotated")
    store.prepare()
    options = AnnotateOptions(
        schema=annotated_schema(carry="none", extra_columns=("logprobs",)), carry="none", tokens_per_batch=512,
        extra_columns=("logprobs",),
    )  # fmt: skip
    for shard in plan_shards([str(data)], [str(images)]):
        annotate_shard(
            shard, encoder=llava.encoder, model=llava.model, spec=measurement_spec(), store=store, options=options
        )
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.S)
    (snippet,) = [text for text in snippets if "perplexity_ratio" in text]
    names: dict[str, Any] = {}
    exec(snippet, names)
    frame = names["frame"]
    assert len(frame) >= 8
    for _, row in frame.iterrows():
        with_image, without = (np.array(row[f"logprobs_{name}_image"], float) for name in ("with", "without"))
        np.testing.assert_allclose(row["logprob_difference"], with_image - without)
        np.testing.assert_allclose(
            row["perplexity_ratio"], np.exp(with_image.mean() * -1) / np.exp(without.mean() * -1)
        )
        np.testing.assert_allclose(row["reference_loss"], -with_image.mean())
