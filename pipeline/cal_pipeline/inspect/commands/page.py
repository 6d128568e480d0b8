"""Writes one self-contained HTML file: summary, plots, and a gallery of samples with shaded words.

    cal-inspect page annotated/ --output page.html
    cal-inspect page annotated/ --output page.html --tokenizer llava-hf/llava-1.5-7b-hf
    cal-inspect page annotated/ --output page.html --samples 100 --title LLaVA
    cal-inspect page annotated/ --output kl.html --score kl --map top_share=0.4

It needs no network and no server, and its own content security policy lets nothing run but its own script. Text of the
dataset is data to that script, never markup. Sliders for alpha and beta weigh and shade anew at once; weights of
another map than clamp are as they were written.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.page.audit_result import find_audit
from cal_pipeline.inspect.page.chosen_rows import SHARES
from cal_pipeline.inspect.page.page_data import page_data
from cal_pipeline.inspect.tables.reading import open_paths
from cal_pipeline.inspect.tables.statistics import bounds_scores
from cal_pipeline.inspect.tables.weighting import given_weighting, weighting_of
from cal_schemas.counted import counted
from cal_schemas.errors import ConfigError
from cal_schemas.scores import DEFAULT_SCORE

SCRIPTS = ("state", "elements", "weights", "plots", "tables", "cards", "gallery", "selection", "page")
"""Parts of the page's script."""
_UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect page`."""
    flags.add_annotated(parser)
    flags.add_tokenizer(parser)
    parser.add_argument("--output", type=flags.place, required=True, metavar="FILE.html", help="the page")
    parser.add_argument(
        "--samples", type=flags.at_least(0), default=500, help="cards in the gallery, at most (default 500)"
    )
    parser.add_argument(
        "--pick", choices=[*SHARES], default="worst",
        help="which rows: those with the lowest delta of a word, by mean and of any, beside failed ones and a fifth at "
        "random; or random, first, or of the lowest or highest mean delta (default worst)",
    )  # fmt: skip
    flags.add_ids_from(parser)
    parser.add_argument("--seed", type=flags.at_least(0), default=0, help="of the rows drawn")
    flags.add_weighting(parser, pool=False)
    parser.add_argument(
        "--thumbnail_px", type=flags.at_least(16), default=320, help="longer side of an image (default 320)"
    )
    flags.add_image_folder(parser)
    parser.add_argument(
        "--audit", type=flags.place, metavar="FILE.json",
        help="of cal-inspect audit --json, whose swap control is shown (default: that of the directory's last audit)",
    )  # fmt: skip
    parser.add_argument("--title", help="of the page; default the directory's name")


def run(arguments: argparse.Namespace) -> int:
    """Writes the page; 0."""
    weighting = given_weighting(arguments)
    if not math.isfinite(weighting["beta"]) and bounds_scores(weighting["map"]):
        raise ConfigError("--beta of a page is a place on a slider and must be finite")
    target = flags.new_file(arguments.output, ".html", ".htm")
    dataset = open_paths(arguments.annotated)
    weighting = weighting_of(arguments, dataset)
    audit = find_audit(arguments.annotated, dataset.spec.fingerprint(), arguments.audit)
    plural = "Deltas" if weighting["score"] == DEFAULT_SCORE else weighting["score"]
    title = arguments.title or f"{plural} of {arguments.annotated[0].resolve().name}"
    data = page_data(dataset, arguments, weighting, title=title, audit=audit)
    text = page_text(data)
    flags.write_text(target, text)
    images = [image for sample in data["samples"] for image in sample["images"]]
    unread = sum("problem" in image for image in images)
    note = f"; {unread:,} of {counted(len(images), 'image')} cannot be read, it says why" if unread else ""
    print(f"{target}: {len(text.encode()) / 1e6:.2f} MB, open it in a browser{note}")  # noqa: T201
    return 0


def page_text(data: dict[str, Any]) -> str:
    """The whole HTML file: `title` enters the markup escaped, everything else as JSON without `<`, `>` and `&`."""
    parts = resources.files("cal_pipeline.inspect.page") / "parts"
    style = (parts / "page.css").read_text(encoding="utf-8")
    # One script in one scope, in this order: each part uses what stands before it.
    sources = "".join((parts / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{sources}}})();\n'
    policy = (
        f"default-src 'none'; script-src {_source_hash(script)}; style-src {_source_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    values = {
        "POLICY": policy,
        "TITLE": html.escape(data["title"]),
        "NOUN": html.escape(data["score"]["noun"]),
        "LEAD": html.escape(data["score"]["lead"]),
        "STYLE": style,
        # ASCII, so that U+2028 and lone halves of surrogates are escaped as well.
        "DATA": json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).translate(_UNSAFE),
        "SCRIPT": script,
    }
    pieces = (parts / "page.html").read_text(encoding="utf-8").split("%")
    # Every second piece is a name: values are put in once and never looked through for names themselves.
    return "".join(values[piece] if at % 2 else piece for at, piece in enumerate(pieces))


def _source_hash(content: str) -> str:
    """As a content security policy names the inline element of exactly this content."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def read_page_data(path: str | Path) -> dict[str, Any]:
    """The data that a page carries: the inverse of `page_text`, for tests and for other programs."""
    text = Path(path).read_text(encoding="utf-8")
    data = text.partition('<script type="application/json" id="data">')[2]
    value: dict[str, Any] = json.loads(data.partition("</script>")[0])
    return value
