"""A policy that raises, in the gateway: its turn is answered with an error, and the others are served."""

from __future__ import annotations

import asyncio

from conserve_server.core.turn import Placement
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policy import ClusterView, TurnView

from .conftest import Serve, Served

TEXT = "the tide turns twice a day " * 8


class Fragile:
    """ConServe's rule; fails on every turn, or lets it wait, while it is told to."""

    def __init__(self) -> None:
        self.rule = ConServe()
        self.fails = False
        self.lets_wait = False

    def place(self, turn: TurnView, cluster: ClusterView) -> Placement | None:
        if self.fails:
            raise ZeroDivisionError("no rate was seen yet")
        return None if self.lets_wait else self.rule.place(turn, cluster)


async def test_its_turn_fails_with_an_error_and_the_next_one_of_the_conversation_is_served(
    serve: Serve,
) -> None:
    policy = Fragile()
    async with serve(policy=policy) as gateway:
        policy.fails = True
        failed = await gateway.ask("a", TEXT)
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "placement_failed")
        assert failed.json()["error"]["type"] == "server_error"
        policy.fails = False
        assert (await gateway.ask("a", TEXT)).headers["x-conserve-path"] == "remote-prefill"


async def test_a_bound_turn_that_fails_leaves_the_binding_and_a_release_frees_it(serve: Serve) -> None:
    policy = Fragile()
    async with serve(policy=policy) as gateway:
        assert (await gateway.ask("a", TEXT)).status_code == 200
        policy.fails = True
        assert (await gateway.ask("a", TEXT)).status_code == 500
        report = await gateway.report("a")
        assert (report["state"], report["decoder"]) == ("tool-gap", "decode-0")
        await gateway.client.delete("/v1/conversations/a")
        assert await reserved(gateway) == 0


async def test_a_waiting_turn_that_fails_is_told_at_once_and_holds_nobody_up(serve: Serve) -> None:
    policy = Fragile()
    async with serve(policy=policy, max_wait_s=60.0) as gateway:
        policy.lets_wait = True
        waiting = asyncio.create_task(gateway.ask("a", TEXT))
        await gateway.eventually(lambda: waits(gateway))
        policy.fails = True
        assert (await waiting).json()["error"]["code"] == "placement_failed"
        policy.fails = policy.lets_wait = False
        assert (await gateway.ask("b", TEXT)).status_code == 200
        assert (await gateway.report("a"))["state"] == "ended"


async def test_turns_that_fail_give_their_place_among_the_tenants_running_turns_back(serve: Serve) -> None:
    policy = Fragile()
    async with serve(policy=policy, max_concurrent_turns=1) as gateway:
        policy.fails = True
        assert [(await gateway.ask("a", TEXT)).status_code for _ in range(3)] == [500] * 3
        policy.fails = False
        assert (await gateway.ask("a", TEXT)).status_code == 200


async def waits(gateway: Served) -> bool:
    return await gateway.metric("conserve_waiting_turns") == 1


async def reserved(gateway: Served) -> float:
    lines = (f'conserve_reserved_kv_tokens{{engine="decode-{i}"}}' for i in (0, 1))
    return sum([await gateway.metric(line) for line in lines])
