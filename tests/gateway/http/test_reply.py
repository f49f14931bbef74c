"""The answer to one client: a client that does not read ends its turn."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Send

from conserve_server.engines.wire import Api
from conserve_server.gateway.http.reply import Reply
from conserve_server.serving.client import ClientStalled


def reply_to(send: Send, write_timeout_s: float) -> Reply:
    return Reply(send, api=Api.COMPLETIONS, request_id="r", write_timeout_s=write_timeout_s)


async def test_a_client_that_takes_nothing_is_given_up_in_bounded_time() -> None:
    async def never(_: Message) -> None:
        await asyncio.Event().wait()

    with pytest.raises(ClientStalled, match="took nothing"):
        await reply_to(never, 0.01).write(b"data: 1\n\n")


async def test_a_client_that_reads_slowly_gets_all_of_it() -> None:
    got = []

    async def slowly(message: Message) -> None:
        await asyncio.sleep(0)
        got.append(message["body"])

    reply = reply_to(slowly, 5.0)
    for chunk in (b"1", b"2"):
        await reply.write(chunk)
    await reply.finish()
    assert b"".join(got) == b"12"
