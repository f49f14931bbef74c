"""A client's request, read in one pass over its bytes; the prompt itself is never decoded."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final, TypeVar

import msgspec

from conserve_server.core.errors import InvalidRequest
from conserve_server.engines.wire import API_OF, Api, Fields, decode_leg, prefill_leg
from conserve_server.serving.asked.engine_fields import EngineFields
from conserve_server.serving.asked.identity import DEFAULT_TENANT
from conserve_server.serving.asked.json_text import check_text, what_is_wrong
from conserve_server.serving.asked.prompt_size import PromptSize, prompt_size
from conserve_server.serving.asked.transferable import is_transferable

T = TypeVar("T")
MAX_FIELDS: Final = 1_000
"""At the top of a body: no API has a tenth of it."""
MAX_MODEL_LENGTH: Final = 512
"""Characters of a model's name: it is kept with the conversation."""


_Flag = bool | int | float | str | None
"""vLLM (pydantic) takes flags in many forms: `"false"`, `0`, `"off"`."""


class _StreamOptions(msgspec.Struct):
    include_usage: _Flag = None


# Made once: a decoder made anew costs more than decoding a short field.
_READ_FIELDS: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_Name = Annotated[str, msgspec.Meta(max_length=MAX_MODEL_LENGTH)]
_READ_TEXT: Final = msgspec.json.Decoder(_Name | None).decode
_READ_FLAG: Final = msgspec.json.Decoder(_Flag).decode
_NUMBERS: Final[dict[float, bool]] = {0: False, 1: True}
_FLAGS: Final = {
    **dict.fromkeys(("true", "1", "yes", "y", "on", "t"), True),
    **dict.fromkeys(("false", "0", "no", "n", "off", "f"), False),
}
_READ_OPTIONS: Final = msgspec.json.Decoder(_StreamOptions | None).decode
_ONE_TENANT: Final = EngineFields()


@dataclass(frozen=True)
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

    @cached_property
    def size(self) -> PromptSize:
        """The prompt's size as its bytes tell it."""
        return prompt_size(self.body)

    @property
    def api(self) -> Api:
        return API_OF[self.path]

    @property
    def needs_its_decoder(self) -> bool:
        """Whether its decoder has to compute the prompt itself: no KV can come from elsewhere, or only the
        engine that answered before can read it, as it stored what came before.
        """
        is_going_on = self.api is Api.RESPONSES and _has(self.fields, "previous_response_id")
        return is_going_on or not is_transferable(self.path, self.sent)

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
    served: Collection[str] = (),
) -> TurnRequest:
    """Read a request for text. Raises InvalidRequest naming the field that is wrong.

    `rules` say which fields engines get for the tenant; `served` are the models that there are.
    """
    fields = parse_fields(body)
    model = read_model(fields, served)
    is_streamed = _flag("stream", _field(fields, "stream", _READ_FLAG, False))
    wants_usage = True  # the other APIs' streams always end with it
    if API_OF[path] is Api.COMPLETIONS:
        options = _field(fields, "stream_options", _READ_OPTIONS, None)
        wants_usage = options is not None and _flag("stream_options", options.include_usage)
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


def read_model(fields: Fields, served: Collection[str] = ()) -> str:
    """The model that the request names, or the only one that is served, as vLLM takes it.

    Raises InvalidRequest where it names none and there are several, or none is known.
    """
    model: str | None = _field(fields, "model", _READ_TEXT, None)
    if model:
        return model
    if len(served) == 1:
        return next(iter(served))
    known = f", one of {', '.join(sorted(served))}" if served else ""
    raise InvalidRequest(
        f"model is missing: name the model to use{known}", code="missing_model", param="model"
    )


def _flag(name: str, value: _Flag) -> bool:
    """A flag as pydantic reads it. Raises InvalidRequest for what it would refuse."""
    if value is None or isinstance(value, bool):
        return bool(value)
    found = _FLAGS.get(value.lower()) if isinstance(value, str) else _NUMBERS.get(value)
    if found is None:
        raise InvalidRequest(f"{name} is wrong: {value!r} is no flag", code="invalid_field", param=name)
    return found


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
