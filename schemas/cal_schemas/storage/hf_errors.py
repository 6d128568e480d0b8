"""Translates what the Hub answers when it refuses into one line: the name, the status, the way out."""

from __future__ import annotations

import errno
from typing import Any

from cal_schemas.errors import StoreError
from cal_schemas.storage.store_errors import access_denied, one_line

TOKEN = "`hf auth login`, or HF_TOKEN in the environment (on a cluster: of every node)"
WITHOUT_NETWORK = (
    "fetch it where there is one (hf download --repo-type dataset ORG/NAME --local-dir FOLDER) and give that folder"
)


def passes(answer: Any) -> bool:
    """Whether an answer is of the kind that goes away by asking again; a signed URL may have run out meanwhile."""
    status = answer.status_code
    return status in (408, 425, 429) or status >= 500 or (status in (400, 403) and bool(answer.history))


def translated(what: str, answer: Any, endpoint: str, attempts: int) -> OSError:
    """The Hub's answer about `what`, as an exception of ours or of Python's."""
    status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
    said = one_line(answer.headers.get("X-Error-Message", "") or answer.reason_phrase)
    told = f"({status}{f' {code}' if code else ''}: {said})"
    has_token = "authorization" in answer.request.headers
    kind, *place = (
        ("data set", *what.split("/")[2:5]) if what.startswith("hf://datasets/") else ("model", *what.split("/")[2:4])
    )
    if code == "EntryNotFound":
        return FileNotFoundError(errno.ENOENT, "No such file", what)
    if code == "RepoNotFound":
        doubt = "this token may not read it" if has_token else f"it is private, which takes a token: {TOKEN}"
        return access_denied(f"{what}: {endpoint} shows no such {kind} {told}: the name is another, or {doubt}")
    if code == "GatedRepo":
        page = "/".join([endpoint, *place]).partition("@")[0]
        return access_denied(
            f"{what}: a gated {kind} {told}: ask for access at {page}, then give the token that has it: {TOKEN}"
        )
    if code == "RevisionNotFound":
        return access_denied(f"{what}: no such revision {told}: a revision is a branch, a tag or a commit")
    if status in (401, 403):
        return access_denied(f"{what}: refused {told}; a token that may read it: {TOKEN}")
    if status == 404:
        return access_denied(f"{what}: {endpoint} does not know this request {told}: is HF_ENDPOINT a Hub?")
    tries = f" after {attempts} tries" if attempts > 1 else ""
    return StoreError(f"{what}: reading failed{tries} {told}")
