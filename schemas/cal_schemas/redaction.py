"""Takes passwords, tokens and signatures out of any text that is shown, logged or stored.

URLs bring them: `https://user:password@host`, and the queries of presigned ones. Every message of a CalError, every
line of the log (`keep_secrets`), every `error` of a row, every path of an image and every report goes through it.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

# A path that was made of a URL has lost one of its slashes. A password may hold the quotes that end a quoted URL.
_URL = re.compile(
    r"(\b(?i:s3|gs|gcs|az|abfss?)://?|://|\b(?i:https?|hf|ray):/(?!/))((?:[^\s/'\"<>@:]*:[^\s/\"<>,]*@)?[^\s'\"<>]*)"
)
_NAMES = r"(?:sig|signature|token|credential|passw(?:or)?d|pwd|secret|accesskeyid|apikey|[-_]key)"
_PAGE = re.compile(r"(?i)\s*https?:/")
_WITH_PASSWORD = re.compile(r"\s*[a-zA-Z][\w+.-]*:/+[^/@:]*:[^@]*@")
_SECRET = re.compile(rf"(?i){_NAMES}=")
# An address with a port and without a scheme, as a library quotes one that it cannot use.
_BARE = re.compile(r"(?<![^\s/'\"<>=(,`])[^\s/:@'\"<>=(,`]+:[^\s/:@\"<>]+@(?=[\w.-]+:\d|\[)")
_TOKEN = re.compile(r"\b(hf_|api_org_)[A-Za-z0-9]{20,}|\b(Bearer )[^\s'\"]+")
"""Of the Hub, and of any header that a library quotes."""
_NAMED = (
    # Queries of addresses whose host a library left out, and connection strings.
    (re.compile(rf"(?i)\?[^\s'\"<>?]*{_NAMES}=[^\s'\"<>)]+"), ""),
    (
        re.compile(
            rf"(?i)(\b\w*AccessKey|\bAccountKey|\bSharedAccessSignature|\bsig|\bpassword|&[\w-]*?{_NAMES})=[^\s;&'\"]+"
        ),
        r"\1=…",
    ),
)


def redacted(text: str) -> str:
    """The text without the user, password and query of any URL, and without signatures, keys and tokens by name."""
    if ":/" in text:
        text = _URL.sub(_clean, text)
    if "@" in text:
        text = _BARE.sub("", text)
    if "=" in text:
        for pattern, instead in _NAMED:
            text = pattern.sub(instead, text)
    if "hf_" in text or "api_org_" in text or "Bearer " in text:
        text = _TOKEN.sub(lambda found: f"{found[1] or found[2]}…", text)
    return text


def unsigned(text: str) -> str:
    """A URL without its user and password, and that of a page without a query that holds a signature, key or token.

    For what tells rows apart, their ids and the paths of their images: whatever is no such URL stays as it is, since a
    file or object may be called `a?sig=1.jpg`, and `?id=1` is another image than `?id=2`.
    """
    page = _PAGE.match(text)
    if not page and not _WITH_PASSWORD.match(text):
        return text
    address, mark, query = text.partition("?")
    signed = page and _SECRET.search(query)
    return redacted(address) + ("" if signed else mark + query)


def _clean(found: re.Match[str]) -> str:
    of_a_store = found[1][0] in "sSgGaA"
    return found[1] + "://".join(_without_secrets(url, has_port=not of_a_store) for url in found[2].split("://"))


def _without_secrets(url: str, *, has_port: bool) -> str:
    """What follows the scheme, from the last @ of its authority to its query."""
    authority = url.partition("/")[0]
    user, colon, rest = authority.partition(":")
    if "@" in authority:
        url = authority.rpartition("@")[2] + url[len(authority) :]
    elif user and colon and not (has_port and rest.isdigit()) and not url.startswith("["):
        url = url.rpartition("@")[2]  # A secret key that was not quoted holds slashes of its own.
    address, _, query = url.partition("?")
    return address + query[len(query.rstrip("):,.;")) :]


def redacted_in(value: Any) -> Any:
    """The value, as JSON has it, with every text in it redacted; keys stay as they are."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_in(item) for key, item in value.items()}
    return [redacted_in(item) for item in value] if isinstance(value, list | tuple) else value


def keep_secrets() -> None:
    """Redacts what this process logs from now on, and the traceback it may end with, whoever logs and whatever writes.

    A record's traceback is text then (`exc_text`), as a Formatter takes it.
    """
    make = logging.getLogRecordFactory()
    if getattr(make, "keeps_secrets", False):
        return

    def make_redacted(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        try:
            record.msg, record.args = redacted(record.getMessage()), ()
        except (TypeError, ValueError):  # A mistake of who logs, which logging reports in its own way.
            return record
        if record.exc_info and record.exc_info[0]:
            record.exc_text, record.exc_info = _traceback(*record.exc_info), None
        return record

    make_redacted.keeps_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_redacted)
    sys.excepthook = lambda *error: print(_traceback(*error), file=sys.stderr)  # noqa: T201


def _traceback(kind: Any, error: BaseException | None, trace: TracebackType | None) -> str:
    return redacted("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"))
