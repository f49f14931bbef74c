"""Which reader reads an answer: one for each API, streamed or not."""

from __future__ import annotations

from conserve_server.engines.wire import Api
from conserve_server.serving.answers.answer import AnswerGatherer
from conserve_server.serving.answers.stream import AnswerReader, EventStreamReader
from conserve_server.serving.answers.typed_stream import NamedAnswerReader, NamedEventReader, OnResponseId
from conserve_server.serving.asked.request import TurnRequest


def document_reader(request: TurnRequest, on_response_id: OnResponseId) -> AnswerReader:
    """A reader of the request's answer, which is one document. `on_response_id` hears its id."""
    if request.api is Api.COMPLETIONS:
        return AnswerReader()
    return NamedAnswerReader(on_response_id)


def stream_reader(
    request: TurnRequest, gatherer: AnswerGatherer | None, on_response_id: OnResponseId
) -> EventStreamReader | NamedEventReader:
    """A reader of the request's answer as it streams past."""
    if request.api is Api.COMPLETIONS:
        return EventStreamReader(hides_usage=not request.wants_usage, gatherer=gatherer)
    return NamedEventReader(request.api, gatherer=gatherer, on_response_id=on_response_id)
