"""Measures when a cache pays: device-seconds of 1, 3 and 10 runs with released online, our online and cached deltas.

    python benchmarks/breakeven.py --shape cpu

Every part is measured, interleaved: a training step with gradient checkpointing of each kind, and the two passes that
measure the same batch once. A run is one epoch, or one training of one student. Beside it stands the arithmetic of the
design, in which a plain forward costs F, a checkpointed step 4 F, and the extra passes what they cost in F.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from functools import partial
from operator import sub
from statistics import median

from baselines import plain_forward
from cal_pipeline.measuring.contrast import contrast_logits
from measuring import interleave, ratio
from reporting import add_device_flags, begin, dtype_of, make_parser, print_table, suffix_of, write_report
from shapes import add_shape_flags, build_batch, build_model, shape_of
from train_step import build_steps

RUNS = (1, 3, 10)
ONLINE = ("online_released", "online_drop")
STEPS = ("uniform", "cached", *ONLINE)
DESIGN = {"llava15-7b": (0.96, 0.26, 1.26), "llavanext-7b": (0.96, 0.05, 1.05)}
"""In F: what released online adds to a step, what ours adds, what measuring costs (analytic, 250 text tokens)."""


def totals(step: float, added_each_run: float, once: float) -> dict[int, float]:
    return {runs: once + runs * (step + added_each_run) for runs in RUNS}


def break_even(once: float, added_each_run: float) -> float:
    """Runs after which measuring once has cost as much as adding passes to each."""
    return once / added_each_run if added_each_run > 0 else float("inf")


def main() -> None:
    parser = make_parser(__doc__)
    add_shape_flags(parser)
    add_device_flags(parser)
    flags = begin(parser)
    flags.gradient_checkpointing = True
    name, shape = shape_of(flags)
    dtype = dtype_of(flags)
    model = build_model(shape, device=flags.device, dtype=dtype)
    batch = build_batch(shape, device=flags.device, dtype=dtype)
    reference = build_model(shape, device=flags.device, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            **build_steps(STEPS, model, batch, flags, folder),
            "measure": partial(contrast_logits, reference, batch.inputs, batch.labels, batch.image_mask),
            "forward": partial(plain_forward, reference, batch.inputs),
        }
        times = interleave(runs, flags.repeats, flags.device)
    # A cached step makes the operations of a uniform one (tests/test_cost.py), so a round has measured one step twice.
    # What online modes add is the difference to the mean of the two in the same round: the machine's drift cancels.
    steps = [sum(pair) / 2 for pair in zip(times["uniform"].wall, times["cached"].wall, strict=True)]
    step, measure = median(steps), times["measure"].median
    added = {key: median(map(sub, times[key].wall, steps)) for key in ONLINE}
    cost = {key: totals(step, added[key], 0.0) for key in ONLINE} | {"cached": totals(step, 0.0, measure)}
    points = {key: break_even(measure, added[key]) for key in ONLINE}
    print_table(
        ["deltas", *(f"{runs} runs, s a batch" for runs in RUNS), "cached pays after, runs"],
        [[key, *(f"{seconds[runs]:.2f}" for runs in RUNS), f"{points[key]:.1f}" if key in points else ""]
         for key, seconds in cost.items()],
    )  # fmt: skip
    forward = times["forward"].median
    print_table(
        ["in units F of a plain forward", "step", "released online adds", "ours online adds", "measuring",
         "pays against released", "against ours"],
        [[f"measured, {name}", f"{step / forward:.2f}", f"{added['online_released'] / forward:.2f}",
          f"{added['online_drop'] / forward:.2f}", f"{measure / forward:.2f}",
          f"{points['online_released']:.1f}", f"{points['online_drop']:.1f}"]]
        + [[f"arithmetic, {key}", "4", released, ours, once, f"{once / released:.1f}", f"{once / ours:.1f}"]
           for key, (released, ours, once) in DESIGN.items()],
    )  # fmt: skip
    ratios = {f"{key}/uniform": ratio(times, key, "uniform") for key in STEPS[1:]}
    ratios |= {f"{key}/forward": ratio(times, key, "forward") for key in ("uniform", "measure")}
    ratios |= {f"measure/added_by_{other}": value for other, value in points.items() if value != float("inf")}
    ratios |= {f"cached_{runs}_runs/{other}_{runs}_runs": cost["cached"][runs] / cost[other][runs]
               for other in points for runs in RUNS}  # fmt: skip
    write_report(
        f"breakeven-{name}{suffix_of(flags)}", flags, settings={"model": asdict(shape)}, ratios=ratios,
        results={"times": {key: own.row() for key, own in times.items()}, "device_seconds": cost},
    )  # fmt: skip


if __name__ == "__main__":
    main()
