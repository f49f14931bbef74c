"""What engines do once, done before a user waits for it.

The first constrained step of an engine loads its grammar compiler, the first transfer between two
engines begins with a handshake: seconds on a CPU, in some conversation's first turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import aiohttp
import msgspec

from conserve_server.core.errors import EngineFailed
from conserve_server.engines.document import MAX_LOOK_BYTES
from conserve_server.engines.engine import EngineSpec, Role
from conserve_server.engines.wire import (
    COMPLETIONS_PATH,
    Fields,
    decode_leg,
    prefill_leg,
    read_prefill_answer,
)

TIMEOUT_S: Final = 120.0
"""For all engines together; they serve without it, too."""

_HEADERS: Final = {
    "content-type": "application/json",
    # Of a trace that nobody records (W3C Trace Context): engines that send spans send none of this.
    "traceparent": f"00-{'c0' * 16}-{'c0' * 8}-00",
}
_PROMPT: Final = " warm up" * 100
"""Longer than a KV block, so that there is something to transfer."""


async def warm_up(engines: Sequence[EngineSpec], *, model: str, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Have every decoder answer once, for each prefiller with KV from there, or alone if there is none.

    Returns what did not go well, at most a line a decoder: whoever asks that engine first waits.
    """
    prefillers = [engine for engine in engines if engine.role is Role.PREFILL]
    decoders = [engine for engine in engines if engine.role is Role.DECODE]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session:
        said = await asyncio.gather(*(_warmed(session, each, prefillers, model) for each in decoders))
    return [problem for problem in said if problem is not None]


async def _warmed(
    session: aiohttp.ClientSession, decoder: EngineSpec, prefillers: Sequence[EngineSpec], model: str
) -> str | None:
    """What went wrong, if anything did. The session bounds each request, this bounds them together."""
    limit_s = session.timeout.total
    try:
        async with asyncio.timeout(limit_s):
            for prefiller in prefillers:
                fields = _turn(model, f"{prefiller.name} to {decoder.name}:")
                held = await _prefilled(session, prefiller, fields)
                await _answer(session, decoder, decode_leg(fields, kv_transfer_params=held, with_usage=False))
            if not prefillers:
                await _answer(session, decoder, msgspec.json.encode(_turn(model, decoder.name)))
    except TimeoutError:
        return f"{decoder.name} was not warm after {limit_s:g} s"
    except EngineFailed as error:
        return str(error)
    return None


def _turn(model: str, name: str) -> Fields:
    """A short turn whose answer is constrained, as a forced tool call's is."""
    turn = {
        "model": model,
        "prompt": name + _PROMPT,
        "max_tokens": 4,
        "temperature": 0,
        "response_format": {"type": "json_object"},
    }
    return msgspec.json.decode(msgspec.json.encode(turn), type=dict[str, msgspec.Raw])


async def _prefilled(session: aiohttp.ClientSession, prefiller: EngineSpec, fields: Fields) -> bytes:
    """The transfer parameters of a prefill whose KV is held."""
    content = await _answer(session, prefiller, prefill_leg(fields))
    try:
        held, _ = read_prefill_answer(COMPLETIONS_PATH, content)
    except msgspec.MsgspecError as error:
        raise _failed(prefiller, f"answered a prefill leg with something else: {error}") from error
    if held is None:
        raise _failed(prefiller, "answered a prefill leg without kv_transfer_params: has it a KV connector?")
    return held


async def _answer(session: aiohttp.ClientSession, engine: EngineSpec, body: bytes) -> bytes:
    try:
        async with session.post(engine.url + COMPLETIONS_PATH, data=body, headers=_HEADERS) as response:
            content = bytearray()
            async for piece in response.content.iter_any():
                content += piece
                if len(content) > MAX_LOOK_BYTES:
                    raise _failed(engine, f"answered with more than {MAX_LOOK_BYTES} bytes")
    except aiohttp.ClientError as error:
        raise _failed(engine, f"can't be reached or broke off: {error}") from error
    if response.status != 200:
        raise _failed(engine, f"answered {response.status}: {content[:200].decode(errors='replace')}")
    return bytes(content)


def _failed(engine: EngineSpec, what: str) -> EngineFailed:
    return EngineFailed(f"{engine.name} {what}", code="engine_error", engine=engine.name)
