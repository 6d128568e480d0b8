"""Lists weightings as papers have them: score, map, bounds, and what the weighted sum is divided by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from cal_schemas.scores import Score
from cal_schemas.weighting import Normalization, Pool

Preset = Literal["cal", "released", "vig", "visnec", "pgpo", "vppo", "vepo", "rho1", "dft", "focal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PresetDefinition:
    """One paper's weighting. Bounds, window and pool that it does not name are the map's defaults."""

    paper: str
    original: str
    """What the paper trains by: supervised finetuning or reinforcement learning."""
    contrast: str
    """What its second pass sees. A cache has the contrast of its measurement."""
    literal: str
    reading: str
    """What is ours where the paper is silent, or is moved to supervised finetuning."""
    normalization: Normalization
    score: Score = "delta_logit"
    map: str = "clamp"
    alpha: float | None = None
    beta: float | None = None
    window: int | None = None
    pool: Pool | None = None
    condition: str | None = None
    """The contrast of online deltas, where another would be another method."""

    @property
    def flags(self) -> dict[str, Any]:
        """What `--preset` means, by flag."""
        named = {"alpha": self.alpha, "beta": self.beta, "window": self.window, "pool": self.pool}
        given = {name: value for name, value in named.items() if value is not None}
        contrast = {} if self.condition is None else {"contrast": self.condition}
        return {"score": self.score, "map": self.map, **given, **contrast, "normalization": self.normalization}


PRESETS: Final[Mapping[Preset, PresetDefinition]] = {
    "cal": PresetDefinition(
        paper="CAL, arXiv 2405.17871, Eq. 3-5", original="pretraining and finetuning, online", contrast="no image",
        literal="all; alpha, beta and window stay flags, whose defaults are the paper's 1, 5 and 3",
        reading="the window stays inside a contiguous run of supervised tokens",
        pool="span", normalization="sample",
    ),
    "released": PresetDefinition(
        paper="CAL's released code", original="pretraining and finetuning, online", contrast="image hidden (`mask`)",
        literal="all, under sdpa and eager attention", reading="none", pool="released", normalization="micro_batch",
        condition="mask",
    ),
    "vig": PresetDefinition(
        paper="VIG, arXiv 2602.17186", original="supervised finetuning, cached before it",
        contrast="blurred image, of unknown strength",
        literal="score; one threshold for samples and tokens; 70 % of the samples with an image; texts whole",
        reading="the threshold lies midway between the last sample kept and the next; divided by the tokens kept",
        score="delta_logprob", map="vig=0.7", normalization="step",
    ),
    "visnec": PresetDefinition(
        paper="VisNec, arXiv 2603.01195 and its code", original="supervised finetuning, of selected samples",
        contrast="no image, positions closed up", literal="score; 15 % of the samples, whole",
        reading="chosen of all samples with an image, not in each of 20 clusters of questions",
        score="delta_logprob", map="top_samples=0.15", normalization="step",
    ),
    "pgpo": PresetDefinition(
        paper="PGPO, arXiv 2604.01840, Eq. 1 and 4-7", original="reinforcement learning",
        contrast="image hidden, positions kept", literal="Eq. 1 and 4-7 with tau 0.4 and beta 2",
        reading="the nll in place of the advantage; 1 where all scores are equal; KL where its code estimates it",
        score="kl", map="pgpo=0.4", normalization="count",
    ),
    "vppo": PresetDefinition(
        paper="VPPO, arXiv 2510.09285, Eq. 3", original="reinforcement learning",
        contrast="half of the 14 x 14 patches black",
        literal="the ceil(0.4 n) tokens of largest KL; divided by all tokens",
        reading="the nll in place of the advantage; no factor of whole answers; equal scores at the edge are all kept",
        score="kl", map="top_share=0.4", normalization="count",
    ),
    "vepo": PresetDefinition(
        paper="VEPO, arXiv 2606.03937, the score of its code", original="reinforcement learning",
        contrast="noise on the pixels", literal="score with 0.7; the ceil(0.2 n) largest; divided by the tokens kept",
        reading="the nll in place of the advantage; equal scores at the edge are all kept",
        score="anchored_entropy", map="top_share=0.2", normalization="step",
    ),
    "rho1": PresetDefinition(
        paper="Rho-1, arXiv 2404.07965, Eq. 3-5", original="pretraining on texts, no image contrast", contrast="none",
        literal="excess of the loss over a reference's; 60 % of the batch's tokens; divided by those",
        reading="the reference sees the image; the batch is the micro-batch; ceil",
        score="excess_loss", map="batch_share=0.6", normalization="step",
    ),
    "dft": PresetDefinition(
        paper="DFT, arXiv 2508.05629", original="supervised finetuning, no image contrast", contrast="none",
        literal="all: the token's own probability, detached; divided by all tokens", reading="none",
        score="probability", alpha=0.0, beta=1.0, window=1, normalization="count",
    ),
    "focal": PresetDefinition(
        paper="focal loss, arXiv 1708.02002", original="detection, no image contrast", contrast="none",
        literal="the gradient of (1 - p)^2 nll, whose own factor has one",
        reading="a vocabulary's p, no alpha of classes; divided by all tokens; the loss logged is not the focal one",
        score="nll", map="focal=2", normalization="count",
    ),
}  # fmt: skip
"""By name."""
