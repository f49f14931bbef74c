"""Each engine's part of the machine."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from conserve_server.core.config import Config, parse_config
from conserve_server.core.errors import EngineStartError
from conserve_server.engines.slots import engine_slots


def config(prefill: int, decode: int, **pool: object) -> Config:
    return parse_config(
        {"pools": {"prefill": {"count": prefill}, "decode": {"count": decode, **pool}}},
    )


def cores(given: Config, count: int) -> list[str]:
    with ExitStack() as held:
        return [slot.cores for slot in engine_slots(given, held, cores=range(count))]


@pytest.mark.parametrize(
    ("prefill", "decode", "machine", "expected"),
    [
        (1, 2, 1, ["nobind", "nobind", "nobind"]),
        (1, 2, 2, ["nobind", "nobind", "nobind"]),
        (1, 1, 2, ["0", "1"]),
        (1, 2, 3, ["0", "1", "2"]),
        (1, 1, 8, ["0,1,2", "4,5,6"]),
        (0, 2, 2, ["0", "1"]),
        (3, 1, 4, ["0", "1", "2", "3"]),
    ],
)
def test_cores_are_spread_where_there_is_one_for_each_engine(
    prefill: int, decode: int, machine: int, expected: list[str]
) -> None:
    assert cores(config(prefill, decode), machine) == expected


def test_configured_cores_are_used_as_written() -> None:
    assert cores(config(1, 2, cores=["4-7", "8-11"]), 2)[1:] == ["4-7", "8-11"]


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ["0", "1", "2"]), ("", ["0", "1", "2"]), ("4,6,7", ["4", "6", "7"])]
)
def test_each_engine_gets_the_next_gpu(visible: str | None, expected: list[str]) -> None:
    with ExitStack() as held:
        slots = engine_slots(config(1, 2), held, cores=[0], visible_gpus=visible)
        assert [slot.gpus for slot in slots] == expected


def test_names_count_up_within_a_role_and_ports_differ() -> None:
    with ExitStack() as held:
        slots = engine_slots(config(1, 2), held, cores=[0])
        assert [slot.name for slot in slots] == ["prefill-0", "decode-0", "decode-1"]
        assert len({port for slot in slots for port in (slot.port, slot.transfer_port)}) == 6


def test_an_engine_and_its_restart_listen_on_the_port_that_is_held_for_them() -> None:
    with ExitStack() as held:
        (slot,) = engine_slots(config(0, 1), held, cores=[0])
        for _ in range(2):
            with socket.create_server(("127.0.0.1", slot.port)) as server:
                socket.create_connection(server.getsockname()).close()


def test_a_port_that_something_listens_on_is_refused_by_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as held:
        port = server.getsockname()[1]
        with pytest.raises(EngineStartError, match=f"port {port} on 127.0.0.1 can't be used"):
            engine_slots(config(0, 1), held, cores=[0], first_port=port)
