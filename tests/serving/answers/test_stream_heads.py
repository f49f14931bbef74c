"""Signs of life of turns that wait, beside turns that go on meanwhile."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

from starlette.types import Message

from conserve_server.core.clock import VirtualClock
from conserve_server.engines.wire import Api
from conserve_server.gateway.http.reply import Reply
from conserve_server.serving.answers.stream_heads import COMMENT, StreamHeads
from conserve_server.serving.turns.live import LiveTurn

AFTER_S = 10.0


def live_turn(number: int) -> LiveTurn:
    """As much of a turn as its head needs."""
    fields: dict[str, Any] = {
        "turn": SimpleNamespace(id=number),
        "request": SimpleNamespace(is_streamed=True),
        "arrived_s": 0.0,
        "is_passed_on": False,
        "receipt": dict,
    }
    return cast(LiveTurn, SimpleNamespace(**fields))


class Client:
    """Takes what it is told; `then` happens while its first message is on the way."""

    def __init__(self, then: Any = None) -> None:
        self.told: list[Message] = []
        self._then = then

    async def send(self, message: Message) -> None:
        self.told.append(message)
        if self._then is not None:
            then, self._then = self._then, None
            then()

    @property
    def comments(self) -> int:
        return sum(message.get("body") == COMMENT for message in self.told)


def reply(client: Client) -> Reply:
    return Reply(client.send, api=Api.COMPLETIONS, request_id="r", write_timeout_s=1.0)


async def test_a_turn_that_waits_is_told_once_in_its_time() -> None:
    heads, client = StreamHeads(VirtualClock(), AFTER_S), Client()
    with heads.waiting(live_turn(1), reply(client)):
        for now_s in (9.0, 10.0, 11.0, 20.0):
            await heads.look(now_s)
    assert [message["type"] for message in client.told].count("http.response.start") == 1
    assert client.comments == 2


async def test_a_turn_that_goes_on_while_another_is_told_hears_no_comment_in_its_answer() -> None:
    """A comment between two halves of an event would end it; one after the answer's end breaks HTTP."""
    heads = StreamHeads(VirtualClock(), AFTER_S)
    answering, second = live_turn(2), Client()
    third, leaving = Client(), ExitStack()

    def meanwhile() -> None:
        answering.is_passed_on = True
        leaving.close()

    first = Client(meanwhile)
    with (
        leaving,
        heads.waiting(live_turn(1), reply(first)),
        heads.waiting(answering, reply(second)),
    ):
        leaving.enter_context(heads.waiting(live_turn(3), reply(third)))
        await heads.look(AFTER_S)
    assert first.comments == 1
    assert second.told == []
    assert third.told == []
