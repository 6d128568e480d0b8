"""Writes the tables of docs/study.md and its plots from the committed results; nothing is trained.

python studies/report.py
python studies/report.py --arms quick --results_dir quick --print
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import arm_tables
import comparison
import figures
import results
from arms import ARMS
from results import RecordError

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, IMAGES = DOCS / "study.md", DOCS / "images"
_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="with --print; default: all")
    parser.add_argument("--results_dir", type=Path, default=results.RESULTS)
    parser.add_argument("--print", action="store_true", help="print the tables, write no page and no plots")
    flags = parser.parse_args()
    if not flags.print and flags.results_dir.resolve() != results.RESULTS.resolve():
        parser.error(f"docs/study.md shows {results.RESULTS}: --print the tables of {flags.results_dir}")
    if flags.arms and not flags.print:
        parser.error("the page has every arm: --arms chooses what to --print")
    try:
        runs, measurements = (
            comparison.rows_by_key(table.read())
            for table in (results.runs(flags.results_dir), results.measurements(flags.results_dir))
        )
    except RecordError as error:
        print(error, file=sys.stderr)
        return 2
    if flags.print:
        for name, table in arm_tables.tables_of(flags.arms or list(ARMS), runs, measurements).items():
            print(f"{name}: {ARMS[name].question}\n\n{table}")
        return 0
    page = written(PAGE.read_text(encoding="utf-8"), arm_tables.page_tables(runs, measurements))
    PAGE.write_text(page, encoding="utf-8")
    figures.write_all(runs, measurements, IMAGES)
    return 0


def written(page: str, tables: dict[str, str]) -> str:
    """The page with these tables between their markers; raises KeyError for a marker that names none."""
    return _BLOCK.sub(lambda block: block[1] + tables[block[2]] + block[3], page)


if __name__ == "__main__":
    sys.exit(main())
