"""What an operator does in a hurry: reloads, wrong files, keys in the wrong place."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from pathlib import Path

from bench.attack.case import Case, cases, expect
from bench.attack.ground import KEYS, Ground, Setup

LOCAL = Setup(prefill=1, decode=2, is_local=True)
KEYED = Setup(has_tenants=True)
SECRET = "s3cr3t-in-a-url"  # noqa: S105 - what must not be shown


async def _reload(ground: Ground) -> tuple[int, str]:
    return await ground.post("/v1/reload", {}, admin=True)


async def _up(ground: Ground) -> list[str]:
    document = await ground.get("/health", admin=True)
    return sorted(engine["name"] for engine in document["engines"] if engine["up"])


async def an_unchanged_file_is_read_again(ground: Ground) -> None:
    """A reload and a SIGHUP with nothing changed, over local engines: nothing happens."""
    before = await _up(ground)
    await ground.ask("stays", "Where is the ferry?")
    for _ in range(2):
        status, text = await _reload(ground)
        expect(status == 200, f"answered with {status}: {text}")
        ground.gateway.send(signal.SIGHUP)
        await asyncio.sleep(0.5)
    expect(await _up(ground) == before, f"{before} became {await _up(ground)}")
    answer = await ground.ask("stays", "And now?")
    expect(answer.headers.get("x-conserve-path") == "pinned", f"{answer.status} {dict(answer.headers)}")
    await ground.release("stays")


async def a_broken_file_is_read(ground: Ground) -> None:
    """Files that are no configuration: refused with their fault, and nothing changes."""
    good = ground.config.read_text()
    before = await _up(ground)
    for text in (
        "",
        "[[[",
        "\x00",
        "[pools.decode]\nengines = []",
        good.replace("http://", "ftp://"),
        "a = 1",
    ):
        ground.config.write_text(text)
        status, said = await _reload(ground)
        expect(400 <= status < 500 and '"message"' in said, f"{text[:20]!r} answered with {status}: {said}")
        ground.gateway.send(signal.SIGHUP)
        await asyncio.sleep(0.3)
    ground.config.unlink()
    status, said = await _reload(ground)
    ground.config.write_text(good)
    expect(400 <= status < 500, f"a missing file was answered with {status}: {said}")
    expect(await _up(ground) == before, "engines left")


async def engines_change_places(ground: Ground) -> None:
    """The list of engines in another order: nobody is renamed, nobody moves."""
    answer = await ground.ask("settled", tenant="alpha")
    decoder = answer.headers.get("x-conserve-decoder")
    good = ground.config.read_text()
    urls = [engine.url for engine in ground.engines[ground.setup.prefill :]]
    ground.config.write_text(good.replace(json.dumps(urls), json.dumps(urls[::-1])))
    status, text = await _reload(ground)
    expect(status == 200, f"answered with {status}: {text}")
    later = await ground.ask("settled", "And now?", tenant="alpha")
    found = (later.headers.get("x-conserve-decoder"), later.headers.get("x-conserve-path"))
    expect(found == (decoder, "pinned"), f"{decoder} became {found}")
    ground.config.write_text(good)
    await _reload(ground)
    await ground.release("settled", tenant="alpha")


async def keys_are_rotated(ground: Ground) -> None:
    """A key is added and the old one revoked by a reload; conversations go on."""
    good = ground.config.read_text()
    await ground.ask("rotated", tenant="alpha")
    ground.config.write_text(good.replace(KEYS["alpha"], "alpha-new-key"))
    status, text = await _reload(ground)
    expect(status == 200, f"answered with {status}: {text}")
    old = await ground.ask("rotated", "Old?", tenant="alpha")
    new = await ground.ask("rotated", "New?", headers={"authorization": "Bearer alpha-new-key"})
    ground.config.write_text(good)
    await _reload(ground)
    expect(old.status == 401, f"the revoked key was answered with {old.status}")
    expect(new.headers.get("x-conserve-path") == "pinned", f"the new key: {new.status} {dict(new.headers)}")
    await ground.release("rotated", tenant="alpha")


async def an_engine_that_never_came(ground: Ground) -> None:
    """A listed engine that nobody serves: /health says why."""
    good = ground.config.read_text()
    urls = json.dumps([engine.url for engine in ground.engines[ground.setup.prefill :]])
    more = urls.replace("]", ', "http://127.0.0.1:9"]')
    ground.config.write_text(good.replace(urls, more))
    await _reload(ground)
    await asyncio.sleep(1.5)
    document = await ground.get("/health", admin=True)
    ground.config.write_text(good)
    await _reload(ground)
    (down,) = [engine for engine in document["engines"] if not engine["up"]]
    expect("refused" in json.dumps(down).lower(), f"/health says {down}")


async def a_password_in_an_address(ground: Ground) -> None:
    """An engine's address with a user and a password: in no page, log or answer."""
    good = ground.config.read_text()
    first = ground.engines[ground.setup.prefill].url
    ground.config.write_text(good.replace(first, first.replace("http://", f"http://user:{SECRET}@")))
    _, said = await _reload(ground)
    await asyncio.sleep(1.0)
    pages = [await ground.page(path) for path in ("/health", "/metrics", "/v1/engines")]
    ground.config.write_text(good)
    _, later = await _reload(ground)
    shown = [name for name, text in zip("hme", pages, strict=True) if SECRET in text]
    expect(SECRET not in said + later and not shown, f"shown in an answer or page {shown}")
    expect(SECRET not in ground.log.read_text(), "shown in the log")


async def files_of_traces(ground: Ground) -> None:
    """What is written of conversations: nobody else on the machine can read it."""
    await ground.ask("traced", tenant="alpha")
    await ground.release("traced", tenant="alpha")
    await asyncio.sleep(1.5)
    found = [path for path in Path(ground.config).parent.rglob("*") if path.suffix == ".jsonl"]
    expect(bool(found), "no trace was written")
    readable = [path.name for path in found if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)]
    expect(not readable, f"readable by others: {readable[:3]}")


async def a_stop_within_turns(ground: Ground) -> None:
    """SIGTERM while turns run: each is answered to its end, and the spans are there."""
    turns = [asyncio.create_task(ground.ask(f"last-{n}", tenant="beta", max_tokens=100)) for n in range(8)]
    await asyncio.sleep(0.3)
    ground.gateway.send(signal.SIGTERM)
    answers = await asyncio.gather(*turns, return_exceptions=True)
    wrong = [a for a in answers if isinstance(a, BaseException) or a.status not in (200, 503)]
    ground.gateway.restart()
    await ground.ready()
    expect(not wrong, f"{len(wrong)} of 8 were cut: {wrong[:2]}")


CASES: tuple[Case, ...] = (
    *cases(LOCAL, an_unchanged_file_is_read_again),
    *cases(
        KEYED,
        a_broken_file_is_read,
        engines_change_places,
        keys_are_rotated,
        an_engine_that_never_came,
        a_password_in_an_address,
        files_of_traces,
        a_stop_within_turns,
    ),
)
