"""Logs what the Trainer logs of a step, for a log in JSON: by itself it prints dictionaries on standard output."""

from __future__ import annotations

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_log = logging.getLogger("cal-train")


class LogSteps(TrainerCallback):  # type: ignore[misc]
    """Logs loss, rate and whatever else was measured under `metrics`, on one rank."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Logs one line."""
        if state.is_world_process_zero:
            _log.info("step %d of %d", state.global_step, state.max_steps, extra={"metrics": logs})
