"""One request inside the engine: what it needs, how far it is, what it has said."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from conserve_server.engines.emulated.answer import Answer, FinishReason, OutputToken
from conserve_server.engines.emulated.kv_cache import chain_digest, digest_blocks, salted


class KvLoadFailed(Exception):
    """The KV that a request was to pull is not there; the message says why."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and the answer to it; the engine loop alone changes it.

    Iterating yields the output tokens as they are produced. Raises KvLoadFailed, at the
    first token, where the prompt's KV could not be pulled.
    """

    id: str
    prompt: list[int]
    answer: Answer
    block_size: int
    arrived_s: float
    kv_params: Mapping[str, object] = field(default_factory=dict)
    session: str | None = None
    """The conversation, as the body or `X-Session-ID` names it."""
    salt: str | None = None

    blocks: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    published_blocks: int = 0
    local_tokens: int = 0
    external_tokens: int = 0
    computed_tokens: int = 0
    produced_tokens: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish_reason: FinishReason | None = None
    transfer_params: dict[str, object] | None = None
    _outputs: asyncio.Queue[OutputToken | KvLoadFailed | None] = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self.digests = digest_blocks(self.prompt, self.block_size, salt=self.salt)

    @property
    def is_pull(self) -> bool:
        """Whether its prompt was prefilled elsewhere."""
        return bool(self.kv_params.get("do_remote_prefill"))

    @property
    def is_prefill_leg(self) -> bool:
        return bool(self.kv_params.get("do_remote_decode"))

    @property
    def is_decoding(self) -> bool:
        return self.computed_tokens >= len(self.prompt)

    @property
    def needed_blocks(self) -> int:
        """Blocks for the prompt and the whole answer; its last token's KV is never computed."""
        return -(-(len(self.prompt) + len(self.answer.tokens) - 1) // self.block_size)

    @property
    def cached_tokens(self) -> int:
        """What vLLM reports as cached: after a pull, what the prefiller had found in its own cache."""
        remote = self.kv_params.get("remote_prefill_cached_tokens")
        if self.external_tokens and isinstance(remote, int):
            return remote
        return self.local_tokens + self.external_tokens

    def produce(self, now_s: float) -> None:
        """The next output token is out."""
        token = self.answer.tokens[self.produced_tokens]
        self.produced_tokens += 1
        if self.first_token_s is None:
            self.first_token_s = now_s
        self.last_token_s = now_s
        self._extend_digests()
        self._outputs.put_nowait(token)

    def end(self, reason: FinishReason, *, error: KvLoadFailed | None = None) -> None:
        """Nothing more comes."""
        self.finish_reason = reason
        self._outputs.put_nowait(error)

    def __aiter__(self) -> Sequence:
        return self

    async def __anext__(self) -> OutputToken:
        match await self._outputs.get():
            case OutputToken() as token:
                return token
            case KvLoadFailed() as error:
                raise error
            case None:
                raise StopAsyncIteration

    def _extend_digests(self) -> None:
        """One more digest once the computed tokens (all but the newest) fill a block."""
        start = len(self.digests) * self.block_size
        end = start + self.block_size
        if len(self.prompt) + self.produced_tokens - 1 < end:
            return
        answered = [token.id for token in self.answer.tokens[: self.produced_tokens]]
        tokens = [*self.prompt[start:end], *answered[max(0, start - len(self.prompt)) :]][: self.block_size]
        self.digests.append(chain_digest(self.digests[-1] if self.digests else salted(self.salt), tokens))
