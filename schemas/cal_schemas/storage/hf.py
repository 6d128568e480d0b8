"""Reads `hf://datasets/org/name@revision/file`: data sets of the Hugging Face Hub, where they are; nothing is written.

A bucket is a repository at a revision. `pin` makes it a commit, of which every later request is: what others push
meanwhile changes nothing. Endpoint and token are huggingface_hub's (HF_ENDPOINT, HF_TOKEN, `hf auth login`), retries
are from here, reading a body included.
"""

from __future__ import annotations

import importlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, unquote

from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage.hf_errors import WITHOUT_NETWORK, passes, translated
from cal_schemas.storage.protocol import ObjectInfo
from cal_schemas.storage.store_errors import one_line

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
ATTEMPTS, FIRST_ATTEMPTS = 8, 3
"""Of a request; of the first one about a repository, where nobody answers: this machine may have no network."""
_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_ASKED_S = 0.5, 20.0, 330.0
_RESET = re.compile(r";\s*t\s*=\s*(\d+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_log = logging.getLogger(__name__)
_Kind = TypeVar("_Kind", dict[str, Any], list[Any])


class Hub:
    """The backend of `hf://`."""

    def __init__(self) -> None:
        from huggingface_hub import constants

        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self._pinned: dict[str, str] = {}

    def pin(self, bucket: str) -> str:
        """The bucket at the commit that its revision is now; StoreError where there is none, or no answer."""
        repo, revision = _parts(bucket)
        if not _COMMIT.fullmatch(revision):
            url = f"{self.endpoint}/api/{repo}/revision/{quote(revision, safe='')}"
            answer = self._ask(f"hf://{bucket}", "GET", url, params={"expand": "sha"}, unreachable=FIRST_ATTEMPTS)
            sha = self._parsed(f"hf://{bucket}", answer, dict).get("sha")
            if not isinstance(sha, str) or not _COMMIT.fullmatch(sha):
                raise StoreError(f"hf://{bucket}: {self.endpoint} names no commit of it")
            self._pinned[bucket] = f"{repo}@{sha}"
        return self._pinned.get(bucket, bucket)

    def _at(self, bucket: str) -> tuple[str, str]:
        """(repository, commit) of a bucket: a process reads one commit of a name that was not pinned."""
        return _parts(self._pinned.get(bucket) or self.pin(bucket))

    def _ask(self, what: str, method: str, url: str, *, unreachable: int = 0, **options: Any) -> Any:
        """The answer, its body read and as long as announced; waits and asks again where that may help."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        hub: Any = importlib.import_module("huggingface_hub.utils")
        headers = hub.build_hf_headers(library_name="cal-vlm")
        # What is counted must be the file's own bytes.
        headers |= {"Accept-Encoding": "identity", **options.pop("headers", {})}
        wait = 0.0
        for attempt in range(1, ATTEMPTS + 1):
            client = hub.get_session()
            # httpx, or its successor: whichever huggingface_hub has.
            failures: Any = importlib.import_module(type(client).__module__.partition(".")[0])
            timeout = failures.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            last = attempt == ATTEMPTS
            try:
                answer = client.request(method, url, headers=headers, timeout=timeout, **options)
                hub.hf_raise_for_status(answer)
                return answer
            except OfflineModeIsEnabled as error:
                raise StoreError(
                    f"{what}: HF_HUB_OFFLINE is set, which forbids to ask the Hub: unset it, or {WITHOUT_NETWORK}"
                ) from error
            except HfHubHTTPError as error:
                answer = error.response
                if last or not passes(answer):
                    raise translated(what, answer, self.endpoint, attempt) from error
                reason, wait = f"status {answer.status_code}", _asked_for(answer.headers)
            except (failures.UnsupportedProtocol, failures.LocalProtocolError, UnicodeError) as error:
                # A token with other characters than a header may have, say: asking again changes nothing.
                raise StoreError(f"{what}: {self.endpoint} cannot be asked: {one_line(error)}") from error
            except failures.TransportError as error:
                reason, wait = f"{type(error).__name__}: {one_line(error)}", 0.0
                no_host = isinstance(error, failures.ConnectError | failures.ConnectTimeout)
                if last or (no_host and attempt == unreachable):
                    raise StoreError(
                        f"{what}: no answer from {self.endpoint} after {attempt} tries ({reason}); without a network "
                        f"{WITHOUT_NETWORK}"
                    ) from error
            except (failures.InvalidURL, failures.HTTPError) as error:
                raise StoreError(f"{what}: {self.endpoint} cannot be asked: {one_line(error)}") from error
            wait = max(wait, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0))
            _log.warning("%s: %s; try %d of %d in %.1f s", what, reason, attempt + 1, ATTEMPTS, wait)
            time.sleep(wait)
        raise AssertionError("unreachable")

    def _parsed(self, what: str, answer: Any, kind: type[_Kind]) -> _Kind:
        """The JSON value of an answer; StoreError for what no Hub says: a proxy's page, also one of status 200."""
        try:
            value = answer.json()
        except ValueError:
            value = None
        if not isinstance(value, kind):
            said = one_line(answer.text) or "nothing"
            raise StoreError(
                f"{what}: {self.endpoint} does not answer as a Hub ({said:.80}): is HF_ENDPOINT one, or does a proxy "
                "answer in its place?"
            )
        return value

    def info(self, bucket: str, key: str) -> ObjectInfo | None:
        """As `Backend.info`."""
        repo, commit = self._at(bucket)
        url = f"{self.endpoint}/api/{repo}/paths-info/{commit}"
        answer = self._ask(_uri(bucket, key), "POST", url, data={"paths": [key], "expand": False})
        items = self._parsed(_uri(bucket, key), answer, list)
        return next((_info(item) for item in items if item["type"] == "file" and item["path"] == key), None)

    def objects(self, bucket: str, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """As `Backend.objects`; `prefix` is empty or ends in a slash."""
        repo, commit = self._at(bucket)
        inside = f"/{quote(prefix.rstrip('/'), safe='')}" if prefix else ""
        url: str | None = f"{self.endpoint}/api/{repo}/tree/{commit}{inside}"
        options: dict[str, Any] = {"params": {"recursive": True, "expand": False}}
        found: list[ObjectInfo] = []
        while url and not (limit and len(found) >= limit):
            try:
                answer = self._ask(_uri(bucket, prefix), "GET", url, **options)
            except FileNotFoundError:
                break
            items = (item for item in self._parsed(_uri(bucket, prefix), answer, list) if item["type"] == "file")
            found += [_info(item) for item in items if item["path"].startswith(prefix)]
            # The address of the next page has these options.
            url, options = answer.links.get("next", {}).get("url"), {}
        yield from sorted(found, key=lambda item: item.key)[:limit]

    def read(self, bucket: str, pinned: ObjectInfo, start: int, stop: int) -> bytes:
        """As `Backend.read`."""
        data, total = self._get(bucket, pinned.key, {"Range": f"bytes={start}-{stop - 1}"})
        if total != pinned.st_size:
            raise StoreError(f"{_uri(bucket, pinned.key)}: has {total} bytes, and {pinned.st_size} in the listing")
        return data if len(data) == stop - start else data[start:stop]

    def read_all(self, bucket: str, key: str) -> bytes:
        """As `Backend.read_all`."""
        return self._get(bucket, key, {})[0]

    def _get(self, bucket: str, key: str, headers: dict[str, str]) -> tuple[bytes, int]:
        """Bytes of a file, and how many it has in all."""
        repo, commit = self._at(bucket)
        url = f"{self.endpoint}/{repo}/resolve/{commit}/{quote(key)}"
        answer = self._ask(_uri(bucket, key), "GET", url, headers=headers)
        data: bytes = answer.content
        of_part = answer.headers.get("Content-Range", "").rpartition("/")[2] if answer.status_code == 206 else ""
        return data, int(of_part) if of_part.isdigit() else len(data)

    def upload(self, bucket: str, key: str, content: Path | bytes, writer: str, *, if_absent: bool) -> None:
        """ConfigError: as all that writes."""
        self._refuse(bucket)

    def delete(self, bucket: str, key: str) -> None:
        """ConfigError: as all that writes."""
        self._refuse(bucket)

    def uploads(self, bucket: str, prefix: str) -> list[tuple[str, Callable[[], None]]]:
        """None: nothing is uploaded in parts."""
        return []

    def _refuse(self, bucket: str) -> NoReturn:
        raise ConfigError(
            f"hf://{bucket}: the Hub is read here and not written: give a directory, and publish it when it is done "
            "(cal-inspect push)"
        )


def _parts(bucket: str) -> tuple[str, str]:
    """(repository, revision) of a bucket."""
    repo, _, revision = bucket.partition("@")
    return repo, unquote(revision) or "main"


def _uri(bucket: str, key: str) -> str:
    return f"hf://{bucket}/{key}"


def _asked_for(headers: Any) -> float:
    """Seconds that the server asks to wait, as far as it says so in numbers."""
    said = headers.get("Retry-After", "").strip()
    reset = _RESET.search(headers.get("RateLimit", ""))
    return min(_LONGEST_ASKED_S, float(said) if said.isdigit() else float(reset[1]) if reset else 0.0)


def _info(item: dict[str, Any]) -> ObjectInfo:
    lfs = item.get("lfs") or {}
    return ObjectInfo(key=item["path"], st_size=item["size"], etag=lfs.get("oid") or item["oid"], st_mtime_ns=0)
