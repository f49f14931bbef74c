"""The bodies of vLLM's two legs (vLLM 0.32, NixlConnector in pull mode), built without reading prompts.

A body is held as its top-level fields with their values still encoded, so that a leg changes
only what it must and the prompt's bytes are copied, never parsed into objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

Fields = Mapping[str, msgspec.Raw]

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
_NOT_FOR_PREFILL: Final = frozenset({"stream_options", "min_tokens", "kv_transfer_params"})


class PrefillUsage(msgspec.Struct):
    """The part of the prefill leg's answer that the gateway reads."""

    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")
    usage: Usage | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """OpenAI's usage block, with vLLM's cached tokens."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        return self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else None


class EngineTiming(msgspec.Struct):
    """vLLM's `metrics` of one request (`--enable-per-request-metrics`), in milliseconds."""

    queue_time_ms: float | None = None
    time_to_first_token_ms: float | None = None
    generation_time_ms: float | None = None


def prefill_leg(fields: Fields, *, priority: int | None = None) -> bytes:
    """The request for the prefill engine: one token, not streamed, KV held for a decoder.

    `priority` is vLLM's, which takes it only where it schedules by priority; None leaves the client's.
    """
    leg = {name: value for name, value in fields.items() if name not in _NOT_FOR_PREFILL}
    leg |= {"stream": _FALSE, "max_tokens": _ONE, "kv_transfer_params": _HOLD_FOR_DECODER}
    if "max_completion_tokens" in leg:
        leg["max_completion_tokens"] = _ONE
    return msgspec.json.encode(_with_priority(leg, priority))


def decode_leg(
    fields: Fields, *, kv_transfer_params: bytes | None, with_usage: bool, priority: int | None = None
) -> bytes:
    """The request for the decode engine: the client's, the prefiller's parameters passed on unread.

    `with_usage` asks a streamed answer for its usage chunk; `priority` as in `prefill_leg`.
    """
    leg = {name: value for name, value in fields.items() if name != "kv_transfer_params"}
    if kv_transfer_params is not None:
        leg["kv_transfer_params"] = msgspec.Raw(kv_transfer_params)
    if with_usage:
        leg["stream_options"] = _with_usage(leg.get("stream_options"))
    return msgspec.json.encode(_with_priority(leg, priority))


def _with_priority(leg: dict[str, msgspec.Raw], priority: int | None) -> dict[str, msgspec.Raw]:
    return leg if priority is None else leg | {"priority": msgspec.Raw(msgspec.json.encode(priority))}


def _with_usage(stream_options: msgspec.Raw | None) -> msgspec.Raw:
    options: dict[str, msgspec.Raw] = {}
    if stream_options is not None and bytes(stream_options) != b"null":
        options = msgspec.json.decode(stream_options, type=dict[str, msgspec.Raw])
    options["include_usage"] = msgspec.Raw(b"true")
    return msgspec.Raw(msgspec.json.encode(options))
