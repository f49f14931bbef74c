"""What an engine answered, gathered as it goes by, so that the client's next request is recognised by it.

Only for conversations that no client named: all others' answers go through unread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from conserve_server.engines.wire import UNREADABLE
from conserve_server.serving.answers.event_stream import data_of
from conserve_server.serving.recognition.history import (
    ToolCall,
    canonical_answer,
    canonical_arguments,
    canonical_items,
    canonical_message,
)

MAX_ANSWER_CHARS: Final = 1024 * 1024
"""A longer answer is not gathered to its end: its conversation goes on as a new one."""


class _FunctionDelta(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _CallDelta(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _FunctionDelta | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_CallDelta] | None = None


class _ChoiceDelta(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None


class _Choice(msgspec.Struct):
    message: msgspec.Raw = msgspec.Raw()


class _Response(msgspec.Struct):
    id: str | None = None
    output: list[msgspec.Raw] = []


class _Block(msgspec.Struct):
    """The beginning of one of Anthropic's content blocks."""

    type: str = ""
    id: str | None = None
    name: str = ""


class _BlockDelta(msgspec.Struct):
    text: str | None = None
    partial_json: str | None = None


class _Event(msgspec.Struct):
    choices: list[_ChoiceDelta] = []
    response: _Response | None = None
    index: int = 0
    content_block: _Block | None = None
    delta: _BlockDelta | str | None = None


class _Document(msgspec.Struct):
    object: str = ""
    type: str = ""
    id: str | None = None
    choices: list[_Choice] = []
    output: list[msgspec.Raw] = []


@dataclass(slots=True)
class _Call:
    id: str | None = None
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    no_arguments: str = ""


def raise_error(error: Exception) -> None:
    """What becomes of an error that nobody asked to hear of."""
    raise error


class AnswerGatherer:
    """One answer's first choice. `response_id` is the answer's own id in the Responses API.

    `on_error` hears of an answer that could not be gathered because of a fault in here: it goes to
    its client all the same, and nothing will be recognised by it.
    """

    def __init__(self, on_error: Callable[[Exception], None] = raise_error) -> None:
        self._on_error = on_error
        self.response_id: str | None = None
        self._message: bytes | None = None
        self._text: list[str] = []
        self._calls: dict[int, _Call] = {}
        self._chars = 0

    def canonical(self) -> bytes | None:
        """The answer in its canonical form; None if there was none, or too much of it."""
        if self._message is not None:
            return self._message
        if not (self._text or self._calls) or self._chars > MAX_ANSWER_CHARS:
            return None
        calls = [
            ToolCall(call.id, call.name, canonical_arguments("".join(call.arguments) or call.no_arguments))
            for _, call in sorted(self._calls.items())
        ]
        return canonical_answer("".join(self._text), calls)

    def read_document(self, body: bytes) -> None:
        """Take in an answer that was not streamed."""
        try:
            self._read_document(body)
        except Exception as error:  # noqa: BLE001 - whoever counts it is told
            self._give_up(error)

    def read_events(self, events: Sequence[bytes]) -> None:
        """Take in whole server-sent events."""
        try:
            for event in events:
                if self._chars <= MAX_ANSWER_CHARS:
                    self._read_event(data_of(event))
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._message, self._chars = None, MAX_ANSWER_CHARS + 1
        self._on_error(error)

    def _read_document(self, body: bytes) -> None:
        try:
            found = msgspec.json.decode(body, type=_Document)
        except UNREADABLE:
            return
        if found.object == "response":
            self.response_id = found.id
            self._take_items(found.output, len(body))
        if found.type == "message" and len(body) <= MAX_ANSWER_CHARS:
            self._message = canonical_message(body)
        if found.choices and found.choices[0].message and len(body) <= MAX_ANSWER_CHARS:
            self._message = canonical_message(found.choices[0].message)

    def _read_event(self, document: bytes) -> None:
        try:
            found = msgspec.json.decode(document, type=_Event)
        except UNREADABLE:
            return  # the end mark, or not ours to judge
        if found.response is not None and found.response.id:
            self.response_id = found.response.id
            self._take_items(found.response.output, len(document))
        if found.content_block is not None and found.content_block.type == "tool_use":
            block = found.content_block
            self._calls[found.index] = _Call(block.id, block.name, no_arguments="{}")
        if isinstance(found.delta, _BlockDelta):
            self._add_to_block(found.index, found.delta)
        for choice in found.choices:
            if choice.index == 0 and choice.delta is not None:
                self._add(choice.delta)

    def _take_items(self, items: Sequence[msgspec.Raw], size: int) -> None:
        """A whole answer of the Responses API; a stream's last event repeats it."""
        if items and size <= MAX_ANSWER_CHARS:
            self._message = canonical_items(items)

    def _add_to_block(self, index: int, delta: _BlockDelta) -> None:
        if delta.text:
            self._text.append(delta.text)
            self._chars += len(delta.text)
        if delta.partial_json and index in self._calls:
            self._calls[index].arguments.append(delta.partial_json)
            self._chars += len(delta.partial_json)

    def _add(self, delta: _Delta) -> None:
        if delta.content:
            self._text.append(delta.content)
            self._chars += len(delta.content)
        for piece in delta.tool_calls or ():
            call = self._calls.setdefault(piece.index, _Call())
            call.id = piece.id or call.id
            if piece.function is not None:
                call.name += piece.function.name or ""
                call.arguments.append(piece.function.arguments or "")
                self._chars += len(piece.function.arguments or "") + len(piece.function.name or "") + 1
