"""Runs `cal-inspect`: a module in `commands` and a line in SUBCOMMANDS for each subcommand, imported when asked for.

A subcommand's module has `add_arguments(parser)` and `run(arguments) -> int`, the exit code; what needs torch is
imported inside of `run`.
"""

from __future__ import annotations

import errno
import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, get_args

from cal_pipeline.console import printing
from cal_pipeline.inspect import progress
from cal_pipeline.log_lines import LogFormat, LogLines, log_to, say, typed_format
from cal_pipeline.parser import Parser
from cal_schemas.errors import CalError

EXIT_DONE, EXIT_REFUSED = 0, 2

SUBCOMMANDS = {
    "summary": "counts, quantiles of delta, delta by turn, what measured it",
    "samples": "a table with one row a sample: id, source, status, what its deltas say together",
    "tokens": "tokens with the highest and lowest deltas, with context",
    "plot": "histogram of delta with alpha, beta and the cumulative share",
    "show": "one sample: its image and its words shaded by delta or weight",
    "filter": "rows that fulfil a condition: ids, or a new annotated directory",
    "compare": "two measurements of the same samples, token by token",
    "export": "per-token weights for other trainers, or a sheet for people to mark",
    "push": "a data set of the Hugging Face Hub: shards, and a card that says what measured them",
    "agreement": "how well deltas agree with what people marked on the sheet",
    "page": "one HTML file: summary, plots, searchable gallery with shaded words",
    "audit": "measure a part again; swap control: is the reference fit for the data",
    "attention": "where in the image the words attend to (LLaVA, LLaVA-NeXT)",
    "patch-words": "the nearest words of each patch (LLaVA, LLaVA-NeXT)",
}
"""Name of a module in `commands` (`-` is `_` there) -> what it is for."""
_DESCRIPTION = """Looks at annotated shards; SUBCOMMAND --help tells more.

    cal-inspect summary annotated/
    cal-inspect show annotated/ "#0"
    cal-inspect page annotated/ --output page.html
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Console entry point; exits 0 done, 1 a check of the subcommand failed, 2 refused, 130 interrupted."""
    sys.exit(run(argv))


@printing()
def run(argv: Sequence[str] | None = None) -> int:
    """The same as an exit code."""
    log_to(sys.stderr, LogLines(typed_format(argv), "%(levelname)s %(message)s"), logging.WARNING)
    for name in (progress.__name__, "cal_pipeline.inspect.tables.weighting"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        given = list(sys.argv[1:] if argv is None else argv)
        parser, module = _parser(given)
        arguments = parser.parse_args(given)
        return int(module.run(arguments)) if module else EXIT_DONE
    except CalError as error:
        reason = str(error)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("datasets", "duckdb", "pandas", "matplotlib"):
            raise
        reason = f"{error.name} is missing: pip install 'cal-vlm[inspect]'"
    except OSError as error:
        # A path that the system does not even look at: any question about it is answered so. And matplotlib, which has
        # no number for a machine on which nothing can be written.
        if error.errno not in (errno.ENAMETOOLONG, errno.EACCES) and "MPLCONFIGDIR" not in str(error):
            raise
        reason = f"{error.filename}: {error.strerror}" if error.errno else str(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    say("cal-inspect", " ".join(reason.split()))
    return EXIT_REFUSED


def _parser(given: Sequence[str]) -> tuple[Parser, Any]:
    """The parser with the flags of the subcommand that is asked for, and that subcommand's module."""
    parser = Parser(prog="cal-inspect", description=_DESCRIPTION)
    parser.add_program_flags()
    subparsers = parser.add_subparsers(title="subcommands", metavar="SUBCOMMAND", required=True)
    chosen = next((word for word in given if not word.startswith("-")), None)
    completes = any(word.replace("-", "_").startswith("__print_completion") for word in given)
    module = None
    for name, purpose in SUBCOMMANDS.items():
        if name != chosen and not completes:
            subparsers.add_parser(name, help=purpose)
            continue
        module = importlib.import_module(f"cal_pipeline.inspect.commands.{name.replace('-', '_')}")
        subparser = subparsers.add_parser(name, help=purpose, description=module.__doc__)
        module.add_arguments(subparser)
        subparser.add_argument(
            "--log_format", choices=get_args(LogFormat), default="text",
            help="of standard error: lines for people, or JSON objects, one a line",
        )  # fmt: skip
    return parser, module


if __name__ == "__main__":
    main()
