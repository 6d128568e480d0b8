"""Sets up the log of a program or worker: lines for people, or one JSON object a line for programs."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]
_QUIET = dict.fromkeys(
    (
        "httpx",
        "httpx2",
        "urllib3",
        "filelock",
        "datasets",
        "fsspec",
        "boto3",
        "botocore",
        "s3transfer",
        "azure",
        "google",
        "ray.widgets",
    ),
    logging.WARNING,
) | {"bitsandbytes": logging.ERROR}
"""Third parties that say more at every start than anybody asked."""
_NAMED = ("shard", "metrics")
"""What a log call may name in `extra`; a key of its own in JSON."""


class LogLines(logging.Formatter):
    """Formats records with their time, and in a worker with the shard that it has in work."""

    def __init__(
        self, log_format: LogFormat = "text", text: str = "%(asctime)s %(levelname)s %(in_work)s%(message)s"
    ) -> None:
        super().__init__(text)
        self.log_format = log_format
        self.shard: str | None = None

    def format(self, record: logging.LogRecord) -> str:
        """Returns one line; in text, a traceback is on lines of its own."""
        if self.log_format == "text":
            record.in_work = "" if self.shard is None else f"{self.shard}: "
            return super().format(record)
        at = time.localtime(record.created)
        value: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', at)}.{record.msecs:03.0f}{time.strftime('%z', at)}",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage().strip(),
        }
        value |= {} if self.shard is None else {"shard": self.shard}
        value |= {name: getattr(record, name) for name in _NAMED if hasattr(record, name)}
        if record.exc_info or record.exc_text:
            value["exception"] = record.exc_text or self.formatException(record.exc_info)  # type: ignore[arg-type]
        return json.dumps(value, ensure_ascii=False)


def log_to(stream: TextIO, lines: LogLines, level: int = logging.INFO) -> None:
    """Sends the log of this process to a stream, unless it goes elsewhere already.

    As JSON it takes in what libraries and Python's warnings print there. May be called again: a file of flags can name
    the format once the log has begun.
    """
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler.formatter, LogLines)]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(lines)
    logging.basicConfig(handlers=[handler], level=level)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(quiet)
    logging.captureWarnings(lines.log_format == "json")
    if lines.log_format == "json":
        os.environ.setdefault("TQDM_DISABLE", "1")
        sys.excepthook = lambda *error: root.critical("a fault of this program", exc_info=error)
        for logger in logging.root.manager.loggerDict.values():
            if isinstance(logger, logging.Logger) and logger.handlers:
                logger.handlers.clear()
                logger.propagate = True


def is_json() -> bool:
    """Tells whether this process logs JSON; a bar would stand between its lines."""
    formatters = (handler.formatter for handler in logging.getLogger().handlers)
    return any(isinstance(item, LogLines) and item.log_format == "json" for item in formatters)


def say(program: str, message: str, *, on_new_line: bool = False) -> None:
    """Prints what ends a program, on standard error: `program: message`, or an ERROR of the log where that is JSON.

    `on_new_line` is for behind the `^C` of a terminal.
    """
    if is_json():
        logging.getLogger(program).error(message)
    else:
        start = "\n" if on_new_line else ""
        print(f"{start}{program}: {message}", file=sys.stderr)  # noqa: T201


def typed_format(argv: Sequence[str] | None) -> LogFormat:
    """Returns the --log_format of a command line that may be wrong otherwise: its refusal is a line of the log too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--log_format", "--log-format", nargs="?")
    return "json" if parser.parse_known_args(argv)[0].log_format == "json" else "text"
