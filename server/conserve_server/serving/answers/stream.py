"""An engine's answer on its way: usage and timing are read, bytes go through as they came."""

from __future__ import annotations

import re
from typing import Final, TypeVar

import msgspec

from conserve_server.engines.wire import UNREADABLE, EngineTiming, Usage
from conserve_server.serving.answers.answer import AnswerGatherer
from conserve_server.serving.answers.event_stream import EventBuffer, data_of, split_events

T = TypeVar("T")

_HAS_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_HAS_ERROR: Final = b'"error"'
_IS_LAST: Final = re.compile(rb'"finish_reason"\s*:\s*"|^data: ?\[DONE\]', re.MULTILINE)
"""In JSON a text's own quotes are escaped, and it has no line breaks: no text of a model matches."""
_NO_OUTPUT = frozenset({"role", "content"})


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: Usage | None = None
    metrics: EngineTiming | None = None


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    text: str | None = None
    finish_reason: str | None = None

    @property
    def has_output(self) -> bool:
        delta = self.delta or {}
        return (
            self.text is not None
            or self.finish_reason is not None
            or bytes(delta.get("content", b'""')) not in (b'""', b"null")
            or not _NO_OUTPUT.issuperset(delta)
        )


class _Early(msgspec.Struct):
    choices: list[_Choice] = []


class _Error(msgspec.Struct):
    message: str = "the engine reported an error"
    code: int | str | None = None


class _ErrorEvent(msgspec.Struct):
    error: _Error


class AnswerReader:
    """Reads one answer. `usage` and `timing` are None until (and unless) the engine has sent them."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.timing: EngineTiming | None = None

    def read_document(self, body: bytes) -> bool:
        """Read an answer that was not streamed; whether it is a JSON object at all."""
        if not is_object(body):
            return False
        self._read(body)
        return True

    def _read(self, document: bytes) -> bool:
        """Note usage and timing; whether the document carries usage and nothing else."""
        chunk = decoded(document, _Chunk)
        if chunk is None:
            return False  # not ours to judge: the client gets it as it is
        self.usage = chunk.usage or self.usage
        self.timing = chunk.metrics or self.timing
        return chunk.usage is not None and not chunk.choices


class StreamReader(AnswerReader):
    """Reads a streamed answer, event by event; what it learns is the same for every API."""

    def __init__(self, gatherer: AnswerGatherer | None) -> None:
        super().__init__()
        self.has_output = False
        """Whether an output token has come: vLLM's first event of a chat names only the role."""
        self.is_finished = False
        """Whether the answer has come to its end: what may follow is usage, and the stream's end."""
        self.error: str | None = None
        """What an engine that failed within a stream says in an event of its own."""
        self.error_status: int | None = None
        """The HTTP status that it would have had, where the event says so."""
        self._gatherer = gatherer
        self._buffer = EventBuffer()

    def feed(self, chunk: bytes) -> bytes:
        """Take what arrived; what goes to the client now. Raises EventTooLong."""
        events = self._buffer.take(chunk)
        if events:
            if self._gatherer is not None:
                self._gatherer.read_events(split_events(events))
            events = self._take(events)
        return self._now(chunk, events)

    def rest(self) -> bytes:
        """What was held of an event that never ended."""
        return b""

    def _take(self, events: bytes) -> bytes:
        """Learn from whole events; those that the client may see."""
        raise NotImplementedError

    def _now(self, chunk: bytes, events: bytes) -> bytes:
        """What goes to the client: all that came, where nothing is ever hidden."""
        del events
        return chunk


class EventStreamReader(StreamReader):
    """Reads a stream of OpenAI's chat or text completions.

    `hides_usage`: the usage event was asked for by the gateway and not by the client, who
    gets every other byte as the engine sent it. `gatherer` is shown every event, where one is given.
    """

    def __init__(self, *, hides_usage: bool, gatherer: AnswerGatherer | None = None) -> None:
        super().__init__(gatherer)
        self._hides_usage = hides_usage

    def rest(self) -> bytes:
        self.is_finished = self.is_finished or _IS_LAST.search(self._buffer.partial) is not None
        return self._buffer.partial if self._hides_usage else b""

    def _now(self, chunk: bytes, events: bytes) -> bytes:
        """Where the usage event must be hidden an event is held until its end has come: no client
        could have used it earlier."""
        return events if self._hides_usage else chunk

    def _take(self, events: bytes) -> bytes:
        if _HAS_ERROR in events or not self.has_output:
            self._watch(split_events(events))
        if _HAS_USAGE.search(events):
            kept = [event for event in split_events(events) if not self._is_usage(event)]
            events = b"".join(kept)
        self.is_finished = self.is_finished or _IS_LAST.search(events) is not None
        return events

    def _is_usage(self, event: bytes) -> bool:
        return _HAS_USAGE.search(event) is not None and self._read(data_of(event))

    def _watch(self, events: list[bytes]) -> None:
        """Note the first output token, and an error where the engine sends one."""
        for event in events:
            data = data_of(event)
            if not self.has_output:
                early = decoded(data, _Early)
                self.has_output = early is not None and any(c.has_output for c in early.choices)
            if _HAS_ERROR in event and (failed := decoded(data, _ErrorEvent)) is not None:
                self.error = failed.error.message
                self.error_status = failed.error.code if isinstance(failed.error.code, int) else None


def is_object(body: bytes) -> bool:
    """Whether the body is one JSON object, of a depth that can be read."""
    return decoded(body, dict[str, msgspec.Raw]) is not None


def decoded(document: bytes, kind: type[T]) -> T | None:
    """The document as `kind`; None where it is something else."""
    try:
        return msgspec.json.decode(document, type=kind)
    except UNREADABLE:
        return None
