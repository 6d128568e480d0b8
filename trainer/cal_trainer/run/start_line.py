"""Says in one line, before the first step, what is trained on what."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback

from cal_schemas.counted import are, counted
from cal_schemas.scores import DEFAULT_SCORE
from cal_trainer.run.facts import RunFacts

_log = logging.getLogger("cal-train")


class StartLine(TrainerCallback):  # type: ignore[misc]
    """Logs `start_line` once."""

    def __init__(self, facts: RunFacts, tokens_per_row: float) -> None:
        self._facts, self._tokens_per_row = facts, tokens_per_row

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """On one rank of all."""
        if state.is_world_process_zero:
            steps = state.global_step, state.max_steps
            _log.info("%s", start_line(self._facts, steps=steps, tokens_per_row=self._tokens_per_row))


def start_line(facts: RunFacts, *, steps: tuple[int, int], tokens_per_row: float) -> str:
    """Rows, steps, parameters and weights of a run.

    steps: taken before, and of how many. tokens_per_row: encoded ones, about.
    """
    flags, weighting = facts.flags, facts.weighting
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    sizes = [int(flags[name]) for name in names]
    rows = min(sizes[0] * sizes[1] * sizes[2], facts.num_rows)  # The dummy row fills up what there is not.
    planned = facts.num_planned
    num_rows = f"{facts.num_rows:,} of {counted(planned, 'planned row')}" if planned else counted(facts.num_rows, "row")
    not_ok = sum(facts.skipped.values())
    skipped = f" ({not_ok:,} more {are(not_ok)} not ok)" if not_ok else ""
    data = ", ".join(map(str, (*flags["data_path"], *flags["source_path"])))
    of_steps = f"steps {steps[0] + 1:,} to {steps[1]:,}" if steps[0] else counted(steps[1], "step")
    if steps[0] >= steps[1]:
        of_steps = f"none left of {counted(steps[1], 'step')}"
    chosen = [f"score {facts.score}"] if facts.score != DEFAULT_SCORE else []
    chosen += [f"map {weighting.map}"] if weighting.map != "clamp" else []
    bounds = f"alpha {weighting.alpha:g}, beta {weighting.beta:g}, window {weighting.window}, pool {weighting.pool}"
    bounds = ", ".join([*chosen, bounds])
    mixed = f" mixed {mix}" if (mix := facts.sources.said()["mix"]) else ""
    of_weights = f", sources without deltas {said}" if (said := facts.sources.said()["uniform_sources"]) else ""
    adapters = " as adapters" + (f" on {facts.quantization} weights" if facts.quantization else "")
    deltas = {
        "uniform": "no deltas: every token weighs 1",
        "online": f"deltas online by {facts.contrast.describe() if facts.contrast else ''}; {bounds}{of_weights}",
        "cached": f"deltas cached of {_measured(facts)}; {bounds}{of_weights}",
    }[flags["delta_source"]]
    return (
        f"training on {num_rows} of {data}{mixed}{skipped}; {of_steps} of {counted(rows, 'row')} and about "
        f"{counted(round(rows * tokens_per_row), 'token')}; {facts.num_trainable:,} parameters of "
        f"{', '.join(flags['trainable'])}{adapters if flags['lora_r'] else ''}; {deltas}; divided by: "
        f"{weighting.normalization}"
    )


def _measured(facts: RunFacts) -> str:
    return f"{facts.spec.model_id} by {facts.spec.contrast.describe()}" if facts.spec else ""
