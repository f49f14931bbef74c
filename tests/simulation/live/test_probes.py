"""Probes of an emulated engine, whose timing is known."""

from __future__ import annotations

import pytest

from conserve_server.engines.emulated import EmulatedConfig, serve_emulated
from conserve_server.simulation.live.engine_page import read_page
from conserve_server.simulation.live.probes import Plan, Prober
from conserve_server.simulation.live.token_client import LiveError, connected

PLAN = Plan(
    prefills=(16, 400),
    contexts=(256,),
    appends=(64,),
    batches=(1, 2),
    decode_contexts=(64,),
    decoded=6,
    repeats=1,
)


async def test_an_engine_tells_its_sizes() -> None:
    config = EmulatedConfig(kv_blocks=64, max_model_len=1024)
    async with serve_emulated(config) as url, connected(url) as client:
        page = await read_page(client)
    assert (page.longest, page.kv_capacity_tokens) == (1024, 64 * 32)


async def test_each_point_of_a_plan_is_measured() -> None:
    done: list[str] = []
    async with serve_emulated(EmulatedConfig()) as url, connected(url) as client:
        found = await Prober(client, PLAN, tell=done.append).measure()
    assert len(found) == PLAN.points == len(done) - 1
    assert [each.is_request for each in found] == [True, True, True, False, False]
    assert all(each.seconds > 0 for each in found)
    # 256 tokens are whole blocks of 32, all of them cached: what was appended is computed.
    assert found[2].step.prefill_tokens == 64
    assert found[2].step.prefill_context_tokens == 256
    assert [each.step.decode_requests for each in found[3:]] == [1, 2]


def test_a_plan_leaves_out_what_an_engine_does_not_take() -> None:
    plan = Plan().within(600)
    assert plan.prefills == (16, 64, 128, 256, 512)
    assert plan.contexts == (256,)
    assert plan.decode_contexts == (64, 512)


async def test_an_engine_that_takes_too_little_is_refused() -> None:
    async with serve_emulated(EmulatedConfig()) as url, connected(url) as client:
        with pytest.raises(LiveError, match="too short to measure"):
            await Prober(client, Plan().within(10)).measure()


async def test_nothing_at_an_address_is_said_so() -> None:
    with pytest.raises(LiveError, match=r"nothing to use at http://127\.0\.0\.1:9"):
        async with connected("http://127.0.0.1:9"):
            pass
