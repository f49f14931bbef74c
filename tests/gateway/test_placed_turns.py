"""Policies that place later turns, through the gateway over emulated engines."""

from __future__ import annotations

from conserve_server.engines.engine import Role

from .conftest import Serve, Served, engine_config

TEXT = "the harbour lies to the south of the lighthouse " * 8


async def turns(gateway: Served, count: int, **fields: object) -> list[str]:
    """The paths of one conversation's turns, each appending to the history of the one before."""
    messages: list[dict[str, str]] = []
    paths = []
    for i in range(count):
        messages.append({"role": "user", "content": f"{i} {TEXT}"})
        answer = await gateway.chat("a", messages, **fields)
        assert answer.status_code == 200, answer.text
        paths.append(answer.headers["x-conserve-path"])
        messages.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
    return paths


async def test_a_later_turn_may_have_a_prefill_leg_and_its_transfer_is_counted(serve: Serve) -> None:
    disaggregated = {"policy": "full_disaggregation", "full_disaggregation": {"is_sticky": True}}
    async with serve(scheduler=disaggregated) as gateway:
        assert await turns(gateway, 3) == ["remote-prefill", "remote-append", "remote-append"]
        report = await gateway.report("a")
        assert (report["kv_transfers"], report["decoders"]) == (3, ["decode-0"])
        assert await gateway.metric("conserve_kv_transfers_total") == 3
        assert report["rebinds"] == []


async def test_a_short_append_stays_on_its_decoder_under_a_threshold(serve: Serve) -> None:
    async with serve(
        scheduler={"policy": "conditional", "conditional": {"threshold_tokens": 100}}
    ) as gateway:
        answer = await gateway.ask("a", TEXT * 4)
        assert answer.headers["x-conserve-path"] == "remote-prefill"
        again = await gateway.ask("a", TEXT * 4)
        assert again.headers["x-conserve-path"] == "pinned"


async def test_a_conversation_that_its_policy_moves_is_held_by_one_decoder_at_a_time(serve: Serve) -> None:
    async with serve(scheduler={"policy": "collocated"}) as gateway:
        assert set(await turns(gateway, 3)) <= {"local-prefill", "pinned"}
        reserved = [
            await gateway.metric(f'conserve_reserved_kv_tokens{{engine="decode-{i}"}}') for i in (0, 1)
        ]
        assert sorted(reserved)[0] == 0
        assert (await gateway.report("a"))["reserved_kv_tokens"] == max(reserved) > 0


async def test_engines_take_the_priority_of_first_turns(serve: Serve) -> None:
    scheduler = {"policy": "conserve_plus", "conserve_plus": {"first_turn_priority": 10}}
    async with serve(scheduler=scheduler) as gateway:
        assert await turns(gateway, 2) == ["remote-prefill", "pinned"]


async def test_a_later_turn_whose_prefill_leg_fails_is_prefilled_on_its_decoder(serve: Serve) -> None:
    disaggregated = {"policy": "full_disaggregation", "full_disaggregation": {"is_sticky": True}}
    async with serve(prefill=[engine_config(Role.PREFILL, "prefill-0")], scheduler=disaggregated) as gateway:
        await turns(gateway, 1)
        await gateway.engines["prefill-0"].stop()
        answer = await gateway.ask("a", TEXT)
        assert answer.headers["x-conserve-path"] == "pinned"
        assert (await gateway.report("a"))["kv_transfers"] == 1
