"""What a running gateway serves, noted while it serves: the turns that its live updates tell of.

`GET /v1/events` names each turn once, when it has ended. A gateway tells at most of its
latest 500 conversations; the turns of others are missed.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from conserve_sdk.protocol import LIVE_PATH, ConversationUpdate, TurnReport, Update

from ..workloads.record import ServedTurn
from .token_client import LiveError

_CONNECT_S: Final = 30.0
_SILENCE_S: Final = 60.0
"""A gateway that says nothing for so long is gone: it sends a sign of life every 15 s."""
_MOST_WATCHED: Final = 500
_EVENT_END: Final = b"\n\n"

Name = tuple[str | None, str, str | None]


@dataclass(slots=True)
class Recording:
    """Ended turns by conversation and number. `lost`: why the recording stopped early."""

    turns: defaultdict[Name, dict[int, ServedTurn]] = field(default_factory=lambda: defaultdict(dict))
    lost: str | None = None

    @property
    def turn_count(self) -> int:
        return sum(map(len, self.turns.values()))

    def add(self, update: Update) -> None:
        """Note the turns that the update tells of."""
        for conversation in update.conversations:
            report = conversation.report
            for turn in report.turns:
                served = _served(conversation, turn)
                if served is not None:
                    self.turns[report.tenant, report.id, report.model][turn.index] = served

    @property
    def conversations(self) -> list[list[ServedTurn]]:
        """Each conversation's turns, in their order."""
        return [[turns[index] for index in sorted(turns)] for turns in self.turns.values()]


async def watch(
    url: str,
    recording: Recording,
    *,
    seconds: float | None = None,
    key: str | None = None,
    tell: Callable[[Recording], None] = lambda _: None,
) -> None:
    """Record for so many seconds (None: until cancelled) what the gateway knows and what it serves.

    Ends early where the gateway breaks off; `recording.lost` says so. Raises LiveError where there
    is no gateway to watch at `url`, or where it refuses.
    """
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {key}"} if key else None
    limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    async with aiohttp.ClientSession(headers=headers, timeout=limits) as session:
        response = await _stream(session, base)
        async with response:
            try:
                async with asyncio.timeout(seconds) as limit:
                    async for update in _updates(response):
                        recording.add(update)
                        tell(recording)
                    recording.lost = "the gateway has stopped"
            except (aiohttp.ClientError, TimeoutError) as error:
                if not limit.expired():
                    recording.lost = f"the gateway broke off: {error or 'no sign of life'}"


async def _stream(session: aiohttp.ClientSession, base: str) -> aiohttp.ClientResponse:
    try:
        response = await session.get(f"{base}{LIVE_PATH}", params={"limit": _MOST_WATCHED})
    except (aiohttp.ClientError, TimeoutError) as error:
        raise LiveError(f"no gateway to watch at {base}: {error or 'no answer'}") from error
    if response.status == 200:
        return response
    async with response:
        raise LiveError(f"{base}{LIVE_PATH} answered {response.status}: {(await response.text())[:300]}")


async def _updates(response: aiohttp.ClientResponse) -> AsyncIterator[Update]:
    buffered = bytearray()
    async for piece in response.content.iter_any():
        buffered += piece
        while (end := buffered.find(_EVENT_END)) >= 0:
            event = bytes(buffered[:end])
            del buffered[: end + len(_EVENT_END)]
            _, is_update, document = event.partition(b"\ndata: ")
            if is_update:
                yield Update.from_json(msgspec.json.decode(document))


def _served(conversation: ConversationUpdate, turn: TurnReport) -> ServedTurn | None:
    """The turn on the gateway's clock; None where no engine counted its prompt."""
    if not turn.prompt_tokens or turn.started_s is None:
        return None
    start_s = conversation.first_arrival_s + turn.started_s
    return ServedTurn(
        start_s=start_s,
        end_s=start_s + (turn.duration_s or 0.0),
        input_tokens=turn.prompt_tokens,
        output_tokens=turn.completion_tokens or 0,
        cached_tokens=turn.cached_tokens,
        agent=conversation.report.agent,
    )
