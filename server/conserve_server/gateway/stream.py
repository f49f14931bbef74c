"""An engine's answer in passing: usage and timing are read, bytes go through as they came."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from conserve_server.engines.wire import EngineTiming, Usage
from conserve_server.gateway.answer import AnswerGatherer

T = TypeVar("T")

_EVENT_END = b"\n\n"
_HAS_USAGE = b'"usage":'
_HAS_ERROR = b'"error":'
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

    def read_document(self, body: bytes) -> None:
        """Read an answer that was not streamed."""
        self._read(body)

    def _read(self, document: bytes) -> bool:
        """Note usage and timing; whether the document carries usage and nothing else."""
        try:
            chunk = msgspec.json.decode(document, type=_Chunk)
        except msgspec.MsgspecError:
            return False  # not ours to judge: the client gets it as it is
        self.usage = chunk.usage or self.usage
        self.timing = chunk.metrics or self.timing
        return chunk.usage is not None and not chunk.choices


class EventStreamReader(AnswerReader):
    """Reads a streamed answer (server-sent events), event by event.

    `hides_usage`: the usage event was asked for by the gateway and not by the client, who
    gets every other byte as the engine sent it. `gatherer` is shown every event, where one is given.
    """

    def __init__(self, *, hides_usage: bool, gatherer: AnswerGatherer | None = None) -> None:
        super().__init__()
        self.has_output = False
        """Whether an output token has come: vLLM's first event of a chat names only the role."""
        self.error: str | None = None
        """What an engine that failed within a stream says in an event of its own."""
        self.error_status: int | None = None
        """The HTTP status that it would have had, where the event says so."""
        self._hides_usage = hides_usage
        self._gatherer = gatherer
        self._partial = b""

    def feed(self, chunk: bytes) -> bytes:
        """Take what arrived; what goes to the client now.

        Where the usage event must be hidden an incomplete event is held until its end arrives;
        no client could have used it earlier.
        """
        pending = self._partial + chunk if self._partial else chunk
        complete, end, self._partial = pending.rpartition(_EVENT_END)
        if not end:
            return b"" if self._hides_usage else chunk
        events = complete + end
        if self._gatherer is not None:
            self._gatherer.read_events(complete.split(_EVENT_END))
        if _HAS_ERROR in events or not self.has_output:
            self._watch(complete.split(_EVENT_END))
        if _HAS_USAGE in events:
            kept = self._without_usage(complete.split(_EVENT_END))
            events = kept if self._hides_usage else events
        return events if self._hides_usage else chunk

    def rest(self) -> bytes:
        """What was held of an event that never ended."""
        return self._partial if self._hides_usage else b""

    def _without_usage(self, events: list[bytes]) -> bytes:
        kept = [event for event in events if not (_HAS_USAGE in event and self._is_usage(event))]
        return b"".join(event + _EVENT_END for event in kept)

    def _is_usage(self, event: bytes) -> bool:
        return self._read(_data(event))

    def _watch(self, events: list[bytes]) -> None:
        """Note the first output token, and an error where the engine sends one."""
        for event in events:
            if not self.has_output:
                early = _decoded(_data(event), _Early)
                self.has_output = early is not None and any(c.has_output for c in early.choices)
            if _HAS_ERROR in event and (failed := _decoded(_data(event), _ErrorEvent)) is not None:
                self.error = failed.error.message
                self.error_status = failed.error.code if isinstance(failed.error.code, int) else None


def _data(event: bytes) -> bytes:
    return event.removeprefix(b"data:").strip()


def _decoded(document: bytes, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.MsgspecError:
        return None
