import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cal_pipeline.runtime.cluster import check_reachable, named_cluster
from cal_schemas.errors import ConfigError


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"no Ray cluster at {address} \(--ray_address or RAY_ADDRESS\): "):
            check_reachable(address)
    with pytest.raises(ConfigError, match="no Ray cluster at no-such-host"):
        check_reachable("no-such-host.invalid:6379")
    with pytest.raises(ConfigError, match="99999"):
        check_reachable("127.0.0.1:99999")


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """An address where whoever connects is given this answer and hung up on, or hears nothing."""

    def answer_one() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(64)
            if answer is None:
                done.wait()
            else:
                connection.sendall(answer)

    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_one)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", r"something else listens there, and answers b'HTTP/1\.1 400 Bad Request"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "something else listens there, and answers b'SSH-2"),
        (b"", "something else listens there, and answers b''"),
        (None, "what listens there gave no answer for 5 s"),
    ],
    ids=["http", "ssh", "hangs up", "silent"],
)
def test_an_address_where_something_else_answers_is_refused_within_15_seconds(answer: bytes | None, words: str) -> None:
    started = time.monotonic()
    nothing = r"no Ray cluster at 127\.0\.0\.1:\d+ \(--ray_address or RAY_ADDRESS\): "
    with answering(answer) as address, pytest.raises(ConfigError, match=nothing + words):
        check_reachable(address)
    assert time.monotonic() - started < 15


def test_an_address_where_http_2_is_spoken_as_rays_is_reachable() -> None:
    with answering(bytes.fromhex("000006040000000000000500004000")) as address:
        check_reachable(address)


@pytest.mark.parametrize("address", ["me:hunter2@127.0.0.1:6379", "me:hunter2@head", "http://me:hunter2@head:8265"])
def test_a_password_in_an_address_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(ConfigError, match="without a user or password") as refused:
        check_reachable(address)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("flag", "variable", "cluster"),
    [
        (None, None, None), (None, "head:1", "head:1"), ("auto", "head:1", "head:1"), ("auto", None, "auto"),
        ("other:1", "head:1", "other:1"), ("local", None, None), (None, "local", None), ("auto", "local", None),
        ("local", "head:1", None), ("", "head:1", None),
    ],
)  # fmt: skip
def test_a_ray_is_started_here_where_no_cluster_is_named_or_local(
    flag: str | None, variable: str | None, cluster: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable or "")
    assert named_cluster(flag) == cluster


def test_ray_client_is_refused_before_it_waits_for_an_answer() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster at ray://head:10001 .*: Ray Client cannot be used"):
        check_reachable("ray://head:10001")


@pytest.mark.parametrize("address", ["auto", "127.0.0.1"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    check_reachable(address)
