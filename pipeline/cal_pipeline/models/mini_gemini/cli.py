"""Converts checkpoints of other layouts to one Mini-Gemini in Hugging Face's.

Three kinds of source: a published Mini-Gemini (`mgm`, `mgm_gemma`); with --untrained a language model (`llama`,
`gemma`), which gets a fresh projector: what pretraining starts from; with --hd a Mini-Gemini of ours (or one of the
former two) whose images become larger: what HD finetuning starts from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cal_pipeline.arguments import add_version
from cal_schemas.errors import CalError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; 0 on success, 2 for anything that cannot be converted."""
    parser = argparse.ArgumentParser(prog="cal-convert-mgm", description=__doc__, allow_abbrev=False)
    parser.add_argument("source", type=Path, help="folder with config.json and *.safetensors")
    parser.add_argument("--vision", type=Path, help="folder of its CLIP (openai/clip-vit-large-patch14-336)")
    parser.add_argument("--aux_vision", type=Path, help="folder of its OpenCLIP (CLIP-convnext_large_d_320)")
    parser.add_argument("--tokenizer", type=Path, help="folder or tokenizer.model, when it is not in the source")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist yet")
    parser.add_argument("--untrained", action="store_true", help="source is a language model; projector starts fresh")
    parser.add_argument("--hd", action="store_true", help="grid of 2 x 2 crops and a global view, 1536 pixels")
    parser.add_argument("--seed", type=int, default=0, help="of the fresh projector")
    parser.add_argument("--dry_run", action="store_true", help="check everything, print the mapping, write nothing")
    add_version(parser)
    given = parser.parse_args(argv)
    # Here begins torch: arguments.py says why.
    from cal_pipeline.models.mini_gemini.convert import convert

    try:
        convert(
            given.source, vision=given.vision, aux_vision=given.aux_vision, output=given.output,
            tokenizer=given.tokenizer, untrained=given.untrained, hd=given.hd, seed=given.seed, dry_run=given.dry_run,
        )  # fmt: skip
    except CalError as error:
        print(f"cal-convert-mgm: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
