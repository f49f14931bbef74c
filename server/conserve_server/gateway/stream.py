"""An engine's answer in passing: usage and timing are read, bytes go through as they came."""

from __future__ import annotations

import msgspec

from conserve_server.engines.wire import EngineTiming, Usage

_EVENT_END = b"\n\n"
_HAS_USAGE = b'"usage":'


class _Chunk(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: Usage | None = None
    metrics: EngineTiming | None = None


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
    gets every other byte as the engine sent it.
    """

    def __init__(self, *, hides_usage: bool) -> None:
        super().__init__()
        self._hides_usage = hides_usage
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
        return self._read(event.removeprefix(b"data:").strip())
