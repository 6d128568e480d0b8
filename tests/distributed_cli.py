"""Several runs of cal-train in one group of processes, which is what takes long to start.

    python -m torch.distributed.run --standalone --nproc_per_node 2 distributed_cli.py RUNS.json

RUNS.json is a list of command lines. Every rank writes its exit codes to RUNS.json.<rank>.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from cal_trainer import cli


def shard_on_cpu() -> None:
    """Has accelerate take `--fsdp` at its word on a CPU too, where it would train without sharding."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # Every later look at this shared state starts from the plain one again.
        self.fsdp_plugin = kwargs.get("fsdp_plugin") or getattr(self, "fsdp_plugin", None)
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    gathered = Accelerator.get_state_dict

    def state_dict(self: Any, model: Any, **kwargs: Any) -> dict[str, Any]:
        # On a GPU the copy to the CPU waits for the gathered tensors; here nothing does, and saving would find none.
        values = gathered(self, model, **kwargs)
        return {key: v.wait() if isinstance(v, AsyncCollectiveTensor) else v for key, v in values.items()}

    AcceleratorState.__init__, Accelerator.get_state_dict = init, state_dict


def main(path: Path) -> None:
    torch.set_num_threads(1)
    # A rank that waits for another in vain fails after this time.
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    shard_on_cpu()
    codes = []
    for argv in json.loads(path.read_text()):
        AcceleratorState._reset_state()
        codes.append(cli.run(argv))
    path.with_name(f"{path.name}.{torch.distributed.get_rank()}").write_text(json.dumps(codes))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
