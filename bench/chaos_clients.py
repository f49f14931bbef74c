"""The conversations of chaos.py: clients that know what every answer must be, and count what became of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp

from bench.chaos_cluster import MODEL, Cluster
from conserve_server.engines.emulated.answer import plan_answer
from conserve_server.engines.emulated.chat import ChatDialect

HANG_S = 45.0
"""A turn without an end for so long hangs: more than a wait for room and two silent engines take."""
TRIES = 6
"""How often a client sends a turn that met an error which is not a loss."""
_WORDS = ("the", "ferry", "sails", "to", "a", "harbour", "past", "two", "lighthouses", "at", "noon")
_RETRIED = frozenset({429, 503})


@dataclass
class Tally:
    """What became of the turns, over all conversations."""

    turns: int = 0
    hung: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)


class Interrupted(Exception):
    """A turn that ended without its answer, in a way that a client can act on; `kind` says which."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Lost(Exception):
    """A turn that ended without its answer, and nobody said so."""


class Conversation:
    """One agent: it sends its whole history with every turn, and checks every answer."""

    _ids = count(1)

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession, tally: Tally, seed: int) -> None:
        self.id = f"chaos-{next(self._ids)}"
        self._cluster = cluster
        self._session = session
        self._tally = tally
        self._random = random.Random(seed)
        self._messages: list[dict[str, str]] = []
        self._answered: dict[int, set[int]] = {}
        self._abandoned: Counter[int] = Counter()

    async def run(self, turns: int, *, pause_s: float) -> None:
        """All turns and the release; then the gateway's account is compared with ours."""
        for _ in range(turns):
            self.begin()
            if not await self._turn():
                break
            await asyncio.sleep(self._random.uniform(0.2, 1.8) * pause_s)
        await self.check_account()
        await self.release()

    def begin(self) -> None:
        """Have a first message to send."""
        self._messages.append({"role": "user", "content": self._text()})

    async def _turn(self) -> bool:
        """One turn until it is answered; False if it never was."""
        for _ in range(TRIES):
            self._tally.turns += 1
            try:
                async with asyncio.timeout(HANG_S):
                    text = await self.ask()
            except Interrupted as interrupted:
                self._tally.outcomes[interrupted.kind] += 1
                await asyncio.sleep(1.0)
                await self._cluster.serves.wait()
                continue
            except TimeoutError:
                self._tally.hung += 1
                return False
            except Lost as lost:
                self._tally.lost.append(f"{self.id}: {lost}")
                return False
            self._tally.outcomes["answered"] += 1
            self._messages.append({"role": "assistant", "content": text})
            return True
        self._tally.lost.append(f"{self.id}: {TRIES} tries, no answer")
        return False

    # -- one request ---------------------------------------------------------------------------------

    async def ask(self, **fields: Any) -> str:
        """The answer's text. Raises Interrupted or Lost."""
        life = self._cluster.life
        body = self.body(stream=self._random.random() < 0.7, **fields)
        try:
            async with self._session.post(self.url, json=body, headers=self.headers) as answer:
                text = await self._read(answer, body)
                self._note(life, answer)
                return text
        except (aiohttp.ClientError, ConnectionError) as error:
            if life != self._cluster.life or not self._cluster.serves.is_set():
                raise Interrupted("gateway_restarted") from error
            raise Lost(f"the connection broke: {error!r}") from error

    @property
    def url(self) -> str:
        return f"{self._cluster.gateway.url}/v1/chat/completions"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-conserve-conversation-id": self.id}

    def body(self, *, stream: bool, **fields: Any) -> dict[str, Any]:
        tokens = self._random.randint(6, 16)
        return {"model": MODEL, "messages": self._messages, "max_tokens": tokens, "stream": stream, **fields}

    async def _read(self, answer: aiohttp.ClientResponse, body: dict[str, Any]) -> str:
        if answer.status in _RETRIED:
            code = (await answer.json())["error"]["code"]
            raise Interrupted(f"refused_{answer.status}_{code}")
        if answer.status != 200:
            raise Lost(f"status {answer.status}: {(await answer.text())[:200]}")
        text = await (_streamed(answer) if body["stream"] else _whole(answer))
        expected = expected_answer(body)
        if text != expected:
            raise Lost(f"a wrong answer: {text!r} in place of {expected!r}")
        self._tally.outcomes["placed_again"] += "x-conserve-placements" in answer.headers
        return text

    def _note(self, life: int, answer: aiohttp.ClientResponse) -> None:
        self._answered.setdefault(life, set()).add(int(answer.headers["x-conserve-turn"]))

    async def abandon(self, after_s: float, **fields: Any) -> None:
        """Send a turn and hang up on it."""
        self.begin()
        self._abandoned[self._cluster.life] += 1
        try:
            async with asyncio.timeout(after_s):
                await self.ask(**fields)
        except (TimeoutError, Interrupted):
            return
        except Lost as lost:
            self._tally.lost.append(f"{self.id}, before it was to hang up: {lost}")

    # -- the end ---------------------------------------------------------------------------------------

    async def report(self) -> dict[str, Any]:
        """What the gateway says of the conversation; empty if it knows none."""
        url = f"{self._cluster.gateway.url}/v1/conversations/{self.id}"
        async with self._session.get(url) as answer:
            document: dict[str, Any] = await answer.json() if answer.status == 200 else {}
        return document

    async def check_account(self) -> None:
        """A turn that the gateway completed and no client has was carried out twice."""
        life = self._cluster.life
        try:
            report = await self.report()
        except (aiohttp.ClientError, ConnectionError):
            return
        if life != self._cluster.life:
            return
        completed = {t["index"] for t in report.get("turns", ()) if t["outcome"] == "completed"}
        extra = completed - self._answered.get(life, set())
        if len(extra) > self._abandoned[life]:
            self._tally.duplicated.append(f"{self.id}: turns {sorted(extra)} have no client")

    async def release(self) -> None:
        """End the conversation; a gateway that was restarted meanwhile may not know it."""
        url = f"{self._cluster.gateway.url}/v1/conversations/{self.id}"
        try:
            async with self._session.delete(url):
                return
        except (aiohttp.ClientError, ConnectionError):
            return

    def _text(self) -> str:
        return " ".join(self._random.choices(_WORDS, k=self._random.randint(40, 200)))


async def _whole(answer: aiohttp.ClientResponse) -> str:
    document = await answer.json()
    text: str = document["choices"][0]["message"]["content"]
    return text


async def _streamed(answer: aiohttp.ClientResponse) -> str:
    parts: list[str] = []
    async for line in answer.content:
        if line.startswith(b":"):
            continue  # a comment: the answer is on its way
        data = line.decode().removeprefix("data:").strip()
        if data == "[DONE]":
            return "".join(parts)
        if not data:
            continue
        try:
            event = json.loads(data)
        except ValueError:
            raise Lost(f"an event that is none: {data!r}") from None
        if "error" in event:
            raise Interrupted("error_after_first_byte")
        parts += [choice["delta"].get("content") or "" for choice in event["choices"]]
    raise Lost("the stream ended without [DONE] and without an error")


def expected_answer(body: dict[str, Any]) -> str:
    """What an emulated engine must answer: its text follows from the prompt."""
    job = ChatDialect().read(
        {**body, "stream_options": None}, model=MODEL, request_id=None, context_tokens=40_000
    )
    return "".join(token.text for token in plan_answer(job.ask, (), 32).tokens)
