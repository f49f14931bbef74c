"""The bodies of vLLM's two legs (vLLM 0.32, NixlConnector in pull mode), built without reading prompts.

vLLM takes and gives `kv_transfer_params` on all four routes that make text; they differ in the
name of the output limit and of the token counts.

A body is held as its top-level fields with their values still encoded, so that a leg changes
only what it must and the prompt's bytes are copied, never parsed into objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

import msgspec

Fields = Mapping[str, msgspec.Raw]
Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""A count that an engine tells; one out of these bounds makes the whole block unreadable."""
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""What reading a document of somebody else's raises where it is odd: its shape, its text, its depth."""


class Api(StrEnum):
    """A family of routes with one way to name limits, counts, events and errors."""

    COMPLETIONS = "completions"
    """OpenAI's chat and text completions."""
    RESPONSES = "responses"
    MESSAGES = "messages"
    """Anthropic's."""


CHAT_PATH: Final = "/v1/chat/completions"
COMPLETIONS_PATH: Final = "/v1/completions"
RESPONSES_PATH: Final = "/v1/responses"
MESSAGES_PATH: Final = "/v1/messages"
API_OF: Final = {
    CHAT_PATH: Api.COMPLETIONS,
    COMPLETIONS_PATH: Api.COMPLETIONS,
    RESPONSES_PATH: Api.RESPONSES,
    MESSAGES_PATH: Api.MESSAGES,
}
"""The routes that take turns."""

_HOLD_FOR_DECODER: Final = msgspec.Raw(
    msgspec.json.encode(
        {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "remote_engine_id": None,
            "remote_block_ids": None,
            "remote_host": None,
            "remote_port": None,
        }
    )
)
_ONE: Final = msgspec.Raw(b"1")
_FALSE: Final = msgspec.Raw(b"false")
TRANSFER_FIELDS: Final = frozenset({"kv_transfer_params", "ec_transfer_params"})
"""Fields that name addresses to an engine: the gateway's to set, never a client's."""
_NOT_FOR_PREFILL: Final = TRANSFER_FIELDS | {"stream_options", "min_tokens"}
_LIMITS: Final = {
    Api.COMPLETIONS: "max_tokens",
    Api.RESPONSES: "max_output_tokens",
    Api.MESSAGES: "max_tokens",
}


class PromptDetails(msgspec.Struct):
    cached_tokens: Tokens | None = None


class Usage(msgspec.Struct):
    """OpenAI's usage block, with vLLM's cached tokens."""

    prompt_tokens: Tokens = 0
    completion_tokens: Tokens | None = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


class InputUsage(msgspec.Struct):
    """The usage block of Responses and Messages."""

    input_tokens: Tokens = 0
    output_tokens: Tokens | None = 0
    input_tokens_details: PromptDetails | None = None
    cache_read_input_tokens: Tokens | None = None
    cache_creation_input_tokens: Tokens | None = None

    def common(self) -> Usage:
        """The same counts in the completions' words: Anthropic's input leaves out what the cache did."""
        cached = self.cache_read_input_tokens
        prompt = self.input_tokens + (cached or 0) + (self.cache_creation_input_tokens or 0)
        if cached is None and self.input_tokens_details is not None:
            cached = self.input_tokens_details.cached_tokens
        details = None if cached is None else PromptDetails(cached)
        return Usage(prompt, self.output_tokens, details)


class _PrefillAnswer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")
    usage: msgspec.Raw = msgspec.Raw(b"null")


def read_prefill_answer(path: str, content: bytes) -> tuple[bytes | None, Usage | None]:
    """The transfer parameters, kept encoded, and the usage; None for what is not there.

    Raises msgspec.MsgspecError where the answer, or one of the two, is something else.
    """
    answer = msgspec.json.decode(content, type=_PrefillAnswer)
    params: dict[str, msgspec.Raw] | None = msgspec.json.decode(
        answer.kv_transfer_params, type=dict[str, msgspec.Raw] | None
    )
    return bytes(answer.kv_transfer_params) if params is not None else None, _usage(path, answer.usage)


def _usage(path: str, raw: msgspec.Raw) -> Usage | None:
    if API_OF.get(path, Api.COMPLETIONS) is Api.COMPLETIONS:
        return msgspec.json.decode(raw, type=Usage | None)
    found = msgspec.json.decode(raw, type=InputUsage | None)
    return found.common() if found is not None else None


class EngineTiming(msgspec.Struct):
    """vLLM's `metrics` of one request (`--enable-per-request-metrics`), in milliseconds."""

    queue_time_ms: Milliseconds | None = None
    time_to_first_token_ms: Milliseconds | None = None
    generation_time_ms: Milliseconds | None = None


def prefill_leg(fields: Fields, *, api: Api = Api.COMPLETIONS, priority: int | None = None) -> bytes:
    """The request for the prefill engine: one token, not streamed, KV held for a decoder.

    `priority` is vLLM's, which takes it only where it schedules by priority; None leaves the client's.
    """
    leg = {name: value for name, value in fields.items() if name not in _NOT_FOR_PREFILL}
    leg |= {"stream": _FALSE, _LIMITS[api]: _ONE, "kv_transfer_params": _HOLD_FOR_DECODER}
    if "max_completion_tokens" in leg:
        leg["max_completion_tokens"] = _ONE
    if api is Api.RESPONSES:
        leg |= {"store": _FALSE, "background": _FALSE}  # the answer is the decoder's to keep
    return msgspec.json.encode(_with_priority(leg, api, priority))


def decode_leg(
    fields: Fields,
    *,
    kv_transfer_params: bytes | None,
    with_usage: bool,
    api: Api = Api.COMPLETIONS,
    priority: int | None = None,
) -> bytes:
    """The request for the decode engine: the client's, the prefiller's parameters passed on unread.

    `with_usage` asks a streamed answer for its usage chunk; `priority` as in `prefill_leg`.
    """
    leg = {name: value for name, value in fields.items() if name not in TRANSFER_FIELDS}
    if kv_transfer_params is not None:
        leg["kv_transfer_params"] = msgspec.Raw(kv_transfer_params)
    if with_usage:
        leg["stream_options"] = _with_usage(leg.get("stream_options"))
    return msgspec.json.encode(_with_priority(leg, api, priority))


def _with_priority(leg: dict[str, msgspec.Raw], api: Api, priority: int | None) -> dict[str, msgspec.Raw]:
    """Messages have no such field."""
    if priority is None or api is Api.MESSAGES:
        return leg
    return leg | {"priority": msgspec.Raw(msgspec.json.encode(priority))}


def _with_usage(stream_options: msgspec.Raw | None) -> msgspec.Raw:
    options: dict[str, msgspec.Raw] = {}
    if stream_options is not None and bytes(stream_options) != b"null":
        options = msgspec.json.decode(stream_options, type=dict[str, msgspec.Raw])
    options["include_usage"] = msgspec.Raw(b"true")
    options.pop("continuous_usage_stats", None)  # vLLM heeds it only beside a usage that the client asks for
    return msgspec.Raw(msgspec.json.encode(options))
