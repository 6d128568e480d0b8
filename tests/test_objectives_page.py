"""docs/objectives.md lists the scores, maps and presets that there are, with their equations and defaults."""

from __future__ import annotations

from pathlib import Path

from cal_schemas.map_definitions import MAPS
from cal_schemas.presets import PRESETS
from cal_schemas.scores import SCORES

PAGE = Path(__file__).parent.parent / "docs" / "objectives.md"


def scores() -> list[str]:
    rows = []
    for name, score in SCORES.items():
        columns = [f"`--extra_columns {','.join(score.extra)}`"] if score.extra else []
        needs = " and ".join([*columns, *(["the model in training"] if score.of_training else [])])
        rows.append(f"| `{name}` | {score.equation.replace('|', chr(92) + '|')} | {needs or 'nothing more'} |")
    return rows


def maps() -> list[str]:
    return [
        f"| `{name}{'=' + rule.parameter if rule.parameter else ''}` | {rule.equation} | {rule.bounds[0]:g}, "
        f"{rule.bounds[1]:g} | {rule.window} |"
        for name, rule in MAPS.items()
    ]


def presets() -> list[str]:
    rows = []
    for name, preset in PRESETS.items():
        flags = [
            f"`{flag} {value:g}`" if isinstance(value, float) else f"`{flag} {value}`"
            for flag, value in preset.flags.items()
        ]
        rows.append(
            f"| `{name}` | {preset.paper} | {preset.original} | {', '.join(flags)} | {preset.contrast} | "
            f"{preset.literal} | {preset.reading} |"
        )
    return rows


def test_the_page_lists_what_there_is() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for rows in (scores(), maps(), presets()):
        at = lines.index(rows[0])
        assert lines[at : at + len(rows) + 1] == [*rows, ""]
