"""Processes that meet before JAX waits for them: threads, on real sockets."""

import concurrent.futures
import socket

import pytest

from llama_jax.config import UserError
from llama_jax.guards.roll_call import roll_call


@pytest.fixture
def address() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def outcomes(address: str, processes: int, *indices: int, seconds: float = 30.0) -> list[str]:
    """What each of some processes ends with: "" if all have come."""

    def outcome(index: int) -> str:
        try:
            roll_call(address, processes, index, seconds)
        except UserError as e:
            return str(e)
        return ""

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(outcome, indices))


def test_all_go_on_when_all_have_come(address):
    assert outcomes(address, 4, 3, 0, 2, 1) == [""] * 4
    assert outcomes(address, 2, 1, 0) == [""] * 2  # the port is free again


def test_one_that_is_alone_waits_for_nobody(address):
    host, port = address.split(":")
    with socket.create_server((host, int(port))):  # nor does it need the port
        assert roll_call(address, 1, 0) == {}


def test_who_does_not_come_is_named_to_all_that_do(address):
    found = outcomes(address, 5, 0, 3, 1, seconds=1.0)
    host = socket.gethostname()
    assert found == 3 * [
        "--multihost: of 5 processes, 2, 4 did not come within 1 s; there are "
        f"0 on {host}, 1 on {host}, 3 on {host}; start the same command on every host"
    ]


def test_without_the_first_its_address_is_named(address):
    (found,) = outcomes(address, 2, 1, seconds=0.5)
    assert f"process 0 did not answer at {address} within 0 s ([Errno 111]" in found


def test_a_process_that_comes_twice_is_named(address):
    found = outcomes(address, 3, 0, 2, 2)
    assert all("process 2 of 3 came from " in text and " and from " in text for text in found)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        other = pool.submit(outcomes, address, 5, 4)  # which was told of another number
        found = outcomes(address, 3, 0) + other.result()
    assert all("process 4 of 3 came from " in text for text in found)


def test_a_port_that_is_taken_is_named(address):
    with socket.create_server(("", int(address.rpartition(":")[2]))):
        (found,) = outcomes(address, 2, 0)
    assert "--multihost: port " in found and "is in use, by another run of this command" in found


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"[0, 1]\n", b"[" * 99_999, b""])
def test_whatever_else_calls_does_not_count(address, said):
    host, port = address.split(":")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(outcomes, address, 2, 0)
        while True:
            try:
                stranger = socket.create_connection((host, int(port)))
                break
            except ConnectionRefusedError:
                pass
        with stranger:
            stranger.sendall(said)
        assert outcomes(address, 2, 1) == [""] == first.result()


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UserError, match="--multihost: got the address .* expected HOST:PORT"):
        roll_call(address, 2, 0)
