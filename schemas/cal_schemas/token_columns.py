"""Names the columns of an annotated shard that hold one number for each supervised token of a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

ExtraColumn = Literal["logits", "logprobs", "kl", "entropy", "rank"]
EXTRA_COLUMNS: Mapping[ExtraColumn, tuple[str, ...]] = {
    "logits": ("logits_with_image", "logits_without_image"),
    "logprobs": ("logprobs_with_image", "logprobs_without_image"),
    "kl": ("kl_with_without", "kl_without_with", "js_with_without"),
    "entropy": ("entropy_with_image", "entropy_without_image"),
    "rank": ("rank_with_image", "rank_without_image"),
}
"""What may be kept beside the deltas: the columns of each, whose equations are in docs/method.md, section 1."""
REQUIRED_TOKEN_COLUMNS: Mapping[str, type[np.int32 | np.float32]] = {
    "label_ids": np.int32,
    "label_positions": np.int32,
    "delta_logits": np.float32,
}
TOKEN_COLUMNS = {
    **REQUIRED_TOKEN_COLUMNS,
    **{name: np.float32 for names in EXTRA_COLUMNS.values() for name in names},
}
"""Lists of one value for each supervised token, and what their values are."""
