"""Converts checkpoints of other layouts to one Mini-Gemini in Hugging Face's.

Three kinds of source: a published Mini-Gemini (`mgm`, `mgm_gemma`); with --untrained a language model (`llama`,
`gemma`), which gets a fresh projector: what pretraining starts from; with --hd a Mini-Gemini of ours (or one of the
former two) whose images become larger: what HD finetuning starts from.

    cal-convert-mgm Mini-Gemini-7B/ --vision clip/ --aux_vision openclip/ --output mini-gemini/
    cal-convert-mgm Mini-Gemini-7B/ --vision clip/ --aux_vision openclip/ --output mini-gemini-hd/ --hd
    cal-convert-mgm vicuna-7b/ --untrained --vision clip/ --aux_vision openclip/ --output untrained/ --dry_run
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cal_pipeline.parser import Parser
from cal_schemas.errors import CalError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; 0 on success, 2 for anything that cannot be converted."""
    try:
        given = _parser().parse_args(argv)
        # Here begins torch: arguments.py says why.
        from cal_pipeline.models.mini_gemini.convert import convert

        convert(
            given.source, vision=given.vision, aux_vision=given.aux_vision, output=given.output,
            tokenizer=given.tokenizer, untrained=given.untrained, hd=given.hd, seed=given.seed, dry_run=given.dry_run,
        )  # fmt: skip
    except CalError as error:
        print(f"cal-convert-mgm: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _parser() -> Parser:
    parser = Parser(prog="cal-convert-mgm", description=__doc__)
    parser.add_argument("source", type=Path, help="folder with config.json and *.safetensors")
    model, output = parser.group("model"), parser.group("output")
    model.add_argument("--vision", type=Path, help="folder of its CLIP (openai/clip-vit-large-patch14-336)")
    model.add_argument("--aux_vision", type=Path, help="folder of its OpenCLIP (CLIP-convnext_large_d_320)")
    model.add_argument("--tokenizer", type=Path, help="folder or tokenizer.model, when it is not in the source")
    model.add_argument("--untrained", action="store_true", help="source is a language model; projector starts fresh")
    model.add_argument("--seed", type=int, default=0, help="of the fresh projector")
    model.add_argument("--hd", action="store_true", help="grid of 2 x 2 crops and a global view, 1536 pixels")
    output.add_argument("--output", type=Path, required=True, help="folder to write; must not exist yet")
    output.add_argument("--dry_run", action="store_true", help="check everything, print the mapping, write nothing")
    parser.add_program_flags()
    return parser


if __name__ == "__main__":
    sys.exit(main())
