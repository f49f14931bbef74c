"""A client's request, read in one pass over its bytes; the prompt itself is never decoded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from conserve_server.core.errors import InvalidRequest
from conserve_server.engines.wire import Fields, decode_leg, prefill_leg


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One completion request: its path, its bytes, and the few fields that routing needs."""

    path: str
    body: bytes
    fields: Fields
    model: str
    is_streamed: bool
    wants_usage: bool

    def prefill_body(self, priority: int | None = None) -> bytes:
        """The prefill leg of this request."""
        return prefill_leg(self.fields, priority=priority)

    def decode_body(self, kv_transfer_params: bytes | None, priority: int | None = None) -> bytes:
        """The leg that answers: the client's bytes untouched wherever nothing must be added."""
        adds_usage = self.is_streamed and not self.wants_usage
        adds_nothing = kv_transfer_params is None and priority is None and not adds_usage
        if adds_nothing and "kv_transfer_params" not in self.fields:
            return self.body
        return decode_leg(
            self.fields, kv_transfer_params=kv_transfer_params, with_usage=adds_usage, priority=priority
        )


def parse_request(path: str, body: bytes) -> TurnRequest:
    """Read a completion request. Raises InvalidRequest naming the field that is wrong."""
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidRequest(f"the body must be a JSON object: {error}", code="invalid_json") from error
    model: str | None = _field(fields, "model", str, None)
    if not model:
        raise InvalidRequest("model is missing: name the model to use", code="missing_model", param="model")
    is_streamed = bool(_field(fields, "stream", bool | None, False))
    options = _field(fields, "stream_options", _StreamOptions | None, None)
    wants_usage = bool(options is not None and options.include_usage)
    return TurnRequest(path, body, fields, model, is_streamed, wants_usage)


def check_model(model: str, served: Collection[str]) -> None:
    """Raise a 404 if engines are up and none serves this model."""
    if served and model not in served:
        known = ", ".join(sorted(served))
        raise InvalidRequest(
            f"the model {model!r} is not served here; served models: {known}",
            code="model_not_found",
            param="model",
            status=404,
        )


def _field(fields: Fields, name: str, kind: Any, default: Any) -> Any:
    raw = fields.get(name)
    if raw is None:
        return default
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"{name} is wrong: {error}", code="invalid_field", param=name) from error
