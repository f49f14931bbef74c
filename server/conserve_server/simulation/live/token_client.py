"""A client whose prompts are token ids: exactly as long as asked, so later ones can contain earlier ones.

It speaks vLLM's `/v1/completions` (a list of ids as the prompt, `ignore_eos`, `return_token_ids`),
to an engine or through the gateway, and notes when each token came.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import aiohttp
import msgspec

from conserve_sdk.protocol import CONVERSATION_ID, RECEIPT_PATH, Path, conversation_path
from conserve_server.core.errors import ConserveError

VOCABULARY: Final = (1_000, 20_000)
"""Ordinary ids in any model's vocabulary: special tokens lie at its ends."""
_CONNECT_S: Final = 30.0


class LiveError(ConserveError):
    """A running engine or gateway can't be used, or refused a request; the message says which and why."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    text: str = ""
    token_ids: list[int] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw | None = None


class _Card(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


@dataclass(slots=True)
class Answer:
    """One answer. Times are `time.monotonic()`; `token_s` has one for each piece that came."""

    sent_s: float
    token_ids: list[int] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    path: Path | None = None

    @property
    def first_s(self) -> float:
        return self.token_s[0]

    @property
    def last_s(self) -> float:
        return self.token_s[-1]


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked: a base URL, the model it serves, the longest sequence it takes (None: not said)."""

    url: str
    model: str
    max_model_len: int | None


class TokenClient:
    """Streams answers from one target. The session is the caller's."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, *, silence_s: float = 600.0) -> None:
        self.target = target
        self._session = session
        self._limit = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=silence_s)
        self._decoder = msgspec.json.Decoder(_Chunk)

    async def stream(
        self, prompt: Sequence[int], output_tokens: int, *, conversation: str | None = None
    ) -> Answer:
        """The answer of exactly so many tokens. Raises LiveError where there is none, or a broken one."""
        body = msgspec.json.encode(self._body(prompt, output_tokens))
        headers = {"content-type": "application/json"}
        if conversation is not None:
            headers[CONVERSATION_ID] = conversation
        answer = Answer(time.monotonic())
        try:
            async with self._session.post(
                f"{self.target.url}/v1/completions", data=body, headers=headers, timeout=self._limit
            ) as response:
                await self._read(response, answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise LiveError(f"{self.target.url}: {error or type(error).__name__}") from error
        if not answer.token_s:
            raise LiveError(f"{self.target.url} answered without a token")
        return answer

    async def release(self, conversation: str) -> None:
        """End the conversation at the gateway; that nobody knows it is no error."""
        async with self._session.delete(self.target.url + conversation_path(conversation)) as response:
            await response.read()

    def _body(self, prompt: Sequence[int], output_tokens: int) -> dict[str, object]:
        return {
            "model": self.target.model,
            "prompt": list(prompt),
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": True,
        }

    async def _read(self, response: aiohttp.ClientResponse, answer: Answer) -> None:
        if response.status != 200:
            text = (await response.text())[:300]
            raise LiveError(f"{self.target.url} answered {response.status}: {text}")
        path = response.headers.get(RECEIPT_PATH)
        answer.path = Path(path) if path in list(Path) else None
        async for line in response.content:
            if line.startswith(b"data: {"):
                self._take(line[len(b"data: ") :], answer)

    def _take(self, document: bytes, answer: Answer) -> None:
        chunk = self._decoder.decode(document)
        if chunk.error is not None:
            raise LiveError(f"{self.target.url} broke off: {bytes(chunk.error).decode()[:300]}")
        for choice in chunk.choices:
            if choice.text or choice.token_ids:
                answer.token_s.append(time.monotonic())
                answer.token_ids += choice.token_ids or []
        if chunk.usage is not None:
            details = chunk.usage.prompt_tokens_details
            answer.prompt_tokens = chunk.usage.prompt_tokens
            answer.cached_tokens = details.cached_tokens if details else None


@asynccontextmanager
async def connected(url: str, *, headers: Mapping[str, str] | None = None) -> AsyncIterator[TokenClient]:
    """A client of the engine or gateway at `url`, which must answer `/v1/models`."""
    base = url.rstrip("/").removesuffix("/v1")
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield TokenClient(session, await _target(session, base))


async def _target(session: aiohttp.ClientSession, base: str) -> Target:
    try:
        async with asyncio.timeout(_CONNECT_S), session.get(f"{base}/v1/models") as response:
            content = await response.read()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise LiveError(f"nothing to use at {base}: {error or 'no answer'}") from error
    try:
        cards = msgspec.json.decode(content, type=_Cards).data
    except msgspec.DecodeError as error:
        raise LiveError(f"{base}/v1/models answered {response.status}, no list of models") from error
    if not cards:
        raise LiveError(f"{base} serves no model")
    return Target(base, cards[0].id, cards[0].max_model_len)


def random_tokens(seed: str, count: int) -> list[int]:
    """Token ids that are the same for the same seed, whatever the count."""
    rng = random.Random(seed)  # noqa: S311  prompts are repeatable, not secret
    return [rng.randrange(*VOCABULARY) for _ in range(count)]
