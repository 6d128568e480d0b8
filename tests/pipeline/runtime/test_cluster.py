import socket

import pytest

from cal_pipeline.runtime.cluster import check_reachable
from cal_schemas.errors import ConfigError


def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"no Ray cluster at {address} \(--ray_address or RAY_ADDRESS\): "):
            check_reachable(address)
        free.listen()
        check_reachable(address)
    with pytest.raises(ConfigError, match="no Ray cluster at no-such-host"):
        check_reachable("no-such-host.invalid:6379")
    with pytest.raises(ConfigError, match="99999"):
        check_reachable("127.0.0.1:99999")


@pytest.mark.parametrize("address", ["auto", "local", "ray://127.0.0.1:1", "127.0.0.1"])
def test_other_forms_are_left_to_ray(address: str) -> None:
    check_reachable(address)
