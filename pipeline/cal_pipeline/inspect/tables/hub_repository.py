"""Publishes files to a data set of the Hugging Face Hub, and goes on where a push was interrupted."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.redaction import redacted
from cal_schemas.whole import PLAN

CARD = "README.md"
_NOT_CONTENT = (".gitattributes", CARD, PLAN)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\s*", re.DOTALL)
_SHOWN = 3
_TOKEN = "`hf auth login`, or HF_TOKEN in the environment"
_AGAIN = "the same command goes on from there"


@dataclass(frozen=True, kw_only=True, slots=True)
class There:
    """What a repository holds."""

    exists: bool = False
    private: bool = True
    files: frozenset[str] = frozenset()
    has_card: bool = False
    """One that says something: the Hub's own page makes one of a licence alone."""
    plan: Sequence[Mapping[str, Any]] | None = None
    """What an earlier push was to publish; None where there was none."""


class HubRepository:
    """One data set by its name.

    Args:
        repo_id: `ORG/NAME`; ConfigError for what is none, and where no token is found.
    """

    def __init__(self, repo_id: str) -> None:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError

        utils: Any = importlib.import_module("huggingface_hub.utils")
        try:
            utils.validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ConfigError(f"--repo_id {repo_id!r}: {error}") from error
        if repo_id.count("/") != 1:
            raise ConfigError(
                f"--repo_id {repo_id!r}: expected ORG/NAME, where ORG is an organization or your own name"
            )
        # What it cannot do is said in one line, and how far it is by `shown_progress`.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        utils.disable_progress_bars()
        self.repo_id = repo_id
        self._api: Any = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="cal-vlm")
        self._add: Any = huggingface_hub.CommitOperationAdd
        self._delete: Any = huggingface_hub.CommitOperationDelete
        with self._errors("looking at it"):
            if huggingface_hub.get_token() is None:
                raise ConfigError(f"publishing takes a token that may write to {repo_id}: {_TOKEN}")

    @property
    def address(self) -> str:
        """Of its page."""
        return redacted(f"{self._api.endpoint}/datasets/{self.repo_id}")

    def look(self) -> There:
        """What is there now; ConfigError where the token may not look, or the name is taken."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._errors("looking at it"):
            try:
                info = self._api.dataset_info(self.repo_id)
            except RepositoryNotFoundError as error:
                if error.response.status_code == 401:  # For whoever has no valid token everything is hidden.
                    self._api.whoami()
                return There()
            files = frozenset(item.rfilename for item in info.siblings or ())
            plan = json.loads(self._read(PLAN)) if PLAN in files else None
            if plan is not None and not (
                isinstance(plan, list) and all(isinstance(item, dict) and "name" in item for item in plan)
            ):
                self._refuse(f"a {PLAN} that is none")
            has_card = CARD in files and bool(_FRONT_MATTER.sub("", self._read(CARD)).strip())
        return There(exists=True, private=bool(info.private), files=files, has_card=has_card, plan=plan)

    def validate(self, there: There, plan: Sequence[Mapping[str, Any]]) -> None:
        """ConfigError where it holds something else than a part of what is to be published."""
        content = sorted(there.files.difference(_NOT_CONTENT))
        if there.plan is None:
            if content or there.has_card:
                self._refuse(_some(content or [f"a {CARD}"]))
            return
        ours = {item["name"]: item for item in plan}
        published = {item["name"]: item["published"] for item in there.plan if "published" in item}
        for name in (item["name"] for item in there.plan):
            if name not in ours:
                self._refuse(f"{name}.parquet, which is not here,")
            elif name in published and published[name] != ours[name].get("published"):
                self._refuse(f"another {name}.parquet (measured again, changed, or other --images)")
        if others := [name for name in content if name.endswith(".parquet") and name[:-8] not in published]:
            self._refuse(f"{_some(others)}, which was not put there by cal-inspect push,")

    def check_card(self, text: str) -> None:
        """ConfigError where the Hub would not take it (a licence that it does not know)."""
        session = importlib.import_module("huggingface_hub.utils").get_session()
        with self._errors("checking the card"):
            answer = session.post(
                f"{self._api.endpoint}/api/validate-yaml", json={"repoType": "dataset", "content": text},
                headers={"Accept": "text/plain"},
            )  # fmt: skip
        if answer.status_code == 400:  # Any other failure is of no weight: the last commit asks again.
            said = " ".join(answer.text.split())[:300]
            raise ConfigError(f"the Hub does not take this card, see --license: {said}")

    def create(self, *, private: bool) -> None:
        """Makes it where it is not there."""
        with self._errors("creating it"):
            self._api.create_repo(self.repo_id, repo_type="dataset", private=private, exist_ok=True)

    def commit(self, message: str, files: Mapping[str, Path | bytes], remove: Sequence[str] = ()) -> None:
        """Adds files by their names, in one commit; one that is there with this content is not uploaded again."""
        with self._errors(f"uploading ({message})"):
            operations = [self._add(path_in_repo=name, path_or_fileobj=data) for name, data in files.items()]
            operations += [self._delete(path_in_repo=name) for name in remove]
            self._api.create_commit(
                self.repo_id, operations, commit_message=f"{message} (cal-inspect push)", repo_type="dataset"
            )

    def licence_of(self, repo_id: str) -> str | None:
        """What the card of a data set says of its licence; None where it says nothing, or cannot be asked."""
        try:
            card = self._api.dataset_info(repo_id).card_data
        except Exception:  # Whatever: it is then not known, and the card says so.
            return None
        licence = card.get("license") if card else None
        return ", ".join(licence) if isinstance(licence, list) else licence

    def _read(self, name: str) -> str:
        path = self._api.hf_hub_download(self.repo_id, name, repo_type="dataset")
        return Path(path).read_text(encoding="utf-8")

    def _refuse(self, what: str) -> None:
        raise ConfigError(
            f"--repo_id {self.repo_id}: it holds {what} already, and nothing there is replaced: give another name, or "
            f"empty it at {self.address}"
        )

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        session = importlib.import_module("huggingface_hub.utils").get_session()
        # httpx, or its successor: whichever huggingface_hub has.
        failures: Any = importlib.import_module(type(session).__module__.partition(".")[0])
        what = f"--repo_id {self.repo_id}: {doing}"
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise ConfigError(f"{what}: HF_HUB_OFFLINE is set, which forbids to ask the Hub: unset it") from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            said = " ".join((error.server_message or error.response.reason_phrase or "").split())[:300]
            if status == 401:
                raise ConfigError(f"{what}: the Hub does not know this token ({said}): {_TOKEN}") from error
            if status == 403:
                raise ConfigError(
                    f"{what}: this token may not ({said}): it needs the right to write to "
                    f"{self.repo_id.partition('/')[0]} ({self._api.endpoint}/settings/tokens), then {_TOKEN}"
                ) from error
            if status == 400:
                raise ConfigError(f"{what}: the Hub refused it ({said})") from error
            raise StoreError(f"{what} failed ({status}: {said}); {_AGAIN}") from error
        except (failures.TransportError, failures.InvalidURL) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise StoreError(f"{what} failed, no answer from {self._api.endpoint} ({reason}); {_AGAIN}") from error
        except (OSError, ValueError, RuntimeError) as error:
            if isinstance(error, ConfigError | StoreError):
                raise
            reason = ": ".join(str(part) for part in (error, error.__cause__) if part)
            raise StoreError(f"{what} failed ({' '.join(reason.split())[:300]}); {_AGAIN}") from error


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more files" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
