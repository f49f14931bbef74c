"""Streams of named events (Responses, Messages): read on their way, bytes go through as they came.

Every event carries its type in its document too, so the `event:` line needs no reading. Usage is
in the stream always; nothing is hidden from the client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from conserve_server.engines.wire import Api, EngineTiming, InputUsage
from conserve_server.serving.answers.answer import AnswerGatherer
from conserve_server.serving.answers.event_stream import data_of, split_events
from conserve_server.serving.answers.stream import AnswerReader, StreamReader, decoded, is_object

OnResponseId = Callable[[str], None]

_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "message_stop"})
"""Types of the events that end an answer."""


class _Response(msgspec.Struct):
    id: str | None = None
    usage: InputUsage | None = None
    metrics: EngineTiming | None = None
    error: _Error | None = None


class _Error(msgspec.Struct):
    message: str = "the engine reported an error"


class _Message(msgspec.Struct):
    usage: InputUsage | None = None


class _Event(msgspec.Struct):
    type: str = ""
    message: _Message | str | None = None
    response: _Response | None = None
    usage: InputUsage | None = None
    error: _Error | None = None


class _Document(msgspec.Struct):
    object: str = ""
    id: str | None = None
    usage: InputUsage | None = None
    metrics: EngineTiming | None = None


class NamedAnswerReader(AnswerReader):
    """Reads an answer of Responses or Messages that was not streamed."""

    def __init__(self, on_response_id: OnResponseId | None = None) -> None:
        super().__init__()
        self._on_response_id = on_response_id

    def read_document(self, body: bytes) -> bool:
        if not is_object(body):
            return False
        found = decoded(body, _Document)
        if found is not None:
            self.usage = found.usage.common() if found.usage is not None else None
            self.timing = found.metrics
            if found.object == "response" and found.id and self._on_response_id is not None:
                self._on_response_id(found.id)
        return True


class NamedEventReader(StreamReader):
    """Reads a stream of Responses or Messages, event by event. `gatherer` is shown every event."""

    def __init__(
        self,
        api: Api,
        *,
        gatherer: AnswerGatherer | None = None,
        on_response_id: OnResponseId | None = None,
    ) -> None:
        super().__init__(gatherer)
        self._is_quiet = _QUIET[api]
        self._on_response_id = on_response_id

    def _take(self, events: bytes) -> bytes:
        for event in split_events(events):
            if not (self.has_output and self._is_quiet(event)):
                self._take_event(event)
        return events

    def _take_event(self, event: bytes) -> None:
        found = decoded(data_of(event), _Event)
        if found is None:
            return  # not ours to judge: the client gets it as it is
        self.has_output = self.has_output or found.type.endswith((".delta", "_delta", ".completed"))
        self.is_finished = self.is_finished or found.type in _ENDS
        if found.response is not None:
            self._take_response(found.response)
        usage = found.usage or (found.message.usage if isinstance(found.message, _Message) else None)
        if usage is not None:
            self.usage = usage.common()
        if found.type in ("error", "response.failed"):
            self.error = _message(found)

    def _take_response(self, response: _Response) -> None:
        if response.id and self._on_response_id is not None:
            self._on_response_id(response.id)
            self._on_response_id = None
        if response.usage is not None:
            self.usage = response.usage.common()
        self.timing = response.metrics or self.timing


def _message(event: _Event) -> str:
    error = event.error or (event.response.error if event.response is not None else None)
    if error is not None:
        return error.message
    return event.message if isinstance(event.message, str) else _Error().message


def _quiet_response(event: bytes) -> bool:
    """Whether a Responses event says nothing that the gateway reads: all but the stream's ends."""
    return event.startswith(b"event: response.") and not event.startswith(
        (b"event: response.completed", b"event: response.incomplete", b"event: response.failed")
    )


def _quiet_message(event: bytes) -> bool:
    return event.startswith((b"event: content_block_", b"event: ping"))


_QUIET: dict[Api, Callable[[bytes], bool]] = {Api.RESPONSES: _quiet_response, Api.MESSAGES: _quiet_message}
