"""Measures the head's loss in chunks against the loss of all logits at once: time by size, and memory by answer length.

    python benchmarks/long_answers.py --logits_mb
    python benchmarks/long_answers.py --supervised --at_once

`steps`: forward and backward of a whole training step through CalTrainer, in a process of its own for each number of
supervised tokens a row; rows are as long in all of them, so what grows is the loss. `head`: the head's part alone, both
ways in turn, from small to large: where the two cost the same `CHUNKED_ABOVE` (objective/label_losses.py) may lie.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from cal_trainer.objective import chunked_nll, label_losses
from cal_trainer.objective.after_head import AfterHead
from cal_trainer.objective.loss import label_nll
from measuring import cpu_ratio, in_own_process, interleave, keep_freed_memory, peak_memory, ratio, resident_mb
from reporting import add_device_flags, begin, make_parser, print_table, write_report
from shapes import SYSTEM_TOKENS, Shape, build_batch, build_model
from train_step import build_step

MB = 2**20


def shape_of_step(flags: Any, supervised: int) -> Shape:
    """Of a decoder that is nearly nothing beside its head; rows are as long whatever is supervised of them."""
    return Shape(
        hidden=flags.width, layers=1, heads=2, kv_heads=1, intermediate=2 * flags.width, vocabulary=flags.vocabulary,
        vision_hidden=32, vision_layers=1, vision_heads=1, vision_intermediate=32, tile_tokens=16, image_tokens=16,
        text_tokens=max(flags.supervised) + SYSTEM_TOKENS, supervised_tokens=supervised, batch=flags.rows,
    )  # fmt: skip


def step(flags: Any, supervised: int, chunked: bool) -> dict[str, float]:
    """Peak resident MB of a step over that of the model with its gradients, and the step's loss."""
    torch.set_num_threads(flags.threads)
    model = build_model(shape_of_step(flags, supervised))
    batch = build_batch(shape_of_step(flags, supervised))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    above = label_losses.CHUNKED_ABOVE if chunked else 2**62
    with tempfile.TemporaryDirectory() as folder, patch.object(label_losses, "CHUNKED_ABOVE", above):
        run = build_step("uniform", model, batch, "cpu", folder)
        before = resident_mb("VmRSS")
        loss = run()
    return {"peak_mb": resident_mb() - before, "loss": loss}


def head_step(head: nn.Linear, rows: torch.Tensor, ids: torch.Tensor, chunked: bool) -> None:
    """Forward and backward of the head's loss."""
    head.weight.grad = rows.grad = None
    if chunked:
        after = AfterHead(steps=(), vocabulary=len(head.weight), kept=len(head.weight))
        nll, _ = chunked_nll._LinearNll.apply(after, rows, ids, head.weight, None)
    else:
        nll = label_nll(head(rows), ids)
    nll.sum().backward()


def main() -> None:
    parser = make_parser(__doc__)
    add_device_flags(parser, repeats=3)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--width", type=int, default=64, help="of the decoder in `steps`")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--supervised", type=int, nargs="*", default=[16, 1024, 4096], help="tokens a row")
    parser.add_argument("--at_once", type=int, nargs="*", default=[16], help="of those, the other way too")
    parser.add_argument("--head_width", type=int, default=256)
    parser.add_argument("--logits_mb", type=int, nargs="*", default=[128, 256, 512], help="sizes of `head`")
    parser.add_argument("--chunk_mb", type=int, nargs="+", default=[chunked_nll.CHUNK_BYTES // MB])
    flags = begin(parser)
    results: dict[str, Any] = {"steps": [], "head": []}
    for supervised in flags.supervised if flags.device == "cpu" else ():
        for chunked in (True, False) if supervised in flags.at_once else (True,):
            found = in_own_process(step, flags, supervised, chunked)
            results["steps"].append({"supervised": supervised, "chunked": chunked, **found})
            logits = 4 * flags.rows * supervised * flags.vocabulary / MB
            print_table(["supervised a row", "chunks", "logits MB", "peak MB over the model's", "loss"],
                        [[supervised, chunked, logits, found["peak_mb"], found["loss"]]])  # fmt: skip
    keep_freed_memory()
    head = nn.Linear(
        flags.head_width, flags.vocabulary, bias=False, device=flags.device, dtype=getattr(torch, flags.dtype)
    )
    for size in flags.logits_mb:
        count = size * MB // (4 * flags.vocabulary)
        rows = torch.randn(count, flags.head_width, device=flags.device, dtype=head.weight.dtype, requires_grad=True)
        ids = torch.randint(flags.vocabulary, (count,), device=flags.device)
        for chunk in flags.chunk_mb:
            with patch.object(chunked_nll, "CHUNK_BYTES", chunk * MB):
                both = {name: partial(head_step, head, rows, ids, name == "chunked") for name in ("at_once", "chunked")}
                times = interleave(both, flags.repeats, flags.device)
                memory = {name: peak_memory(run, flags.device) / MB for name, run in both.items()}
            row = {
                "logits_mb": size, "chunk_mb": chunk, "tokens": count, "time": ratio(times, "chunked", "at_once"),
                "cpu_time": cpu_ratio(times, "chunked", "at_once"), "at_once_s": times["at_once"].median,
                **{f"{name}_peak_mb": value for name, value in memory.items()},
            }  # fmt: skip
            results["head"].append(row)
            print_table(list(row), [list(row.values())])
    ratios = {f"chunked_{row['logits_mb']}mb_by{row['chunk_mb']}/at_once": row["time"] for row in results["head"]}
    cpu = {f"chunked_{row['logits_mb']}mb_by{row['chunk_mb']}/at_once": row["cpu_time"] for row in results["head"]}
    peaks = {row["supervised"]: row["peak_mb"] for row in results["steps"] if row["chunked"]}
    if peaks:
        least, most = min(peaks), max(peaks)
        ratios[f"peak_of_{most}/peak_of_{least}"] = peaks[most] / peaks[least]
        ratios[f"mb_of_{most}_over_{least}/1500"] = (peaks[most] - peaks[least]) / 1500
    write_report(
        "long_answers" if flags.supervised else "long_answers-head",
        flags,
        settings={},
        results=results,
        ratios=ratios,
        cpu_time_ratios=cpu,
    )


if __name__ == "__main__":
    main()
