"""A client's request, read in one pass over its bytes; the prompt itself is never decoded."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

import msgspec

from conserve_server.core.errors import InvalidRequest
from conserve_server.engines.wire import API_OF, Api, Fields, decode_leg, prefill_leg
from conserve_server.gateway.engine_fields import EngineFields
from conserve_server.gateway.identity import DEFAULT_TENANT
from conserve_server.gateway.json_text import check_text, what_is_wrong

T = TypeVar("T")
MAX_FIELDS: Final = 1_000
"""At the top of a body: no API has a tenth of it."""
MAX_MODEL_LENGTH: Final = 512
"""Characters of a model's name: it is kept with the conversation."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


# Made once: a decoder made anew costs more than decoding a short field.
_READ_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_Name = Annotated[str, msgspec.Meta(max_length=MAX_MODEL_LENGTH)]
_READ_TEXT: Final = msgspec.json.Decoder(_Name | None).decode
_READ_FLAG: Final = msgspec.json.Decoder(bool | None).decode
_READ_OPTIONS: Final = msgspec.json.Decoder(_StreamOptions | None).decode
_ONE_TENANT: Final = EngineFields()


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One request for text: its path, its bytes, and the few fields that routing needs.

    `fields` are the client's; `sent` are those that engines get, the same object where nothing must change.
    """

    path: str
    body: bytes
    fields: Fields
    sent: Fields
    model: str
    is_streamed: bool
    wants_usage: bool
    request_id: str = ""

    @property
    def api(self) -> Api:
        return API_OF[self.path]

    @property
    def needs_its_decoder(self) -> bool:
        """Whether only the engine that answered before can read the prompt: it stored what came before."""
        return self.api is Api.RESPONSES and _has(self.fields, "previous_response_id")

    def prefill_body(self, priority: int | None = None) -> bytes:
        """The prefill leg of this request."""
        return prefill_leg(self.sent, api=self.api, priority=priority)

    def decode_body(self, kv_transfer_params: bytes | None, priority: int | None = None) -> bytes:
        """The leg that answers: the client's bytes untouched wherever nothing must be added."""
        adds_usage = self.is_streamed and not self.wants_usage
        adds_nothing = kv_transfer_params is None and priority is None and not adds_usage
        if adds_nothing and self.sent is self.fields:
            return self.body
        return decode_leg(
            self.sent,
            kv_transfer_params=kv_transfer_params,
            with_usage=adds_usage,
            api=self.api,
            priority=priority,
        )


def parse_request(
    path: str,
    body: bytes,
    request_id: str = "",
    *,
    rules: EngineFields = _ONE_TENANT,
    tenant: str = DEFAULT_TENANT,
) -> TurnRequest:
    """Read a request for text. Raises InvalidRequest naming the field that is wrong.

    `rules` say which fields engines get for the tenant.
    """
    fields = parse_fields(body)
    model = read_model(fields)
    is_streamed = bool(_field(fields, "stream", _READ_FLAG, False))
    wants_usage = True  # the other APIs' streams always end with it
    if API_OF[path] is Api.COMPLETIONS:
        options = _field(fields, "stream_options", _READ_OPTIONS, None)
        wants_usage = bool(options is not None and options.include_usage)
    sent = rules.of(path, fields, tenant)
    return TurnRequest(path, body, fields, sent, model, is_streamed, wants_usage, request_id)


def parse_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """The body's top-level fields, their values still encoded. Raises InvalidRequest."""
    check_text(body)
    try:
        fields = _READ_FIELDS(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        why = what_is_wrong(body, error)
        raise InvalidRequest(f"the body must be a JSON object: {why}", code="invalid_json") from error
    if len(fields) > MAX_FIELDS:
        raise InvalidRequest(f"the body has more than {MAX_FIELDS} fields: send fewer", code="too_many_items")
    return fields


def read_model(fields: Fields) -> str:
    """The model that the request names. Raises InvalidRequest where it names none."""
    model: str | None = _field(fields, "model", _READ_TEXT, None)
    if not model:
        raise InvalidRequest("model is missing: name the model to use", code="missing_model", param="model")
    return model


def _has(fields: Fields, name: str) -> bool:
    raw = fields.get(name)
    return raw is not None and bytes(raw) != b"null"


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


def _field(fields: Fields, name: str, read: Callable[[msgspec.Raw], T], default: T) -> T:
    raw = fields.get(name)
    if raw is None:
        return default
    try:
        return read(raw)
    except msgspec.MsgspecError as error:
        raise InvalidRequest(f"{name} is wrong: {error}", code="invalid_field", param=name) from error
