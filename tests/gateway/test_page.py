"""The live page in a real browser: it shows what happens, by itself, and nothing that it shows can act."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Page, expect

from conserve_server.engines.emulated import Fault
from conserve_server.engines.engine import Role
from tests.browser import browser

from .conftest import MODEL, Serve, Served, engine_config

TEXT = "the ferry sails fourteen times a day and carries two hundred passengers " * 8
HOSTILE = "<img src=x onerror=document.title='taken'>"


@asynccontextmanager
async def opened(
    gateway: Served, *, width: int = 1600, scheme: str = "light"
) -> AsyncIterator[tuple[Page, list[str]]]:
    """The page, and what its console said that is wrong."""
    wrong: list[str] = []
    async with browser() as found:
        dark = "dark" if scheme == "dark" else "light"
        page = await found.new_page(viewport={"width": width, "height": 900}, color_scheme=dark)  # type: ignore[arg-type]
        page.on(
            "console",
            lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: wrong.append(str(error)))
        await page.goto(f"{gateway.url}/ui")
        yield page, wrong


async def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    found: int = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    return found


async def test_the_page_and_its_files_let_nothing_else_in(gateway: Served) -> None:
    for path in ("/ui", "/ui/page.css", "/ui/page.js"):
        answer = await gateway.client.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "innerHTML" not in answer.text
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1600, "light"), (360, "dark")])
async def test_conversations_appear_and_grow_without_a_reload(
    gateway: Served, width: int, scheme: str
) -> None:
    await gateway.ask("before", TEXT)
    async with opened(gateway, width=width, scheme=scheme) as (page, wrong):
        await expect(page.locator("#lanes li")).to_have_count(1)
        await gateway.ask("after", TEXT, stream=True)
        await gateway.ask("after", TEXT)
        lane = page.locator("#lanes li").filter(has_text="after")
        await expect(lane).to_contain_text("2 turns")
        await expect(lane).to_contain_text("tool-gap")
        for kind in ("prefill", "transfer", "decode", "gap"):
            assert await lane.locator(f"svg .{kind}").count() > 0, kind
        await expect(page.locator(".engine")).to_have_count(3)
        await expect(page.locator("#link")).to_have_text("live")
        await expect(page.locator("#total-live")).to_have_text("2")
        await gateway.client.delete("/v1/conversations/after")
        await expect(lane).to_contain_text("ended")
        assert await overflow(page) == 0
        assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "capacity_share"), [("conserve", 1.0), ("conserve_plus", 0.5)])
async def test_a_budget_larger_than_the_kv_is_inside_the_bar(
    serve: Serve, policy: str, capacity_share: float
) -> None:
    async with serve(scheduler={"policy": policy}) as gateway, opened(gateway) as (page, wrong):
        bar = page.locator(".engine").filter(has_text="decode-0").locator(".kv")
        whole, mark = await bar.bounding_box(), await bar.locator(".budget").bounding_box()
        assert whole is not None
        assert mark is not None
        assert whole["x"] < mark["x"] <= whole["x"] + whole["width"] - mark["width"]
        beyond = await bar.locator(".beyond").bounding_box() if capacity_share < 1 else None
        ends = whole["x"] + whole["width"] if beyond is None else beyond["x"]
        assert (ends - whole["x"]) / whole["width"] == pytest.approx(capacity_share, abs=0.01)
        assert wrong == []


@pytest.mark.slow
async def test_a_conversation_of_branches_alone_says_so(gateway: Served) -> None:
    async with opened(gateway) as (page, wrong):
        for name in ("one", "two"):
            body = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
            headers = {"x-conserve-conversation-id": "team", "x-conserve-branch": name}
            await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
        lane = page.locator("#lanes li").filter(has=page.get_by_text("team", exact=True))
        await expect(lane).to_contain_text("in 2 branches")
        assert wrong == []


@pytest.mark.slow
async def test_the_keyboard_opens_a_conversation_and_leaves_it(gateway: Served) -> None:
    for name in ("first", "second"):
        await gateway.ask(name, TEXT)
    async with opened(gateway, width=360) as (page, wrong):
        await page.locator("#lanes button").first.focus()
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Enter")
        await expect(page.locator("#detail")).to_be_visible()
        await expect(page.locator("#detail-title")).to_have_text("first")
        await expect(page.locator("#turns tr")).to_have_count(1)
        await expect(page.locator("#turns tr")).to_contain_text("remote-prefill")
        assert await overflow(page) == 0
        await gateway.ask("first", TEXT)
        await expect(page.locator("#turns tr")).to_have_count(2)
        await page.keyboard.press("Escape")
        await expect(page.locator("#detail")).to_be_hidden()
        assert wrong == []


@pytest.mark.slow
async def test_an_identifier_is_text_whatever_it_says(gateway: Served) -> None:
    headers = {"x-conserve-conversation-id": HOSTILE, "x-conserve-agent": HOSTILE}
    body = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
    await gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    async with opened(gateway) as (page, wrong):
        await expect(page.locator("#lanes b")).to_have_text(HOSTILE)
        await page.locator("#lanes button").click()
        await expect(page.locator("#detail-title")).to_have_text(HOSTILE)
        assert (await page.title(), await page.locator("img").count(), wrong) == ("ConServe", 0, [])


@pytest.mark.slow
async def test_the_admin_key_is_asked_for_and_kept_in_the_tab(serve: Serve) -> None:
    async with serve(admin_key="key-admin") as gateway:
        await gateway.ask("a", TEXT)
        async with opened(gateway) as (page, _):
            await expect(page.locator("#login")).to_be_visible()
            assert await page.locator("#lanes li").count() == 0
            for key in ("key-wrong", "key-admin"):
                await expect(page.locator("#login")).to_be_visible()
                await page.locator("#key").fill(key)
                await page.keyboard.press("Enter")
            await expect(page.locator("#lanes li")).to_have_count(1)
            await page.reload()
            await expect(page.locator("#lanes li")).to_have_count(1)


@pytest.mark.slow
async def test_a_running_turn_grows_and_a_pause_holds_the_picture(serve: Serve) -> None:
    slow = [engine_config(Role.DECODE, "decode-0", faults=(Fault("slow", delay_s=0.2),))]
    async with serve(decode=slow) as gateway:
        asking = asyncio.create_task(gateway.ask("a", TEXT, stream=True, max_tokens=200))
        async with opened(gateway) as (page, wrong):
            await expect(page.locator("#total-running")).to_have_text("1")
            await expect(page.locator("#lanes .state")).to_have_text("active")
            await page.locator("#pause").click()
            await gateway.ask("b", TEXT)
            await expect(page.locator("#pause")).to_have_text("Go on")
            await expect(page.locator("#lanes li")).to_have_count(1)
            await page.locator("#pause").click()
            await expect(page.locator("#lanes li")).to_have_count(2)
            assert wrong == []
        asking.cancel()
