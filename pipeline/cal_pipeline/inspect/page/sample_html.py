"""Writes samples as one HTML file without scripts."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from cal_pipeline.inspect.page.sample import ShownSample
from cal_pipeline.inspect.page.shading import Shading, characters, css
from cal_pipeline.inspect.tables.flat import noun
from cal_pipeline.inspect.tables.samples import ShownToken, Utterance, small_jpeg

_PAGE = """
:root { color-scheme: light dark; }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
"""
_PARTS = {
    "h1": "font-size: 1.5rem;",
    "img": "max-width: 100%; border-radius: 4px;",
    ".turn": "margin: .8rem 0; white-space: pre-wrap; overflow-wrap: anywhere;",
    ".role": "font-size: .75rem; text-transform: uppercase; opacity: .7; display: block;",
    ".t": "border-radius: 3px; padding: .1em 0;",
    ".undefined": "text-decoration: underline dotted;",
    ".about": "font-size: .85rem; opacity: .75; overflow-wrap: anywhere;",
    ".scale": "font-size: .85rem;",
    ".bar": "display: inline-block; width: 8rem; height: .8rem; border: 1px solid; vertical-align: middle;",
}
_SCOPE = "cal-words"
"""Class of what stands in a page of others."""


def sample_page(shown: Sequence[ShownSample], shading: Shading) -> str:
    """One self-contained HTML file without scripts; every text of the dataset is escaped."""
    parts = [_article(item, shading, 768) for item in shown]
    style = _PAGE + "".join(f"{name} {{ {rules} }}\n" for name, rules in _PARTS.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(shown[0].sample_id)}</title><style>{style}</style></head><body>\n"
        + "\n<hr>\n".join([*parts, _bar(shading)])
        + "\n</body></html>\n"
    )


def sample_fragment(shown: ShownSample, shading: Shading) -> str:
    """The same as an element of another page, a notebook's, which keeps its fonts and colours; images are small."""
    rules = {**_PARTS, "h1": "font-size: 1rem; margin: 0;", ".turn": _PARTS[".turn"].replace(".8rem", ".3rem")}
    style = "".join(f".{_SCOPE} {name} {{ {own} }} " for name, own in rules.items())
    bar = _bar(shading) if shown.tokens else ""
    return f'<div class="{_SCOPE}"><style>{style}</style>\n{_article(shown, shading, 256)}{bar}</div>'


def _bar(shading: Shading) -> str:
    left, first, right = shading.bar()
    # Each side fades in its own colour; both are nothing where the strength is 0.
    zero = f"{abs(first) / 2:.0%}"
    colours = f"{css(first)},{css(first * 1e-9)} {zero},{css(0.0)} {zero},{css(1.0)}"
    bar = f'<span class="bar" style="background:linear-gradient(90deg,{colours})"></span>'
    return f'<p class="scale">{html.escape(left)} {bar} {html.escape(right)}</p>'


def _article(shown: ShownSample, shading: Shading, side_px: int) -> str:
    lines = [f"<h1>{html.escape(shown.sample_id)}</h1>"]
    for name, image in shown.images:
        if isinstance(image, str):
            lines.append(f'<p class="about">image {html.escape(name)}: {html.escape(image)}</p>')
        else:
            data = base64.b64encode(small_jpeg(image, side_px)).decode("ascii")
            lines.append(f'<p><img alt="image {html.escape(name)}" src="data:image/jpeg;base64,{data}"></p>')
    if shown.missing:
        lines.append(f'<p class="about">{html.escape(shown.missing)}</p>')
    for turn in shown.turns:
        lines.append(_turn(turn, shown.tokens[turn.tokens.start : turn.tokens.stop], shading))
    about = [shown.numbers(), *([shown.heading] if shown.heading != shown.sample_id else [])]
    lines += [f'<p class="about">{html.escape(text)}</p>' for text in about]
    return "\n".join(lines)


def _turn(turn: Utterance, tokens: Sequence[ShownToken], shading: Shading) -> str:
    spans = [_span(group, shading) for group in characters(tokens)]
    words = "".join(spans) or html.escape(turn.text)
    return f'<div class="turn"><span class="role">{html.escape(turn.role)}</span>{words}</div>'


def _span(tokens: Sequence[ShownToken], shading: Shading) -> str:
    """A token, or a character with the tokens that share it."""
    text = tokens[-1].text
    shade = shading.extreme(tokens)
    name = noun(shading.score)
    figures = "; ".join(
        f"{name} {'undefined' if math.isnan(token.score) else f'{token.score:.3f}'}, weight {token.weight:.3f}"
        for token in tokens
    )
    several = f"{len(tokens)} tokens: " if len(tokens) > 1 else ""
    kind = "t undefined" if all(math.isnan(token.score) for token in tokens) else "t"
    return (
        f'<span class="{kind}" style="background:{css(shade)}" '
        f'title="{html.escape(f"{text.strip()!r} {several}{figures}")}">{html.escape(text)}</span>'
    )
