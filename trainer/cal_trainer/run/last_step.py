"""Ends training when SIGTERM comes, after the step that it came in and with a checkpoint of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import Trainer, TrainerCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from cal_trainer.run.endings import Terminated


class SaveAtTerm(TrainerCallback):  # type: ignore[misc]
    """Saves and stops at the end of the step in which any rank got the signal: all ranks do, after the same step."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator, self._received = accelerator, False
        self.trains, self.stopped = True, False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGTERM."""
        self._received = True

    def leave_to_parent(self) -> None:
        """In a forked loader process: schedulers send the signal to all, and the step in work needs its rows."""
        if self.trains:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks all ranks, in every step; the Trainer saves a step's checkpoint when all callbacks have had it."""
        received = self._received
        if self._accelerator.num_processes > 1:
            flag = torch.tensor(float(received), device=self._accelerator.device)
            received = bool(self._accelerator.reduce(flag, reduction="sum") > 0)
        if received and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = control.should_save = True
            control.should_evaluate = False
            if args.save_total_limit == 1:  # The Trainer's end would keep the best checkpoint and remove this one.
                args.save_total_limit = 2

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The epoch is none: what its end would save or evaluate is not asked for."""
        if self.stopped:
            control.should_save = control.should_evaluate = False


@contextmanager
def saving_at_term(trainer: Trainer) -> Iterator[None]:
    """Within it `trainer` trains until SIGTERM comes; Terminated at the end if that was before its last step.

    In place of transformers' own callback for --enable_jit_checkpoint, which saves in the midst of a step and on each
    rank by a clock of its own: ranks that save at different steps wait for each other for ever.
    """
    theirs = trainer.pop_callback(JITCheckpointCallback)
    theirs.on_train_end(trainer.args, trainer.state, trainer.control)  # Gives the signal back.
    callback = SaveAtTerm(trainer.accelerator)
    trainer.add_callback(callback)
    before = signal.signal(signal.SIGTERM, callback.receive)
    # Until then the handler is the child's too, so that there is no moment at which the signal ends it.
    os.register_at_fork(after_in_child=callback.leave_to_parent)
    try:
        yield
    finally:
        callback.trains = False
        signal.signal(signal.SIGTERM, before)
    if callback.stopped:
        raise Terminated
