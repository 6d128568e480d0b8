"""Finds where a template's own `{% generation %}` blocks begin and end in what it writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cal_pipeline.encoding.template_text import TemplateText
from cal_schemas.errors import SampleError

_BLOCK = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def generation_blocks(
    laid: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, stem: str, text: TemplateText, rendered: str
) -> list[tuple[int, int]] | None:
    """Spans in `rendered`, which the template made of `laid` and `tools`; None for a template without blocks.

    transformers tells them only together with tokens, not to two threads at once, and wrongly inside of a macro: here
    the blocks write marks of their own, which begin with `stem`. Raises SampleError where that changes the rest.
    """
    if not _BLOCK.search(text.source):
        return None
    opened, closed = f"{stem}open", f"{stem}shut"

    def marked(tag: re.Match[str]) -> str:
        left, end, right = tag.groups()
        if end:
            return f"{{%{left} if true %}}{{% endif %}}{{{{ '{closed}' }}}}{{% endgeneration {right}%}}"
        return f"{{%{left} generation %}}{{{{ '{opened}' }}}}{{% if true %}}{{% endif {right}%}}"

    starts, position, blocks, pieces = list[int](), 0, list[tuple[int, int]](), list[str]()
    for piece in re.split(f"({opened}|{closed})", text(laid, tools, source=_BLOCK.sub(marked, text.source))):
        if piece == opened:
            starts.append(position)
        elif piece == closed and starts:
            blocks.append((starts.pop(), position))
        else:
            pieces.append(piece)
            position += len(piece)
    if "".join(pieces) != rendered:
        raise SampleError("the chat template's generation blocks cannot be located: it looks into what they write")
    return sorted(blocks)
