"""docs/models.md, written from what the tests measured."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Final

from cal_pipeline.models.special_cases import (
    PREFIX_PROCESSORS,
    REFUSED_MODELS,
    REFUSED_PROCESSORS,
    UNIFORM_SHAPE_BATCHES,
)
from families.table import (
    ENCODER_DECODERS,
    NAMES,
    NOT_TRIED,
    REFUSED,
    REFUSED_BY_CHECKS,
    ROWS,
    WITHOUT_IMAGES,
    row_name,
)

PAGE: Final = Path(__file__).parents[2] / "docs" / "models.md"
COLUMNS: Final = (
    "family", "status", "image tokens found by", "dropped in the first sample", "contrast `mask`", "two images",
    "text-only rows", "label-only LM head", "drop = mask", "batch = one by one", "left = right padding",
    "image moves logits by", "independent computation", "cached = online loss", "real processor end to end",
)  # fmt: skip

RECORD: Final = "CAL_MODELS_RECORD"
"""Names a file in which several runs (parts of the matrix, or pytest-xdist's processes) gather what they measured."""

_measured: dict[str, dict[str, str]] = {}


def record(family: str, **cells: str) -> None:
    """Notes cells of a family's row; names are those of `_KEYS`."""
    _measured.setdefault(family, {}).update(cells)
    if RECORD in os.environ:
        with Path(os.environ[RECORD]).open("a", encoding="utf-8") as file:
            file.write(json.dumps([family, cells]) + "\n")


def gather() -> None:
    """Adds what other runs noted in the file that RECORD names."""
    if RECORD in os.environ and Path(os.environ[RECORD]).exists():
        for line in Path(os.environ[RECORD]).read_text(encoding="utf-8").splitlines():
            family, cells = json.loads(line)
            _measured.setdefault(family, {}).update(cells)


_KEYS: Final = (
    "family", "status", "found_by", "dropped", "mask", "two_images", "text_only", "head", "drop_mask", "ragged", "left",
    "effect", "independent", "loss", "end_to_end",
)  # fmt: skip


def unmeasured() -> list[str]:
    """Families of which a cell is missing."""
    gather()
    return [name for name in NAMES if not set(_KEYS[2:]) <= set(_measured.get(name, {}))]


def figure(value: float) -> str:
    """One significant digit, rounded up; figures of rounding errors below 1e-6 are all alike."""
    if value == 0 or value < 1e-6:
        return "< 1e-6"
    power = math.floor(math.log10(value))
    digit = math.ceil(value / 10.0**power - 1e-9)
    digit, power = (1, power + 1) if digit == 10 else (digit, power)
    return f"{digit}e{power}" if power < -1 else f"{digit * 10.0**power:g}"


def rows() -> list[list[str]]:
    """The table's cells, in the order of the names; a family that this run did not measure keeps its committed row."""
    committed = {row[0]: row for row in committed_rows()}
    return [_row(name, committed.get(f"`{name}`")) for name in ROWS]


def _row(name: str, committed: list[str] | None) -> list[str]:
    empty = ["-"] * (len(COLUMNS) - 2)
    if name in NOT_TRIED:
        return [f"`{name}`", "not tried", *empty]
    if name in REFUSED:
        why = "an encoder-decoder" if name in map(row_name, ENCODER_DECODERS) else "reason below"
        why = "not an image-text-to-text model" if name in WITHOUT_IMAGES else why
        why = REFUSED_BY_CHECKS[name].reason if name in REFUSED_BY_CHECKS else why
        return [f"`{name}`", f"refused at load: {why}", *empty]
    measured = _measured.get(name)
    if measured is None and committed:
        return committed
    measured = measured or {}
    refused = measured.get("end_to_end", "").startswith("refused")
    status = "works at model level, refused end to end" if refused else "works"
    return [f"`{name}`", status, *(measured.get(key, "?") for key in _KEYS[2:])]


def committed_rows() -> list[list[str]]:
    """The table of the file as it is; empty when there is none."""
    if not PAGE.exists():
        return []
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| `\w+` \|", line)]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in table if len(row) == len(COLUMNS)]


def alike(new: list[str], old: list[str]) -> bool:
    """Equal but for figures, which may differ tenfold: they are rounding errors of the machine."""
    return len(new) == len(old) and all(map(_alike_cells, new, old))


def _alike_cells(new: str, old: str) -> bool:
    values, remarks = zip(*map(_value_and_remark, (new, old)), strict=True)
    if None in values or remarks[0] != remarks[1]:
        return new == old
    low, high = sorted(max(value or 0.0, 1e-6) for value in values)
    return high <= 10 * low


def _value_and_remark(cell: str) -> tuple[float | None, str]:
    """`2e-6 (uniform shapes)` is a figure and what is said of it."""
    figure, _, remark = cell.removeprefix("< ").partition(" (")
    try:
        return float(figure), remark
    except ValueError:
        return None, remark


def write() -> None:
    """The page, from this run or, as a program, from those that RECORD's file is of.

    Rows that differ from the committed ones in figures alone stay as they were.
    """
    before = {row[0]: row for row in committed_rows()}
    table = [before[row[0]] if row[0] in before and alike(row, before[row[0]]) else row for row in rows()]
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *table)]
    PAGE.write_text(_HEAD + "\n".join(lines) + "\n" + _tail(), encoding="utf-8")


_HEAD: Final = """# Which models work

Written by the tests (`pytest tests/models`, part of `make test-full`), never by hand. Every family is a tiny random
model of transformers' own config class in float32, with weights large enough that a wrong number shows. Figures are the
largest differences of a logit (losses: of the loss) seen in that run, rounded up to one digit.

Each row was tested for: the label-only LM head against full logits; `drop` against `mask`; a ragged batch against its
rows one by one, with the image and under both contrasts; padding left against right; two images in a sample and
text-only rows; one training step through the trainer with cached and one with online deltas, finite and equal; other
pixels giving other logits with the image and the same ones without it, dropped or masked. "Independent computation" is
both passes of eight hard rows, in every contrast that the family allows, alone and in a ragged batch, against full
logits of the model's plain forward with the decoder's inputs cut or its masks changed ([method.md](method.md), section
2); in brackets stands what a family cannot have. "Real processor end to end"
is files, `cal-precompute`, pandas, `cal-train` (cached and online) with the family's processor and a tokenizer trained
in the test, torchvision installed; elsewhere samples are token ids as the processor would write them.

*rows alone*: rows of one batch see each other in such a model; a worker finds that out when it loads it, and measures
one row at a time. It trains with one row in a batch.

How the tokens that stand for an image are located:

- *report*: the processor's own text replacement offsets, markers of rows, columns and tiles included.
- *text*: the processor makes no report; what it handed to its tokenizer is compared with what it was given.
- *count*: the processor puts a fixed number of ids before the text.
- *ids*: at model level by the ids that were written; the product itself never guesses from placeholder ids.

"""


def _tail() -> str:
    def listed(title: str, entries: dict[str, str]) -> str:
        return f"\n{title}\n\n" + "".join(f"- `{name}`: {why}.\n" for name, why in entries.items())

    return (
        listed("## Refused at load, with the reason", REFUSED_MODELS)
        + "- encoder-decoders (Florence-2, UDOP, Pix2Struct, T5Gemma 2, BLIP-2 over T5, ...): by their config; CAL\n"
        "  contrasts a decoder's logits given one sequence.\n"
        + listed("## Refused processors", REFUSED_PROCESSORS)
        + listed("## Processors with a rule of their own", {**PREFIX_PROCESSORS, **UNIFORM_SHAPE_BATCHES})
        + _UNLISTED
    )


_UNLISTED: Final = """
These lists are `cal_pipeline/models/special_cases.py`; everything else is general rules.

## A model that is not in the table

Try it: `cal-precompute --dry_run` tells at once whether config, processor and template can be used, and every worker
checks the model before its first row (`cal-train --delta_source online` before its first step):

1. The label-only LM head must give what full logits give. Else the model is refused: nothing can be measured with it.
2. A row must be what it is alone, whatever stands beside it, and a token must not change with what stands behind it.
   Where a neighbour shows, rows are measured one at a time; where the words behind show, the model is refused.
3. Dropping the image's tokens must give what masking them gives, within what the precision of the forward explains.
   Else the message names the difference and the way out, `--contrast mask`. With that contrast another image must
   leave the masked logits as they are; where it does not, perturbed images are the way out.
4. Where a mask does not reach all layers (linear attention, convolutions, cross-attention) there is nothing to compare:
   `drop` defines the deltas and `--contrast mask` is refused with the reason. The decoder must then heed the position
   ids that the words keep (Inkling's does not), and its layers must not take them for places of keys (MiniMax M3's
   do): perturbed images are the way out.
5. Where dropping gives what masking gives, the decoder must heed the position ids too, or not look at places at all:
   else words would move up to those before the image under either.

A wrapper such as LLaVA takes any language model. In LLaVA were tested beside the table: GPT-NeoX works like a row of
it; MPT (ALiBi over places in the row) works with `--contrast mask` and is refused with `drop`; BLOOM (ALiBi over what
the attention mask leaves) is refused with both, and takes perturbed images. MPT and BLOOM need
`--attn_implementation eager`.

Two families come with dropout in their configs (BLIP-2's Q-Former, Granite's projector: 0.1). Online deltas are refused
with it; set it to 0 in the config, or use cached ones. The tiny models have none.

In half precision the first layers are checked in float32 too; where they cannot be (a quantised or spread model), run
the check with `--dtype float32 --limit 2` when in doubt.

## What this page does not show

- No published checkpoint was at hand: weights are random, sizes tiny. What depends on a checkpoint's own files (chat
  template, tokenizer) was tested with files made to resemble them.
- There was no GPU: half precision on CUDA, flash attention, one model over several GPUs and quantisation on CUDA were
  tested as far as the arguments that reach transformers ([method.md](method.md), section 3).
- Where the last column says token ids, the family's own processor never ran: the text that it inserts for an image was
  not compared with what these samples say.
"""

if __name__ == "__main__":
    gather()
    write()
