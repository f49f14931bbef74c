"""The decoder's answer on its way to the client: streamed as it comes, whole, or a refusal."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from conserve_sdk.protocol import RECEIPT_EMULATED
from conserve_server.core.clock import Clock
from conserve_server.core.errors import EngineFailed, EngineRefused
from conserve_server.engines.document import read_whole
from conserve_server.engines.engine import Answer
from conserve_server.engines.vllm import error_message
from conserve_server.serving.answers.event_stream import MAX_EVENT_BYTES, EventTooLong
from conserve_server.serving.answers.readers import document_reader, stream_reader
from conserve_server.serving.answers.stream import AnswerReader, StreamReader
from conserve_server.serving.client import Client
from conserve_server.serving.records.stored_responses import StoredResponse, StoredResponses
from conserve_server.serving.turns.books import TurnBooks
from conserve_server.serving.turns.live import LiveTurn

MAX_HELD_BYTES: Final = 64 * 1024
"""Of a stream, until its first token. Far more than any opening: what grows beyond it is none."""
_NAMED: Final = frozenset(HTTPStatus)


class PassingOn:
    """Passes answers on and tells the books what is in them."""

    def __init__(self, books: TurnBooks, stored_responses: StoredResponses, clock: Clock) -> None:
        self._books = books
        self._stored_responses = stored_responses
        self._clock = clock

    async def pass_on(self, live: LiveTurn, answer: Answer, client: Client) -> None:
        """The answer, to its end. Raises EngineFailed for one that is none, EngineRefused for a refusal
        of a stream whose head is out already.
        """
        live.is_emulated = answer.headers.get(RECEIPT_EMULATED) == "true"
        live.record.is_emulated = live.is_emulated
        if not 200 <= answer.status < 300:
            await self._pass_refusal(live, answer, client)
        elif live.request.is_streamed:
            await self._stream(live, answer, client)
        else:
            await self._answer_whole(live, answer, client)

    async def _stream(self, live: LiveTurn, answer: Answer, client: Client) -> None:
        gatherer = live.watch.answer if live.watch is not None else None
        reader = stream_reader(live.request, gatherer, lambda answer_id: self._is_stored(live, answer_id))
        try:
            await self._pass_events(live, answer, reader, client)
        except EngineFailed:
            if not live.is_answered:
                raise  # else all of the answer is there, and only its stream has no end
        finally:
            self._learn(live, reader)
        if not reader.is_finished and reader.error is None:
            raise _failed(live, "ended its stream before the answer's end", "engine_error")
        live.refused = reader.error
        await client.finish()

    async def _pass_events(
        self, live: LiveTurn, answer: Answer, reader: StreamReader, client: Client
    ) -> None:
        # vLLM opens a chat before it knows of its first token: until then the turn can go elsewhere.
        held = b""
        async for chunk in answer.chunks():
            held += _feed(live, reader, chunk)
            if reader.has_output and live.first_output_s is None:
                self._has_output(live)
            if not live.is_passed_on:
                _check_opening(live, reader)
                if live.first_output_s is None and reader.error is None and len(held) < MAX_HELD_BYTES:
                    continue
            await _write(live, answer, held, client)
            live.is_answered = reader.is_finished
            held = b""
        held += reader.rest()
        if not live.is_passed_on and not held:
            raise _empty(live)
        if reader.is_finished or reader.error is not None:
            await _write(live, answer, held, client)

    async def _answer_whole(self, live: LiveTurn, answer: Answer, client: Client) -> None:
        """An answer that was not streamed: one JSON document, read to its end for the receipt."""
        body = await read_whole(answer, _decoder(live))
        if not body:
            raise _empty(live)
        reader = document_reader(live.request, lambda answer_id: self._is_stored(live, answer_id))
        if not reader.read_document(body):
            raise _failed(live, "answered with something that is no JSON object", "engine_protocol")
        if live.watch is not None:
            live.watch.answer.read_document(body)
        self._learn(live, reader)
        self._has_output(live)
        live.is_passed_on = True
        await client.start(200, {**_headers(live, answer), "content-length": str(len(body))})
        await client.finish(body)
        live.is_answered = True

    async def _pass_refusal(self, live: LiveTurn, answer: Answer, client: Client) -> None:
        """The engine refused: a client's fault is passed on as it came, an engine's becomes ours."""
        body = await read_whole(answer, _decoder(live))
        message = error_message(body) or f"status {answer.status}"
        if not 400 <= answer.status < 500:
            raise _failed(live, f"answered with status {answer.status}: {message}", "engine_error")
        status = answer.status if answer.status in _NAMED else 400
        if client.has_started:
            raise EngineRefused(message, body, status=status)
        live.refused = message
        live.is_passed_on = True
        await client.start(status, {**_headers(live, answer), "content-length": str(len(body))})
        await client.finish(body)

    # -- what is learned on the way --------------------------------------------------------------

    def _has_output(self, live: LiveTurn) -> None:
        """The decoder has answered: a binding holds from here on."""
        live.first_output_s = self._clock.now_s()
        self._books.answered(live, live.first_output_s)

    def _learn(self, live: LiveTurn, reader: AnswerReader) -> None:
        live.usage, live.timing = reader.usage, reader.timing
        self._books.counted(live)

    def _is_stored(self, live: LiveTurn, answer_id: str) -> None:
        """An answer that its decoder may have stored has this id."""
        identity, placement = live.identity, live.placement
        if placement is not None:
            stored = StoredResponse(
                identity.conversation_id, identity.model, placement.decoder, identity.is_synthetic
            )
            self._stored_responses.note(identity.tenant, answer_id, stored)


async def _write(live: LiveTurn, answer: Answer, events: bytes, client: Client) -> None:
    """Bytes of the engine go to the client: from the first one on the turn can't go elsewhere."""
    live.is_passed_on = True
    if not client.has_started:
        await client.start(200, _headers(live, answer))
    await client.write(events)


def _feed(live: LiveTurn, reader: StreamReader, chunk: bytes) -> bytes:
    try:
        return reader.feed(chunk)
    except EventTooLong:
        what = f"sent an event of more than {MAX_EVENT_BYTES} bytes"
        raise _failed(live, what, "engine_protocol") from None


def _headers(live: LiveTurn, answer: Answer) -> dict[str, str]:
    content_type = answer.headers.get("content-type", "application/json")
    return {"content-type": content_type, "cache-control": "no-store", **live.receipt()}


def _check_opening(live: LiveTurn, reader: StreamReader) -> None:
    """Raises EngineFailed where the stream begins with an error that is the engine's."""
    if reader.error is None or reader.has_output or (reader.error_status or 500) < 500:
        return
    raise _failed(live, f"failed: {reader.error}", "engine_error")


def _empty(live: LiveTurn) -> EngineFailed:
    return _failed(live, "sent an empty answer", "engine_lost")


def _failed(live: LiveTurn, what: str, code: str) -> EngineFailed:
    engine = _decoder(live)
    return EngineFailed(f"engine {engine} {what}", code=code, engine=engine)


def _decoder(live: LiveTurn) -> str:
    return live.placement.decoder if live.placement else "?"
