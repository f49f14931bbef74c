"""What an engine can answer: broken pages, broken answers, floods, and prompts that kill it."""

from __future__ import annotations

import asyncio
import json
from itertools import count

from bench.attack.case import Case, cases, expect
from bench.attack.ground import Ground, Setup
from bench.attack.raw import RawAnswer, wire
from bench.attack.rogue import (
    STREAM_END,
    STREAM_HEAD,
    Act,
    Heard,
    chat_answer,
    chat_events,
    chunk,
    honest,
    saying,
    whole,
)

ROGUE = Setup(prefill=0, decode=1, rogues=1, gateway={"turn_timeout_s": 4.0, "max_placements": 3})
ALONE = Setup(prefill=0, decode=0, rogues=1, gateway={"turn_timeout_s": 4.0, "max_placements": 1})
"""One engine alone: what it does is what the client sees."""
POOL = Setup(prefill=0, decode=4)
_names = count(1)
_GOOD = json.dumps(chat_answer()).encode()


async def _turn(ground: Ground, act: Act, *, stream: bool = False) -> tuple[RawAnswer, str]:
    """A turn that the rogue answers so; with its outcome in the books."""
    ground.rogues[0].act = act
    name = f"rogue-{next(_names)}"
    answer = await ground.ask(name, stream=stream)
    report = await ground.report(name)
    outcome = report["turns"][-1]["outcome"] if report.get("turns") else "none"
    ground.rogues[0].act = honest
    await ground.release(name)
    return answer, str(outcome)


async def pages_that_are_none(ground: Ground) -> None:
    """One engine's metrics with NaN, words, negatives and floods: its own failure; others are watched on."""
    rogue, honest_engine = ground.rogues[0], ground.engines[0]
    good = rogue.metrics
    pages = [good.replace(b" 0.0", b" " + word) for word in (b"NaN", b"inf", b"word", b"-1", b"1e400", b"")]
    pages += [b"", b"\xff\xfe\x00", good * 50_000, b"vllm:num_requests_running{" * 10_000, good + b"}{\n"]
    for page in pages:
        rogue.metrics = page
        await asyncio.sleep(0.8)
    honest_engine.kill()
    await _until_up(ground, "decode-1", wanted=False)
    honest_engine.start()
    await _until_up(ground, "decode-1", wanted=True)
    rogue.metrics = good
    await ground.ready()


async def models_that_are_none(ground: Ground) -> None:
    """One engine's model list is nested, huge or something else: its own failure."""
    rogue = ground.rogues[0]
    good = rogue.models
    for page in (b"[" * 100_000, b"null", b'{"data":[{"id":1}]}', b'{"data":' + b"[" * 5000, b"\xff"):
        rogue.models = page
        await asyncio.sleep(0.6)
    answer = await ground.ask("beside-a-broken-list")
    expect(answer.status == 200, f"answered with {answer.status}")
    rogue.models = good
    await ground.ready()


async def plugins_that_are_none(ground: Ground) -> None:
    """One engine's plugin answers anything: nobody else is told less for it."""
    rogue = ground.rogues[0]
    for page in (b"[" * 50_000, b"null", b'{"calls":1}', b'{"tokens":{"a":"b"}}', b"\xff", b"{" * 50_000):
        rogue.plugin = page
        await asyncio.sleep(0.6)
        await ground.ask(f"plugin-{len(page)}")
        await ground.release(f"plugin-{len(page)}")


async def _until_up(ground: Ground, name: str, *, wanted: bool) -> None:
    async with asyncio.timeout(20):
        while True:
            document = await ground.get("/health")
            if any(engine["up"] is wanted for engine in document["engines"] if engine["name"] == name):
                return
            await asyncio.sleep(0.1)


async def answers_that_are_none(ground: Ground) -> None:
    """Whole answers that are broken in many ways: a structured error, never a 500 of the gateway's own."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    acts = {
        "status 299": saying(whole(_GOOD, "299 Odd")),
        "status 499": saying(whole(b"{}", "499 Odd")),
        "status 599": saying(whole(b"{}", "599 Odd")),
        "status 600": saying(whole(b"{}", "600 Odd")),
        "status 099": saying(whole(b"{}", "099 Odd")),
        "a redirect": saying(whole(b"", "302 Found\r\nlocation: http://127.0.0.1:1/")),
        "nothing": saying(whole(b"")),
        "no json": saying(whole(b"noon")),
        "deep json": saying(whole(b"[" * 100_000)),
        "deep usage": saying(whole(_GOOD.replace(b"9,", b"[" * 50_000 + b",", 1))),
        "a list": saying(whole(b"[]")),
        "text counts": saying(whole(_GOOD.replace(b'"prompt_tokens": 9', b'"prompt_tokens": "nine"'))),
        "huge counts": saying(whole(_GOOD.replace(b'"prompt_tokens": 9', b'"prompt_tokens": ' + b"9" * 400))),
        "negative counts": saying(whole(_GOOD.replace(b'"prompt_tokens": 9', b'"prompt_tokens": -9'))),
        "too short": saying(head + b"content-length: 1000\r\n\r\n" + _GOOD, b""),
        "two lengths": saying(head + b"content-length: 5\r\ncontent-length: 9\r\n\r\n" + _GOOD),
        "a bad chunk": saying(head + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + _GOOD),
        "not http": saying(b"SSH-2.0-OpenSSH\r\n"),
        "no header's end": saying(head),
    }
    wrong = []
    for name, act in acts.items():
        answer, _ = await _turn(ground, _then_closing(act))
        says = str(answer.error.get("code", ""))
        if answer.status == 500 or says == "internal_error" or answer.status < 200:
            wrong.append(f"{name}: {answer.status} {says}")
    expect(not wrong, "; ".join(wrong))


def _then_closing(act: Act) -> Act:
    async def acting(heard: Heard, writer: asyncio.StreamWriter) -> None:
        await act(heard, writer)
        writer.close()

    return acting


async def streams_that_stop(ground: Ground) -> None:
    """Streams without their end: an error to the client, and failed in the books."""
    events = chat_events()
    cut = {
        "after the opening": events[:1],
        "after a token": events[:2],
        "within an event": [*events[:1], events[1][:20]],
    }
    for name, kept in cut.items():
        for ending in (STREAM_END, b""):
            said = [STREAM_HEAD, *map(chunk, kept), ending]
            answer, outcome = await _turn(ground, _then_closing(saying(*said)), stream=True)
            is_told = answer.status >= 500 or b'"error"' in answer.body
            expect(is_told, f"{name}: the client was told {answer.status} {answer.body[-200:]!r}")
            expect(outcome == "failed", f"{name}: {outcome} in the books")
            expect(b"[DONE]" not in answer.body, f"{name}: the client was told that it is done")


async def streams_in_other_frames(ground: Ground) -> None:
    """Events that end in CRLF: passed on as they come, with their usage read."""
    events = [event.replace(b"\n", b"\r\n") for event in chat_events()]
    answer, outcome = await _turn(ground, saying(STREAM_HEAD, *map(chunk, events), STREAM_END), stream=True)
    expect(answer.status == 200 and b"noon" in answer.body, f"{answer.status} {answer.body[:200]!r}")
    expect(outcome == "completed", f"{outcome} in the books")
    expect(b'"usage": {' not in answer.body, "usage that nobody asked for went to the client")


async def bytes_after_an_answer(ground: Ground) -> None:
    """Another answer behind the first one: it is nobody's answer."""
    secret = whole(json.dumps(chat_answer("another's secret")).encode())
    for first in (whole(_GOOD), STREAM_HEAD + b"".join(map(chunk, chat_events())) + STREAM_END):
        is_streamed = first.startswith(STREAM_HEAD)
        await _turn(ground, saying(first + secret), stream=is_streamed)
        for _ in range(4):
            answer, _ = await _turn(ground, honest)
            expect(b"secret" not in answer.body, "a client got bytes that were another's")


async def floods_before_an_answer(ground: Ground) -> None:
    """Interim responses, headers, events and chunk sizes without end: bounded, that engine's failure."""
    floods = {
        "interim responses": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "headers": (b"HTTP/1.1 200 OK\r\n", b"x-flood: " + b"a" * 4000 + b"\r\n"),
        "a header": (b"HTTP/1.1 200 OK\r\nx: ", b"a" * 8000),
        "small headers": (b"HTTP/1.1 200 OK\r\n", b"a:b\r\n" * 1000),
        "an event": (STREAM_HEAD, chunk(b"data: " + b"a" * 60_000)),
        "a chunk's size": (STREAM_HEAD, b"0" * 8000),
        "trailers": (STREAM_HEAD + chunk(chat_events()[0]) + b"0\r\n", b"x: " + b"a" * 8000 + b"\r\n"),
    }
    for name, (beginning, piece) in floods.items():
        said = [0]
        answer, outcome = await _turn(ground, _flooding(beginning, piece, said), stream=True)
        expect(said[0] < 60_000_000, f"{name}: {said[0]:,} bytes were taken")
        is_told = answer.status >= 500 or b'"error"' in answer.body or outcome == "completed"
        expect(is_told and answer.status != 500, f"{name}: {answer.status} {answer.body[-200:]!r}")


def _flooding(beginning: bytes, piece: bytes, said: list[int]) -> Act:
    async def act(_heard: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write(beginning)
        try:
            while said[0] < 64_000_000:
                writer.write(piece)
                await writer.drain()
                said[0] += len(piece)
                await asyncio.sleep(0)
        except ConnectionError:
            return
        finally:
            writer.transport.abort()

    return act


async def completed_is_completed(ground: Ground) -> None:
    """Clients that close once they have read `[DONE]`, before the engine's end is seen: completed turns."""
    ground.rogues[0].act = _late_end
    outcomes = []
    for number in range(20):
        name = f"read-whole-{number}"
        async with wire(ground.port) as connection:
            await connection.say(ground.turn(name, stream=True))
            await connection.read_until(b"[DONE]")
            connection.hang_up()
        await asyncio.sleep(0.15)
        report = await ground.report(name)
        outcomes.append(report["turns"][-1]["outcome"])
        await ground.release(name)
    expect(set(outcomes) == {"completed"}, f"{outcomes.count('completed')} of 20 are completed: {outcomes}")


async def _late_end(_heard: Heard, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + b"".join(map(chunk, chat_events())))
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.write(STREAM_END)
    await writer.drain()


async def refusals_keep_their_words(ground: Ground) -> None:
    """vLLM's refusal of a first turn: its message, type, param and code reach the client."""
    error = {"message": "too long by 3", "type": "BadRequestError", "param": "input_tokens", "code": 400}
    refusal = whole(json.dumps({"error": error}).encode(), "400 Bad Request")
    answer, _ = await _turn(ground, saying(refusal))
    same = {name: answer.error.get(name) for name in ("type", "param", "code")}
    expect(answer.status == 400 and "too long by 3" in str(answer.error), f"{answer}")
    expect(same == {name: error[name] for name in same}, f"the client got {same}")


async def logs_of_an_engines_words(ground: Ground) -> None:
    """An engine's message with escapes and line breaks: one line in the log, without them."""
    words = "\x1b[31mred\n2026-01-01 root: all keys were sent\r\x07"
    body = json.dumps({"error": {"message": words}}).encode()
    await _turn(ground, saying(whole(body, "503 Service Unavailable")))
    log = ground.log.read_bytes()
    expect(b"\x1b[31m" not in log and b"\x07" not in log, "the log has an engine's escapes")
    expect(b"\n2026-01-01 root" not in log, "an engine wrote a line of the log")


async def a_prompt_that_kills(ground: Ground) -> None:
    """A prompt at which an engine exits: two engines at most are lost, then it is refused by name."""
    poison = ground.turn("poison", "the prompt that kills its engine")
    for engine in ground.engines:
        await ground.fault(engine, kind="die", text="that kills its engine")
    statuses = []
    for _ in range(4):
        async with wire(ground.port) as connection:
            await connection.say(poison)
            answer = await connection.read_answer()
            statuses.append((answer.status, answer.headers.get("x-should-retry")))
    alive = [engine for engine in ground.engines if engine.runs]
    lost = len(ground.engines) - len(alive)
    for engine in ground.engines:
        if not engine.runs:
            engine.start()
    await ground.ready()
    expect(lost <= 2, f"{lost} of {len(ground.engines)} engines were lost ({statuses})")
    expect(statuses[-1][1] == "false" and 400 <= statuses[-1][0] < 600, f"the client was told {statuses}")


CASES: tuple[Case, ...] = (
    *cases(ROGUE, models_that_are_none, plugins_that_are_none, pages_that_are_none),
    *cases(
        ALONE,
        answers_that_are_none,
        streams_that_stop,
        streams_in_other_frames,
        bytes_after_an_answer,
        floods_before_an_answer,
        completed_is_completed,
        refusals_keep_their_words,
        logs_of_an_engines_words,
    ),
    *cases(POOL, a_prompt_that_kills),
)
