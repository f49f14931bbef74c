"""What one tenant can do to another, or to the engines that both share."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from bench.attack.case import cases, expect
from bench.attack.ground import Ground, Setup
from bench.attack.raw import ask, request

SHARED = Setup(has_tenants=True)
HEARD = Setup(prefill=0, decode=1, rogues=1, has_tenants=True, extra="[kv]\n")
"""One decoder notes what reaches it."""
SMALL = Setup(
    prefill=0, decode=2, has_tenants=True, kv_blocks=100, gateway={"max_wait_s": 15.0, "yield_after_s": 2.0}
)
"""Two decoders of 3,200 tokens each."""
_APIS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


async def _heard(ground: Ground, name: str, **turn: Any) -> dict[str, Any]:
    """The body of this turn as the engine had it."""
    rogue = ground.rogues[0]
    before = len(rogue.heard)
    await ground.ask(name, **turn)
    expect(len(rogue.heard) > before, "the turn went to another engine")
    return rogue.heard[-1].document


async def names_that_are_the_gateways(ground: Ground) -> None:
    """Ids, sessions, addresses and ranks in a body: none of a client's reaches an engine."""
    given = {
        "request_id": "stolen",
        "session_id": "stolen",
        "kv_transfer_params": {"remote_host": "stolen"},
        "ec_transfer_params": {"remote_host": "stolen"},
        "priority": -100_000,
        "cache_salt": "stolen",
        "bootstrap_host": "stolen",
        "data_parallel_rank": 3,
    }
    for path in _APIS:
        for turn in range(2):
            found = await _heard(ground, f"names{path}", path=path, tenant="alpha", **given)
            same = sorted(name for name, value in given.items() if found.get(name) == value)
            expect(not same, f"{path}, turn {turn + 1}: {', '.join(same)} reached the engine")


async def addresses_in_extra_arguments(ground: Ground) -> None:
    """Transfer parameters in `vllm_xargs`: refused or dropped, in every interface."""
    for path in _APIS:
        for name in ("kv_transfer_params", "ec_transfer_params"):
            answer = await ground.ask(None, path=path, tenant="alpha", vllm_xargs={name: "stolen"})
            reached = any(b"stolen" in heard.body for heard in ground.rogues[0].heard)
            expect(not reached, f"{path}: {name} reached the engine ({answer.status})")


async def caches_apart(ground: Ground) -> None:
    """Two tenants with one prompt: each has its own salt, the same in every turn."""
    salts = {}
    for tenant in ("alpha", "beta"):
        found = [(await _heard(ground, f"salt-{tenant}", tenant=tenant)).get("cache_salt") for _ in range(2)]
        expect(found[0] is not None and found[0] == found[1], f"{tenant}'s salts are {found}")
        salts[tenant] = found[0]
    expect(salts["alpha"] != salts["beta"], "both tenants have one salt")
    chosen = (await _heard(ground, "salt-own", tenant="beta", cache_salt=salts["alpha"])).get("cache_salt")
    expect(chosen != salts["alpha"], "a client chose another tenant's salt")


async def cached_tokens_of_others(ground: Ground) -> None:
    """The prompt that another tenant sent: the answer does not tell that it was there."""
    secret = "The harbour's secret is forty-two, and nobody but us may know of it. " * 30
    await ground.ask("owner", secret, tenant="alpha")
    answer = await ground.ask("guesser", secret, tenant="beta")
    usage = json.loads(answer.body)["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    expect(cached == 0, f"{cached} tokens of another tenant's prompt were cached")


async def responses_of_others(ground: Ground) -> None:
    """A stored response read, cancelled, gone on from and overwritten by another tenant."""
    first = await ground.ask(None, path="/v1/responses", tenant="alpha", store=True)
    expect(first.status == 200, f"answered with {first.status}")
    known = json.loads(first.body)["id"]
    chosen = await ground.ask(None, path="/v1/responses", tenant="beta", request_id=known, store=True)
    expect(chosen.status != 200 or json.loads(chosen.body)["id"] != known, "beta chose alpha's id")
    for method, path in (("GET", ""), ("POST", "/cancel")):
        data = request(f"/v1/responses/{known}{path}", method=method, headers=ground.auth("beta"))
        answer = await ask(ground.port, data)
        expect(answer.status == 404, f"{method} {path} was answered with {answer.status}")
    going_on = await ground.ask(None, path="/v1/responses", tenant="beta", previous_response_id=known)
    expect(going_on.status == 404, f"going on was answered with {going_on.status}")


async def conversations_of_others(ground: Ground) -> None:
    """A conversation read, released and told of by another tenant."""
    await ground.ask("private", tenant="alpha")
    read = await ground.post("/v1/conversations/private/events", {"events": []}, tenant="beta")
    expect(await ground.release("private", tenant="beta") == 404, "beta released alpha's conversation")
    report = await ground.report("private", tenant="beta")
    expect("turns" not in report, "beta read alpha's conversation")
    answer = await ground.ask("private", "And then?", tenant="alpha")
    expect(answer.headers.get("x-conserve-path") == "pinned", f"alpha lost its place ({read})")


async def doors_of_the_administrator(ground: Ground) -> None:
    """The administrator's routes with a tenant's key, a wrong one, and none."""
    for path in ("/v1/reload", "/v1/engines/decode-0/drain"):
        for headers in (ground.auth("alpha"), {"authorization": "Bearer wrong"}, {}):
            answer = await ask(ground.port, request(path, headers=headers))
            expect(answer.status in (401, 403), f"{path} answered with {answer.status}")


async def a_hoarder(ground: Ground) -> None:
    """One tenant fills every decoder with conversations that it never releases; the other one is served."""
    text = "the ferry sails at noon and carries two hundred passengers " * 25

    async def hoard(number: int) -> None:
        await ground.ask(f"hoard-{number}", f"{number}: {text}", tenant="alpha")

    hoarding = asyncio.gather(*(hoard(number) for number in range(40)))
    await asyncio.sleep(3)
    try:
        answer = await ground.ask("guest", f"guest: {text}", tenant="beta")
        expect(answer.status == 200, f"answered with {answer.status}: {answer.body[:300]!r}")
    finally:
        await hoarding
    for number in range(40):
        await ground.release(f"hoard-{number}", tenant="alpha")


async def odd_bodies(ground: Ground) -> None:
    """One tenant's bodies have few tokens for their bytes; the other's short prompts are still let in."""
    for number in range(30):
        padding = {"metadata": {"note": "x" * 15_000}}
        await ground.ask(f"odd-{number}", "a", tenant="alpha", **padding)
        await ground.release(f"odd-{number}", tenant="alpha")
    long = "1 2 3 4 5 6 7 8 9 " * 20
    answers = await asyncio.gather(*(ground.ask(f"short-{n}", long, tenant="beta") for n in range(4)))
    statuses = [answer.status for answer in answers]
    expect(statuses == [200] * 4, f"answered with {statuses}")
    for number in range(4):
        await ground.release(f"short-{number}", tenant="beta")


CASES = (
    *cases(HEARD, names_that_are_the_gateways, addresses_in_extra_arguments, caches_apart),
    *cases(
        SHARED,
        cached_tokens_of_others,
        responses_of_others,
        conversations_of_others,
        doors_of_the_administrator,
        on_real=True,
    ),
    *cases(SMALL, a_hoarder, odd_bodies),
)
