"""`hf://` against a Hub on loopback: one commit is read, whatever fails, and what is refused is said in one line."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

import hub_server
from cal_pipeline.models.directory import validate_model
from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage import factory, hf
from cal_schemas.storage.locations import location, open_parquet
from cal_schemas.storage.object_path import ObjectPath
from hub_server import READER, HubServer


def at(url: str) -> ObjectPath:
    path = location(url)
    assert isinstance(path, ObjectPath)
    return path


def parquet(rows: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"number": range(rows), "text": ["x" * 50] * rows}), file)
    return file.getvalue()


def test_files_are_listed_page_by_page_and_read_in_parts(hub: HubServer) -> None:
    files = {f"data/{number}.jsonl": f"{number}\n" for number in range(8)} | {"a b/ä#?.txt": "words"}
    sha = hub.commit("org/name", {**files, "big.parquet": parquet(1000)})
    root = at("hf://datasets/org/name").pinned()
    assert (root.commit, str(root)) == (sha, f"hf://datasets/org/name@{sha}")
    assert [item.key for item in root.files()] == sorted([".gitattributes", "big.parquet", *files])
    assert sum("/tree/" in path for _, path, _ in hub.requests) > 3
    assert [item.name for item in (root / "data").files()] == [f"{number}.jsonl" for number in range(8)]
    assert (root / "a b/ä#?.txt").read_text() == "words"
    assert (root / "data").is_dir()
    assert (root / "data/0.jsonl").is_file()
    assert not (root / "data").is_file()
    assert not (root / "dat").exists()
    with open_parquet(root / "big.parquet") as file:
        assert file.read().num_rows == 1000
    assert sum("/resolve/" in path and "big.parquet" in path for _, path, _ in hub.requests) == 2
    with (root / "data/3.jsonl").open() as lines:
        assert lines.read() == b"3\n"
    with pytest.raises(FileNotFoundError):
        (root / "no.txt").read_bytes()


@pytest.mark.parametrize("fault", ["500", "503", "429", "drop", "cut", "slow"])
def test_a_request_that_fails_is_made_again_and_no_part_is_taken_for_the_whole(hub: HubServer, fault: str) -> None:
    data = parquet(5000)
    hub.commit("org/name", {"a.parquet": data})
    if fault == "slow":
        hub.faults.append(fault)
        assert (at("hf://datasets/org/name").pinned() / "a.parquet").read_bytes() == data
        return
    for what in ("/revision/", "/tree/", "/resolve/", "/cdn/"):
        factory._backend.cache_clear()
        hub.where = what
        hub.faults.extend([fault] * (1 if fault == "429" else 3))
        root = at("hf://datasets/org/name").pinned()
        assert [item.name for item in root.files()][-1] == "a.parquet"
        with open_parquet(root / "a.parquet") as file:
            assert file.read().num_rows == 5000
        assert (root / "a.parquet").read_bytes() == data
        assert not hub.faults


def test_what_fails_every_time_is_named_with_its_status(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    root = at("hf://datasets/org/name")
    hub.commit("org/name", {"a.txt": "words"})
    pinned = root.pinned()
    hub.faults.extend(["500"] * hf.ATTEMPTS)
    with pytest.raises(StoreError, match=rf"{pinned}/a.txt: reading failed after 8 tries \(500: ") as failed:
        (pinned / "a.txt").read_bytes()
    assert failed.value.errno is None
    hub.faults.extend(["cut"] * hf.ATTEMPTS)
    with pytest.raises(StoreError, match=r"no answer from .* after 8 tries .*without sending complete message body"):
        (pinned / "a.txt").read_bytes()
    hub.only = {"GET"}
    monkeypatch.setattr(hf, "READ_TIMEOUT_S", 0.2)
    hub.faults.append("hang")
    assert (pinned / "a.txt").read_text() == "words"


def test_a_proxy_that_sends_another_part_than_asked_for_is_not_believed(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.commit("org/name", {"a.txt": "0123456789"})
    pinned = at("hf://datasets/org/name").pinned() / "a.txt"
    whole = hf.Hub._ask

    def ignores_ranges(self: Any, *args: Any, **options: Any) -> Any:
        options.pop("headers", None)
        return whole(self, *args, **options)

    monkeypatch.setattr(hf.Hub, "_ask", ignores_ranges)
    file = pinned.open_random()
    file.seek(4)
    assert file.read(3) == b"456"


def test_what_others_push_meanwhile_changes_nothing(hub: HubServer) -> None:
    old = hub.commit("org/name", {"a.txt": "old", "b.txt": "b"})
    unpinned = at("hf://datasets/org/name")
    pinned = unpinned.pinned()
    file = (pinned / "a.txt").open_random()
    new = hub.commit("org/name", {"a.txt": "new!", "b.txt": None})
    assert file.read() == b"old"
    assert [(item.key, item.read_text()) for item in pinned.files()][1:] == [("a.txt", "old"), ("b.txt", "b")]
    # A process that was given no commit stays with the one that it read first, until it is told to look.
    assert (unpinned / "a.txt").read_text() == "old"
    assert unpinned.pinned().commit == new != old
    assert (unpinned / "a.txt").read_text() == "new!"
    assert at(f"hf://datasets/org/name@{old}").pinned() == pinned


def test_revisions_are_branches_tags_commits_and_the_hubs_own(hub: HubServer) -> None:
    hub.commit("org/name", {"a.txt": "main"})
    for branch in ("v1.0", "refs/convert/parquet", "refs/pr/3", "feature/x"):
        hub.commit("org/name", {"a.txt": branch}, branch=branch)
    for spelled in ("v1.0", "refs/convert/parquet", "refs/pr/3", "feature%2Fx", "refs%2Fpr%2F3"):
        path = at(f"hf://datasets/org/name@{spelled}/a.txt")
        assert path.key == "a.txt"
        assert path.pinned().read_text() == spelled.replace("%2F", "/")
        assert at(str(path)) == path


def refusal(url: str) -> StoreError:
    with pytest.raises(StoreError) as refused:
        (at(url).pinned() / "a.txt").read_bytes()
    assert "\n" not in str(refused.value)
    assert refused.value.errno == errno.EACCES
    return refused.value


def test_a_refusal_names_the_set_the_status_and_the_way_out(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("org/secret", {"a.txt": "private"})
    hub.commit("org/gated", {"a.txt": "gated"})
    hub.repo("org/secret", private=True)
    hub.repo("org/gated", gated=True)
    for name in ("missing", "secret"):
        said = str(refusal(f"hf://datasets/org/{name}"))
        assert said.startswith(f"hf://datasets/org/{name}: {hub.endpoint} shows no such data set (401 RepoNotFound")
        assert "`hf auth login`, or HF_TOKEN in the environment" in said
    said = str(refusal("hf://datasets/org/gated"))
    assert "a gated data set (401 GatedRepo" in said
    assert f"ask for access at {hub.endpoint}/datasets/org/gated, then" in said
    assert "no such revision (404 RevisionNotFound" in str(refusal("hf://datasets/org/gated@v9"))
    monkeypatch.setenv("HF_TOKEN", READER)
    assert (at("hf://datasets/org/secret").pinned() / "a.txt").read_text() == "private"
    said = str(refusal("hf://datasets/org/missing"))
    assert "(404 RepoNotFound" in said
    assert "this token may not read it" in said
    assert "(403 GatedRepo" in str(refusal("hf://datasets/org/gated"))
    hub.repo("org/gated").granted.add(READER)
    assert (at("hf://datasets/org/gated").pinned() / "a.txt").read_text() == "gated"
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    said = str(refusal("hf://datasets/org/secret"))
    assert "refused (401: Invalid credentials in Authorization header)" in said
    assert "hf_expired" not in said


def test_a_model_that_is_not_given_is_one_line_with_the_answer_of_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library reads its environment once, as it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    files = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    hub.commit("org/gated", {"config.json": "{}"}, kind="models")
    hub.repo("org/gated", kind="models", gated=True)
    hub.commit("org/none", {"weights.txt": ""}, kind="models")
    for name, revision, *said in (
        ("modell", None, f"{hub.endpoint} shows no such model (401 RepoNotFound: Repository not found): the name is"),
        ("org/gated", None, "a gated model (401 GatedRepo", f": ask for access at {hub.endpoint}/org/gated, then"),
        ("org/none", "v9", "no such revision (404 RevisionNotFound: Invalid rev id: v9)"),
        ("org/none", None, "--model_name_or_path org/none holds no model: no config.json"),
    ):
        with pytest.raises(ConfigError) as refused:
            validate_model(str(name), revision)
        assert all(part in str(refused.value) for part in said), refused.value
        assert "\n" not in str(refused.value)
    hub.faults.append("503")
    with pytest.raises(ConfigError, match=r"reading failed \(503"):
        validate_model("org/late")


def test_a_token_stays_with_the_hub_and_a_broken_one_is_not_shown(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.commit("org/name", {"a.parquet": parquet(10)})
    monkeypatch.setenv("HF_TOKEN", READER)
    hub.where = "/cdn/"
    hub.faults.append("503")
    # The server's other host refuses an answer to a request that brings a token along.
    assert len((at("hf://datasets/org/name").pinned() / "a.parquet").read_bytes()) > 100
    assert READER in hub.tokens_seen
    monkeypatch.setenv("HF_TOKEN", f"{READER}ä")
    with pytest.raises(StoreError) as failed:
        at("hf://datasets/org/name").pinned()
    assert READER not in str(failed.value) + caplog.text
    assert f"{hub.endpoint} cannot be asked: " in str(failed.value)
    assert "signedsecret" not in str(failed.value) + caplog.text


def test_no_network_is_said_at_once_with_the_way_without_one(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    factory._backend.cache_clear()
    with pytest.raises(StoreError, match=r"name: no answer from http://127.0.0.1:9 after 3 tries .*hf download"):
        at("hf://datasets/org/name").pinned()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match=r"name: HF_HUB_OFFLINE is set.*unset it, or fetch it .*hf download"):
        at("hf://datasets/org/name").pinned()


def test_an_endpoint_that_is_no_url_is_said_at_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ("hub.example.org", "ftp://hub.example.org"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        factory._backend.cache_clear()
        with pytest.raises(StoreError, match=rf"name: {endpoint} cannot be asked: "):
            at("hf://datasets/org/name").pinned()


@pytest.mark.parametrize("body", [b"<html>\nSign in</html>", b"", b"null", b'"yes"', b"3"])
def test_a_page_that_a_proxy_puts_in_the_place_of_an_answer_is_said_to_be_one(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    place = at("hf://datasets/org/name@" + "a" * 40)
    monkeypatch.setattr(hub_server._Handler, "route", lambda self: (200, body, {}))
    for ask in (at("hf://datasets/org/name").pinned, (place / "a.txt").stat, lambda: [*place.files()]):
        with pytest.raises(StoreError, match=r"name.*: http://127.0.0.1:\d+ does not answer as a Hub \(.*proxy"):
            ask()


def test_a_page_of_the_hub_is_told_from_a_location() -> None:
    with pytest.raises(ConfigError, match=r"a page of the Hub; what lies there is hf://datasets/org/name$"):
        location("https://huggingface.co/datasets/org/name/tree/main")


def test_nothing_is_written_to_the_hub(hub: HubServer) -> None:
    hub.commit("org/name", {"a.txt": "x"})
    path = at("hf://datasets/org/name/a.txt")
    with pytest.raises(ConfigError, match="the Hub is read here and not written"):
        path.write_bytes(b"y")
    with pytest.raises(ConfigError, match="the Hub is read here and not written"):
        path.unlink()


@pytest.mark.parametrize("url", ["hf://org/name", "hf://datasets/name", "hf://models/org/name", "hf://datasets/a/b@/x"])
def test_a_url_without_a_data_set_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected hf://datasets/ORG/NAME"):
        location(url)
