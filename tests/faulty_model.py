"""A tiny LLaVA that breaks its own process on rows of chosen lengths: real signals from inside a real forward pass.

It is a checkpoint with code of its own, which `--trust_remote_code` runs; nothing of the program is replaced.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

from tiny_models import build_llava

_WEIGHTS, _PYTORCH = "model.safetensors", {"format": "pt"}

_CODE = """
import os, signal, sys, time
import torch
import transformers

class FaultyLlava(transformers.LlavaForConditionalGeneration):
    def __init__(self, config):
        super().__init__(config)
        if config.faults.get("exit_at_start") or os.path.exists(config.faults.get("exit_while", "")):
            print("licence server says no", file=sys.stderr, flush=True)
            os._exit(3)
        if config.faults.get("hang_at_start"):
            os.kill(os.getpid(), signal.SIGSTOP)

    def forward(self, input_ids=None, **others):
        faults, length = self.config.faults, input_ids.shape[1]
        time.sleep(faults.get("seconds_per_pass", 0))
        for kind, (low, high) in faults.get("lengths", {}).items():
            if not low <= length < high:
                continue
            if kind == "meet":
                os.makedirs(faults["marker"], exist_ok=True)
                open(os.path.join(faults["marker"], str(os.getpid())), "w").close()
                while len(os.listdir(faults["marker"])) < 2:
                    time.sleep(0.02)
            if kind in ("kill_once", "device_once"):
                try:
                    os.close(os.open(faults["marker"], os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    continue
                if kind == "device_once":
                    raise torch.AcceleratorError("CUDA error: device-side assert triggered (simulated)")
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "segfault":
                os.kill(os.getpid(), signal.SIGSEGV)
            if kind == "hang":
                os.kill(os.getpid(), signal.SIGSTOP)
        if input_ids.numel() > faults.get("max_tokens", 1e9):
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return super().forward(input_ids=input_ids, **others)
"""


def build_faulty_llava(directory: Path, **faults: object) -> Path:
    """Writes the checkpoint; returns its directory.

    Args:
        directory: where to.
        faults: `lengths`: kind (kill, kill_once, device_once, segfault, hang, meet) -> [low, high) in padded tokens of
            a row; `marker`: a file that remembers what happens once; `max_tokens`: of a batch, more are out of memory;
            `seconds_per_pass`; `exit_at_start`; `exit_while`: a file, as long as it is there;
            `hang_at_start`. At a row for `meet` a process waits until a second
            one has come to such a row (they sign in the directory `marker`): two workers share the work for certain.
    """
    build_llava(directory)
    # Names as in memory: transformers renames the weights of its own classes only.
    model = LlavaForConditionalGeneration.from_pretrained(directory)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, directory / _WEIGHTS, _PYTORCH)
    config = json.loads((directory / "config.json").read_text())
    config["faults"] = faults
    config["auto_map"] = {"AutoModelForImageTextToText": "modeling_faulty.FaultyLlava"}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "modeling_faulty.py").write_text(_CODE)
    return directory
