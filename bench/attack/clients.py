"""What a client can put into a request: bodies, texts, names and numbers of things."""

from __future__ import annotations

import asyncio
import gzip
import json
from contextlib import AsyncExitStack

from bench.attack.case import Case, cases, expect
from bench.attack.ground import Ground, Setup
from bench.attack.raw import RawAnswer, ask, request, wire

OPEN = Setup(gateway={"body_timeout_s": 5.0})
_CHAT = "/v1/chat/completions"


async def _send(ground: Ground, body: bytes, path: str = _CHAT, **headers: str) -> RawAnswer:
    named = {"x-conserve-conversation-id": "client", **headers}
    return await ask(ground.port, request(path, body, headers=named))


def _begin(ground: Ground) -> bytes:
    """The beginning of a body, after which more fields may come."""
    return b'{"model":"%b"' % ground.model.encode()


def _is_refused(answer: RawAnswer) -> bool:
    return 400 <= answer.status < 500 and bool(answer.error.get("message"))


async def _meanwhile(ground: Ground, body: bytes, **headers: str) -> RawAnswer:
    """The answer to a heavy body; others must be served while it is looked at."""
    heavy = asyncio.create_task(ask(ground.port, request(_CHAT, body, headers=headers)))
    await asyncio.sleep(0.2)
    async with asyncio.timeout(5):
        await ground.get("/health")
    return await heavy


async def millions_of_messages(ground: Ground) -> None:
    """Thirty megabytes of tiny messages, from a client that names no conversation."""
    message = b'{"role":"user","content":"a"}'
    body = _begin(ground) + b',"max_tokens":4,"messages":[' + b",".join([message] * 1_000_000) + b"]}"
    answer = await _meanwhile(ground, body)
    expect(_is_refused(answer), f"answered with {answer.status}: {answer.body[:200]!r}")


async def millions_of_keys(ground: Ground) -> None:
    """An object of a million fields, at the top, in the metadata and in a message."""
    fields = b",".join(b'"k%d":1' % i for i in range(1_000_000))
    messages = b'"messages":[{"role":"user","content":"a"}]'
    bodies = (
        _begin(ground) + b',"max_tokens":4,' + messages + b"," + fields + b"}",
        _begin(ground) + b',"max_tokens":4,' + messages + b',"metadata":{' + fields + b"}}",
        _begin(ground) + b',"max_tokens":4,"messages":[{"role":"user","content":"a",' + fields + b"}]}",
    )
    for body in bodies:
        answer = await _meanwhile(ground, body)
        expect(answer.status < 500, f"answered with {answer.status}: {answer.body[:200]!r}")


async def deep_nesting(ground: Ground) -> None:
    """A hundred thousand brackets, in each place that somebody reads."""
    deep = "[" * 100_000 + "]" * 100_000
    for field in ("messages", "metadata", "stream_options", "vllm_xargs", "model", "conversation", "other"):
        fields = {"model": '"attacked"', "messages": '[{"role":"user","content":"a"}]', field: deep}
        body = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + ',"max_tokens":4}'
        answer = await ask(ground.port, request(_CHAT, body.encode()))
        expect(answer.status < 500, f"{field}: answered with {answer.status}: {answer.body[:200]!r}")


async def texts_that_are_none(ground: Ground) -> None:
    """Bodies that are not UTF-8, not JSON, not objects, or packed: 4xx, and true ones."""
    chat = _begin(ground) + b',"max_tokens":4,"messages":[{"role":"user","content":"%b"}]}'
    answer = await _send(ground, chat % b"\xff\xfe")
    expect(answer.status == 400 and "utf-8" in str(answer.error["message"]).lower(), f"{answer}")
    for body in (b"", b"[]", b"null", b"{", b"1" * 5000, b"\x00", b'{"model":1}', chat % b'"'):
        answer = await _send(ground, body)
        expect(_is_refused(answer), f"{body[:40]!r} answered with {answer.status}")
    for coding in ("gzip", "deflate", "br", "zstd"):
        answer = await _send(ground, gzip.compress(chat % b"a"), **{"content-encoding": coding})
        expect(answer.status == 415, f"a {coding} body was answered with {answer.status}")


async def lone_surrogates(ground: Ground) -> None:
    r"""Half of a character (`\ud800`) in a text: served, or refused with its true name."""
    body = _begin(ground) + b',"max_tokens":4,"messages":[{"role":"user","content":"\\ud800"}]}'
    for headers in ({}, {"x-conserve-conversation-id": "surrogate"}):
        answer = await ask(ground.port, request(_CHAT, body, headers=headers))
        message = str(answer.error.get("message", ""))
        expect(answer.status in (200, 400), f"answered with {answer.status}: {message}")
        expect("truncated" not in message, f"called {message!r}")


async def endless_names_of_tools(ground: Ground) -> None:
    """Tool events with endless names and without end: cut or refused, few are kept."""
    await ground.ask("tools")
    for number in range(60):
        event = {
            "kind": "start",
            "name": f"{number}" + "n" * 400_000,
            "call_id": f"{number}-" + "i" * 400_000,
        }
        await ground.post("/v1/conversations/tools/events", {"events": [event]})
    for number in range(60):
        events = [
            {"kind": "start", "name": f"t-{number}-{n}", "call_id": f"{number}-{n}"} for n in range(1000)
        ]
        await ground.post("/v1/conversations/tools/events", {"events": events})
    kept = len(json.dumps(await ground.report("tools")))
    expect(kept < 4_000_000, f"the report has {kept:,} bytes")
    await ground.release("tools")


async def endless_names_of_models(ground: Ground) -> None:
    """Models with megabyte names, agents and conversations with long ones: none is kept whole."""
    for number in range(40):
        name = f"{number}-" + "m" * 1_000_000
        answer = await ground.ask(f"model-{number}", model=name)
        expect(_is_refused(answer), f"answered with {answer.status}")
        expect(len(answer.body) < 20_000, f"the error has {len(answer.body):,} bytes")
    size = len(await ground.page("/metrics"))
    expect(size < 500_000, f"/metrics has {size:,} bytes")


async def ids_in_any_script(ground: Ground) -> None:
    """Two conversations whose ids differ in Chinese only: two conversations, shown as they were given."""
    for name in ("客户-1", "顧客-1"):
        answer = await ask(
            ground.port,
            ground.turn(None, headers={"x-conserve-conversation-id": name.encode().decode("latin-1")}),
        )
        expect(answer.status == 200, f"answered with {answer.status}")
        turn = answer.headers.get("x-conserve-turn")
        expect(turn == "1", f"{name} was at turn {turn}: taken for another")
    found = json.dumps(await ground.get("/v1/conversations?limit=20"), ensure_ascii=False)
    expect("客户-1" in found and "顧客-1" in found, "the ids are not shown as they were given")


async def another_host(ground: Ground) -> None:
    """A web page that had its name resolve to this machine: a keyless gateway serves only its own names."""
    body = _begin(ground) + b',"max_tokens":4,"messages":[{"role":"user","content":"a"}]}'
    for path, method in (
        (_CHAT, "POST"),
        ("/v1/conversations", "GET"),
        ("/v1/events", "GET"),
        ("/ui", "GET"),
    ):
        answer = await ask(
            ground.port, request(path, body if method == "POST" else b"", method=method, host="evil.example")
        )
        expect(answer.status in (400, 403, 421), f"{path}: answered with {answer.status}")
    local = await ask(ground.port, request("/health", method="GET", host=f"localhost:{ground.port}"))
    expect(local.status == 200, f"localhost was answered with {local.status}")


async def answers_are_not_sniffed(ground: Ground) -> None:
    """Every answer says that its type is its type."""
    answers = [await ground.ask("sniff"), await ground.ask("sniff", model="none")]
    answers += [
        await ask(ground.port, request(path, method="GET"))
        for path in ("/health", "/v1/models", "/nowhere", "/ui")
    ]
    for answer in answers:
        expect(
            answer.headers.get("x-content-type-options") == "nosniff", f"{answer.status}: {answer.headers}"
        )


async def crowds_of_watchers(ground: Ground) -> None:
    """Three hundred watchers of the live events: beyond a limit they are refused, at once."""
    statuses = []
    async with AsyncExitStack() as stack:
        for _ in range(300):
            watcher = await stack.enter_async_context(wire(ground.port))
            await watcher.say(request("/v1/events", method="GET", headers=ground.auth(admin=True)))
            head = await watcher.read_until(b"\r\n\r\n")
            statuses.append(int(head.split(b" ")[1]))
    refused = sum(status in (429, 503) for status in statuses)
    expect(refused > 0, f"all of {len(statuses)} were let in")


async def clients_that_leave(ground: Ground) -> None:
    """A hundred clients that hang up somewhere within their turns: nothing stays reserved for them."""
    leavers = [f"leaver-{number}" for number in range(100)]
    before = await _reserved_kv_tokens(ground)  # by conversations of the cases before this one

    async def leave(name: str, after_s: float) -> None:
        async with wire(ground.port) as connection:
            await connection.say(ground.turn(name, stream=True, max_tokens=400))
            await asyncio.sleep(after_s)
            connection.hang_up()
        await ground.release(name)

    await asyncio.gather(*(leave(name, 0.01 * (number % 40)) for number, name in enumerate(leavers)))
    await asyncio.sleep(1)
    for name in leavers:  # a turn that was read after its conversation's release began the conversation anew
        await ground.release(name)
    left = await _reserved_kv_tokens(ground) - before
    expect(left <= 0, f"{left:g} KV tokens are still reserved")


async def _reserved_kv_tokens(ground: Ground) -> float:
    page = await ground.page("/metrics")
    rows = [row for row in page.splitlines() if row.startswith("conserve_reserved_kv_tokens{")]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


async def fields_in_lax_forms(ground: Ground) -> None:
    """What vLLM takes, the gateway takes: flags as texts and numbers, no model where there is one."""
    message = [{"role": "user", "content": "a"}]
    for fields in ({"stream": "false"}, {"stream": 0}, {"stream": "true"}, {"stream": None}):
        body = {"model": ground.model, "messages": message, "max_tokens": 4, **fields}
        answer = await ask(ground.port, request(_CHAT, json.dumps(body).encode()))
        expect(answer.status == 200, f"{fields} answered with {answer.status}: {answer.body[:200]!r}")
    answer = await ask(
        ground.port, request(_CHAT, json.dumps({"messages": message, "max_tokens": 4}).encode())
    )
    expect(answer.status == 200, f"without a model: {answer.status}: {answer.body[:200]!r}")


async def several_prompts(ground: Ground) -> None:
    """Several prompts in one completion: no KV that belongs to one of them is used for all."""
    for prompt in (["the ferry", "a harbour"], [[1, 2, 3], [4, 5]]):
        answer = await ground.ask(f"several-{len(prompt[0])}", path="/v1/completions", prompt=prompt)
        path = answer.headers.get("x-conserve-path")  # an emulated engine takes one prompt, and refuses it
        expect(path == "local-prefill", f"served by {path}: {answer.body[:200]!r}")


async def a_large_picture(ground: Ground) -> None:
    """A picture of a megabyte: an item, not hundreds of thousands of tokens."""
    url = "data:image/png;base64," + "iVBORw0KGgo" * 100_000
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    answer = await ground.ask("picture", messages=[{"role": "user", "content": content}])
    expect(answer.status != 503, "it waited for room that it does not need")


async def models_are_listed_whole(ground: Ground) -> None:
    """`/v1/models` and its entries, tokenizing and its reverse: as vLLM has them."""
    found = await ground.get("/v1/models")
    entry = found["data"][0]
    expect({"created", "root", "parent", "id", "object"} <= entry.keys(), f"an entry has {sorted(entry)}")
    one = await ask(ground.port, request(f"/v1/models/{ground.model}", method="GET"))
    expect(one.status == 200, f"/v1/models/{ground.model} answered with {one.status}")
    for path in ("/tokenize", "/detokenize"):
        answer = await ask(ground.port, request(path, b"{}"))
        message = str(answer.error.get("message", ""))
        expect("lists what this gateway serves" not in message, f"{path} is not there")


CASES: tuple[Case, ...] = (
    *cases(
        OPEN, millions_of_messages, millions_of_keys, deep_nesting, on_real=True, growth_bytes=400_000_000
    ),
    *cases(
        OPEN,
        texts_that_are_none,
        lone_surrogates,
        endless_names_of_tools,
        endless_names_of_models,
        ids_in_any_script,
        another_host,
        answers_are_not_sniffed,
        crowds_of_watchers,
        clients_that_leave,
        fields_in_lax_forms,
        several_prompts,
        a_large_picture,
        models_are_listed_whole,
        on_real=True,
    ),
)
