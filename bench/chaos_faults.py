"""The faults of chaos.py, each a function that breaks one thing and says how often it did."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from bench.chaos_clients import Conversation, Interrupted, Lost, Tally
from bench.chaos_cluster import WRITE_TIMEOUT_S, Cluster


@dataclass
class Scene:
    """What a fault may touch."""

    cluster: Cluster
    session: aiohttp.ClientSession
    tally: Tally
    random: random.Random
    window_s: float

    def conversation(self) -> Conversation:
        return Conversation(self.cluster, self.session, self.tally, self.random.randrange(2**32))

    async def window(self) -> None:
        """The time in which conversations meet what was broken."""
        await asyncio.sleep(self.window_s)


async def prefiller_answers_5xx(scene: Scene) -> int:
    return await _prefill_fault(scene, kind="status", status=500)


async def prefiller_times_out(scene: Scene) -> int:
    return await _prefill_fault(scene, kind="hang", delay_s=60.0)


async def prefiller_resets(scene: Scene) -> int:
    return await _prefill_fault(scene, kind="reset")


async def malformed_kv_transfer_params(scene: Scene) -> int:
    return await _prefill_fault(scene, kind="malformed_kv_params")


async def _prefill_fault(scene: Scene, *, count: int = 4, **fault: object) -> int:
    for prefiller in scene.cluster.prefillers:
        await scene.cluster.fault(prefiller, leg="prefill", count=count, **fault)
    await scene.window()
    return count * len(scene.cluster.prefillers)


async def prefiller_dies_after_answering(scene: Scene) -> int:
    for prefiller in scene.cluster.prefillers:
        await scene.cluster.fault(prefiller, kind="die_after_answer", leg="prefill")
    await scene.window()
    return sum(not prefiller.runs for prefiller in scene.cluster.prefillers)


async def prefiller_restarts_then_a_pull(scene: Scene) -> int:
    """The decoders stand still; what is prefilled waits for them while the prefillers are started anew."""
    for decoder in scene.cluster.decoders:
        decoder.send(signal.SIGSTOP)
    await asyncio.sleep(1.0)
    for prefiller in scene.cluster.prefillers:
        prefiller.restart()
    await asyncio.sleep(1.5)
    for decoder in scene.cluster.decoders:
        decoder.send(signal.SIGCONT)
    await scene.window()
    return len(scene.cluster.prefillers)


async def decoder_dies_before_the_first_byte(scene: Scene) -> int:
    return await _decoder_dies(scene, after_tokens=0)


async def decoder_dies_after_the_first_byte(scene: Scene) -> int:
    return await _decoder_dies(scene, after_tokens=3)


async def _decoder_dies(scene: Scene, *, after_tokens: int) -> int:
    decoder = scene.random.choice(scene.cluster.decoders)
    await scene.cluster.fault(decoder, kind="die", leg="decode", after_tokens=after_tokens)
    await scene.window()
    return int(not decoder.runs)


async def decoder_restarts_at_its_address(scene: Scene) -> int:
    scene.random.choice(scene.cluster.decoders).restart()
    await scene.window()
    return 1


async def client_disconnects_in_each_leg(scene: Scene) -> int:
    """In the prefill leg, which hangs for these; while decoding; and wherever it happens to be."""
    for prefiller in scene.cluster.prefillers:
        await scene.cluster.fault(prefiller, kind="hang", delay_s=2.0, leg="prefill", count=5)
    gone = [scene.conversation() for _ in range(30)]
    waits_s = [0.5] * 10 + [scene.random.uniform(0.01, 0.4) for _ in range(20)]
    await asyncio.gather(*(c.abandon(s, max_tokens=2000) for c, s in zip(gone, waits_s, strict=True)))
    await scene.window()
    outcomes = [turn["outcome"] for c in gone for turn in (await c.report()).get("turns", ())]
    await asyncio.gather(*(c.release() for c in gone))
    return outcomes.count("cancelled")


async def two_first_turns_at_once(scene: Scene) -> int:
    async def race() -> None:
        both = scene.conversation()
        both.begin()
        await asyncio.gather(_try(scene, both), _try(scene, both))
        await both.release()

    await asyncio.gather(*(race() for _ in range(10)))
    await scene.window()
    return 10


async def _try(scene: Scene, conversation: Conversation) -> None:
    scene.tally.turns += 1
    try:
        await conversation.ask()
        scene.tally.outcomes["answered"] += 1
    except Interrupted as interrupted:
        scene.tally.outcomes[interrupted.kind] += 1
    except Lost as lost:
        scene.tally.lost.append(f"{conversation.id}: {lost}")


async def gateway_restarts_with_live_conversations(scene: Scene) -> int:
    await scene.cluster.restart_gateway()
    await scene.window()
    return 1


async def slow_reader(scene: Scene) -> int:
    """Clients that ask for a long stream and read nothing; counted are those that were given up in time."""
    return sum(await asyncio.gather(*(_read_nothing(scene) for _ in range(3))))


async def _read_nothing(scene: Scene) -> int:
    conversation = scene.conversation()
    conversation.begin()
    body = json.dumps(conversation.body(stream=True, max_tokens=8000, ignore_eos=True)).encode()
    headers = {"host": "gateway", "content-type": "application/json", "content-length": len(body)}
    lines = [f"{name}: {value}" for name, value in (headers | conversation.headers).items()]
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines, "", ""])
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", scene.cluster.gateway.port))
        await loop.sock_sendall(client, head.encode() + body)
        given_up = await _is_given_up(conversation)
    await conversation.release()
    return int(given_up)


async def _is_given_up(conversation: Conversation) -> bool:
    for _ in range(round((WRITE_TIMEOUT_S + 27.0) / 0.5)):
        await asyncio.sleep(0.5)
        turns = (await conversation.report()).get("turns", ())
        if turns:
            return bool(turns[0]["outcome"] == "cancelled")
    return False


async def identifier_churn(scene: Scene) -> int:
    """Conversations of one turn, each with an identifier of its own."""
    await asyncio.gather(*(scene.conversation().run(1, pause_s=0.1) for _ in range(60)))
    return 60


async def a_request_that_ends_its_engines(scene: Scene) -> int:
    """Every engine ends at the next request of one client, who sends it again; counted are those that it did
    not reach: all but two."""
    poison = scene.conversation()
    poison.begin()
    before = sum(engine.runs for engine in scene.cluster.engines)
    for decoder in scene.cluster.decoders:
        await scene.cluster.fault(decoder, kind="die", leg="decode", text=f"end {poison.id}")
    body = {**poison.body(stream=False), "messages": [{"role": "user", "content": f"end {poison.id}"}]}
    for _ in range(4):
        async with scene.session.post(poison.url, json=body, headers=poison.headers) as answer:
            refusal = (await answer.json())["error"]["code"]
    scene.tally.outcomes[refusal] += 1
    await scene.window()
    ended = before - sum(engine.runs for engine in scene.cluster.engines)
    if ended > 2 or refusal != "deadly_request":
        scene.tally.lost.append(f"one request ended {ended} engines, and is {refusal}")
    return before - ended


async def broken_metrics(scene: Scene) -> int:
    """One engine has a page of words and NaN: it goes, and the others stay watched."""
    decoder = scene.random.choice(scene.cluster.decoders)
    for page in (b"vllm:num_requests_running NaN\n", b"vllm:num_requests_running many\n", b"\xff\x00"):
        await scene.cluster.page(decoder, "metrics", page)
        await asyncio.sleep(1.0)
    await scene.window()
    await scene.cluster.page(decoder, "metrics", None)
    return 3


async def engine_garbage(scene: Scene) -> int:
    """One decoder answers turns with bytes that are no answer."""
    decoder = scene.random.choice(scene.cluster.decoders)
    for garbage in (b"[" * 50_000, b"noon", b"data: {\n\ndata: ]\n\n"):
        await scene.cluster.page(decoder, "v1/chat/completions", garbage)
        await asyncio.sleep(scene.window_s / 2)
    await scene.cluster.page(decoder, "v1/chat/completions", None)
    return 3


async def gateway_reloads(scene: Scene) -> int:
    """The configuration is read again, with the engines in another order and as it was."""
    for backwards in (True, False, False):
        scene.cluster.config.write_text(scene.cluster.configuration(backwards=backwards))
        scene.cluster.gateway.send(signal.SIGHUP)
        await asyncio.sleep(0.5)
    await scene.window()
    return 3


async def books_fail(scene: Scene) -> int:
    """Those who keep account of turns raise: no turn notices."""
    scene.cluster.gateway.send(signal.SIGUSR1)
    await scene.window()
    return sum((await scene.cluster.metric(scene.cluster.gateway.url, "conserve_book_errors_total")).values())


FAULTS: tuple[Callable[[Scene], Awaitable[int]], ...] = (
    prefiller_answers_5xx,
    prefiller_times_out,
    prefiller_resets,
    prefiller_dies_after_answering,
    decoder_dies_before_the_first_byte,
    decoder_dies_after_the_first_byte,
    decoder_restarts_at_its_address,
    prefiller_restarts_then_a_pull,
    client_disconnects_in_each_leg,
    two_first_turns_at_once,
    gateway_restarts_with_live_conversations,
    slow_reader,
    malformed_kv_transfer_params,
    identifier_churn,
    broken_metrics,
    engine_garbage,
    gateway_reloads,
    books_fail,
    a_request_that_ends_its_engines,
)
"""All that a router of this kind must live through."""
