"""Engines drained and taken back, and a configuration read again, through the gateway's routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from conserve_server.core.config import Config, parse_config
from conserve_server.engines.emulated import EmulatedEngineServer, Fault
from conserve_server.engines.engine import Role
from conserve_server.serving.turns.draining import Draining

from .conftest import MODEL, Serve, Served, engine_config

TEXT = "the harbour lies to the south of the lighthouse " * 8
KEY = "administrator"
NEVER_S = 60.0
ADMIN = {"authorization": f"Bearer {KEY}"}


class File:
    """The configuration file, as far as a test writes it anew."""

    def __init__(self) -> None:
        self.document: dict[str, object] = {}

    def load(self) -> Config:
        return parse_config(self.document)

    def lists(self, gateway: Served, *names: str, **more: object) -> None:
        """The engines of these names, and what else the served gateway was configured with."""
        engines = [gateway.engines[name] for name in names]
        pools = {str(r): {"engines": [e.url for e in engines if e.config.role is r]} for r in Role}
        common = {"probe_interval_s": 0.05, "admin_key": KEY, **more}
        self.document = {"pools": pools, "gateway": common}


async def post(gateway: Served, path: str) -> httpx2.Response:
    return await gateway.client.post(path, headers=ADMIN)


async def engine(gateway: Served, name: str) -> dict[str, object]:
    engines = (await gateway.client.get("/v1/engines", headers=ADMIN)).json()["data"]
    found: dict[str, object] = next((e for e in engines if e["name"] == name), {})
    return found


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/engines"),
        ("POST", "/v1/engines/decode-0/drain"),
        ("POST", "/v1/engines/decode-0/undrain"),
        ("POST", "/v1/reload"),
    ],
)
@pytest.mark.parametrize("admin_key", [KEY, None])
async def test_the_administrators_routes_need_its_key(
    serve: Serve, method: str, path: str, admin_key: str | None
) -> None:
    async with serve(prefill=[], admin_key=admin_key) as gateway:
        answer = await gateway.client.request(method, path, headers={"authorization": "Bearer guess"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "admin_key_needed")


async def test_a_draining_engine_keeps_its_conversations_and_takes_no_new_ones(serve: Serve) -> None:
    # A look at a turn's very end would count its KV beside its reservation until the next look.
    async with serve(admin_key=KEY, probe_interval_s=NEVER_S) as gateway:
        await gateway.ask("a", TEXT)  # decode-0
        drained = await post(gateway, "/v1/engines/decode-0/drain")
        assert drained.json()["draining"] is True
        assert drained.json()["drained"] is False
        new = [await gateway.ask(name, f"{name}: {TEXT}") for name in ("b", "c")]
        assert {answer.headers["x-conserve-decoder"] for answer in new} == {"decode-1"}
        assert (await gateway.ask("a", TEXT)).headers["x-conserve-path"] == "pinned"
        await gateway.client.delete("/v1/conversations/a")
        assert (await engine(gateway, "decode-0"))["drained"] is True
        await post(gateway, "/v1/engines/decode-0/undrain")
        assert (await gateway.ask("d", f"d: {TEXT}")).headers["x-conserve-decoder"] == "decode-0"


async def test_when_the_drains_time_is_over_conversations_are_placed_anew(serve: Serve) -> None:
    async with serve(admin_key=KEY, engine_drain_timeout_s=0.1) as gateway:
        await gateway.ask("a", TEXT)
        await post(gateway, "/v1/engines/decode-0/drain")
        await gateway.eventually(lambda: _is(gateway, "decode-0", "drained"))
        answer = await gateway.ask("a", TEXT)
        assert answer.headers["x-conserve-decoder"] == "decode-1"
        assert answer.headers["x-conserve-rebind"] == "engine-drained"


async def _is(gateway: Served, name: str, what: str) -> bool:
    return (await engine(gateway, name)).get(what) is True


async def test_an_unknown_engine_is_a_404_that_names_those_that_are_there(serve: Serve) -> None:
    async with serve(prefill=[], admin_key=KEY) as gateway:
        answer = await post(gateway, "/v1/engines/decode-9/drain")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "engine_not_found")
        assert "decode-0, decode-1" in answer.json()["error"]["message"]


# -- reload --------------------------------------------------------------------------------------


async def test_a_reload_takes_an_engine_in_and_keeps_every_binding(serve: Serve) -> None:
    file = File()
    async with serve(admin_key=KEY, load=file.load) as gateway:
        before = await gateway.ask("a", TEXT)
        third = await gateway.stack.enter_async_context(
            EmulatedEngineServer(engine_config(Role.DECODE, "decode-2"))
        )
        gateway.engines["decode-2"] = third
        file.lists(gateway, "prefill-0", "decode-2", "decode-1", "decode-0")
        done = (await post(gateway, "/v1/reload")).json()
        assert done == {
            "added": ["decode-2"],
            "leaving": [],
            "kept": ["prefill-0", "decode-1", "decode-0"],
            "tenants": [],
        }
        await gateway.eventually(lambda: _is(gateway, "decode-2", "up"))
        after = await gateway.ask("a", TEXT)
        assert after.headers["x-conserve-decoder"] == before.headers["x-conserve-decoder"]
        assert after.headers["x-conserve-path"] == "pinned"


async def test_an_engine_that_left_the_configuration_ends_its_streams_first(serve: Serve) -> None:
    file = File()
    slow = [
        engine_config(Role.DECODE, "decode-0", faults=(Fault("slow", delay_s=0.1),)),
        engine_config(Role.DECODE, "decode-1"),
    ]
    async with serve(decode=slow, admin_key=KEY, load=file.load, engine_drain_timeout_s=0.2) as gateway:
        async with gateway.stream("a", TEXT) as answer:
            assert answer.headers["x-conserve-decoder"] == "decode-0"
            file.lists(gateway, "prefill-0", "decode-1", engine_drain_timeout_s=0.2)
            assert (await post(gateway, "/v1/reload")).json()["leaving"] == ["decode-0"]
            assert (await answer.aread()).endswith(b"data: [DONE]\n\n")
        await gateway.eventually(lambda: _has_left(gateway, "decode-0"))
        assert (await gateway.ask("a", TEXT)).headers["x-conserve-decoder"] == "decode-1"
        assert 'engine="decode-0"' not in (await gateway.client.get("/metrics")).text


async def _has_left(gateway: Served, name: str) -> bool:
    return not await engine(gateway, name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gateway": {"admin_key": KEY, "max_wait_s": 5.0}}, "gateway.max_wait_s can't change"),
        ({"scheduler": {"policy": "collocated"}}, "scheduler.policy can't change"),
        ({"tiers": {"t": {"prefill_tokens_per_s": -1}}}, "tiers.t.prefill_tokens_per_s"),
    ],
)
async def test_what_cannot_be_applied_is_refused_by_name_and_nothing_changes(
    serve: Serve, change: dict[str, object], reason: str
) -> None:
    file = File()
    async with serve(admin_key=KEY, load=file.load) as gateway:
        file.lists(gateway, "prefill-0", "decode-1")
        file.document |= change
        answer = await post(gateway, "/v1/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "configuration_refused")
        assert reason in answer.json()["error"]["message"]
        assert not await _is(gateway, "decode-0", "draining")


async def test_a_gateway_without_a_file_says_that_it_has_none(serve: Serve) -> None:
    async with serve(admin_key=KEY, prefill=[]) as gateway:
        answer = await post(gateway, "/v1/reload")
        assert "not started from a configuration file" in answer.json()["error"]["message"]


# -- the gateway's own end -------------------------------------------------------------------------


async def test_a_draining_gateway_refuses_new_conversations_and_serves_live_ones(serve: Serve) -> None:
    draining = Draining()
    async with serve(draining=draining) as gateway:
        await gateway.ask("a", TEXT)
        draining.begin()
        assert (await gateway.ask("a", TEXT)).status_code == 200
        refused = await gateway.ask("b", TEXT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_draining")
        assert int(refused.headers["retry-after"]) >= 1
        health = await gateway.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")


async def test_turns_that_are_cut_off_are_told_so(serve: Serve) -> None:
    draining = Draining()
    hanging = [engine_config(Role.DECODE, "decode-0", faults=(Fault("hang", delay_s=60.0),))]
    async with serve(decode=hanging, draining=draining) as gateway:
        asking = asyncio.create_task(gateway.ask("a", TEXT))
        await gateway.eventually(lambda: _is_true(lambda: draining.running_turns == 1))
        draining.begin()
        draining.cut()
        answer = await asking
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "gateway_stopped")
        assert draining.running_turns == 0


async def _is_true(fact: Callable[[], bool]) -> bool:
    return fact()


async def test_a_reload_over_local_engines_with_nothing_changed_changes_nothing(serve: Serve) -> None:
    """As `conserve serve --up` runs them: the file says how many there are, and lists none."""
    local = parse_config({"pools": {"decode": {"count": 2}}, "gateway": {"admin_key": KEY}})
    async with serve(prefill=[], config=local, load=lambda: local, is_ready=False) as gateway:
        await gateway.ask("a", TEXT)
        done = (await post(gateway, "/v1/reload")).json()
        assert done == {"added": [], "leaving": [], "kept": ["decode-0", "decode-1"], "tenants": []}
        assert (await gateway.ask("a", TEXT)).headers["x-conserve-path"] == "pinned"


async def test_a_new_engine_in_front_of_the_list_renames_nobody(serve: Serve) -> None:
    file = File()
    async with serve(prefill=[], admin_key=KEY, load=file.load) as gateway:
        third = await gateway.stack.enter_async_context(
            EmulatedEngineServer(engine_config(Role.DECODE, "decode-2"))
        )
        before = {name: (await engine(gateway, name))["url"] for name in ("decode-0", "decode-1")}
        gateway.engines["decode-2"] = third
        file.lists(gateway, "decode-2", "decode-1", "decode-0")
        await post(gateway, "/v1/reload")
        file.lists(gateway, "decode-2", "decode-1")
        done = (await post(gateway, "/v1/reload")).json()
        assert done["leaving"] == ["decode-0"]
        assert (await engine(gateway, "decode-1"))["url"] == before["decode-1"]


def with_keys(**keys: str) -> dict[str, object]:
    return {"tenants": {name: {"api_keys": [key]} for name, key in keys.items()}}


async def test_keys_are_added_rotated_and_revoked_and_conversations_go_on(serve: Serve) -> None:
    file = File()

    async def ask(key: str) -> httpx2.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
        headers = {"authorization": f"Bearer {key}", "x-session-id": "a"}
        return await gateway.client.post("/v1/chat/completions", json=body, headers=headers)

    async with serve(
        prefill=[], admin_key=KEY, load=file.load, is_ready=False, **with_keys(alpha="old", beta="b")
    ) as gateway:
        assert (await ask("old")).headers["x-conserve-turn"] == "1"
        file.lists(gateway, "decode-0", "decode-1", **with_keys(alpha="new", gamma="g"))
        assert (await post(gateway, "/v1/reload")).json()["tenants"] == ["alpha", "beta", "gamma"]
        assert [(await ask(key)).status_code for key in ("old", "b", "g")] == [401, 401, 200]
        later = await ask("new")
        assert (later.headers["x-conserve-turn"], later.headers["x-conserve-path"]) == ("2", "pinned")


async def test_a_file_of_keys_is_read_again_though_the_configuration_is_as_it_was(
    serve: Serve, tmp_path: Path
) -> None:
    keys, file = tmp_path / "keys", File()
    keys.write_text("one\n")
    tenants: dict[str, object] = {"tenants": {"alpha": {"api_keys_file": str(keys)}}}
    async with serve(prefill=[], admin_key=KEY, load=file.load, is_ready=False, **tenants) as gateway:
        file.lists(gateway, "decode-0", "decode-1", **tenants)
        keys.write_text("two\n")
        assert (await post(gateway, "/v1/reload")).json()["tenants"] == ["alpha"]
        headers = {"authorization": "Bearer two"}
        assert (await gateway.client.get("/v1/conversations", headers=headers)).status_code == 200
        keys.unlink()
        refused = await post(gateway, "/v1/reload")
        assert refused.status_code == 409
        assert "api_keys_file" in refused.json()["error"]["message"]
        assert (await gateway.client.get("/v1/conversations", headers=headers)).status_code == 200


async def test_a_tenants_own_limit_changes_with_a_reload(serve: Serve) -> None:
    file = File()
    limited = {"tenants": {"alpha": {"api_keys": ["k"], "max_conversations": 1}}}
    async with serve(
        prefill=[], admin_key=KEY, load=file.load, is_ready=False, **with_keys(alpha="k")
    ) as gateway:
        file.lists(gateway, "decode-0", "decode-1", **limited)
        assert (await post(gateway, "/v1/reload")).json()["tenants"] == ["alpha"]
        headers = {"authorization": "Bearer k"}
        body = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
        statuses = [
            (
                await gateway.client.post(
                    "/v1/chat/completions", json=body, headers={**headers, "x-session-id": name}
                )
            ).status_code
            for name in ("a", "b")
        ]
        assert statuses == [200, 429]


async def test_tenants_do_not_begin_by_a_reload(serve: Serve) -> None:
    file = File()
    async with serve(prefill=[], admin_key=KEY, load=file.load) as gateway:
        file.lists(gateway, "decode-0", "decode-1", **with_keys(alpha="k"))
        refused = await post(gateway, "/v1/reload")
        assert refused.status_code == 409
        assert "can't begin or end" in refused.json()["error"]["message"]


async def test_an_engine_that_never_came_up_says_why_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    file = File()
    async with serve(prefill=[], admin_key=KEY, load=file.load) as gateway:
        file.lists(gateway, "decode-0", "decode-1")
        listed = file.document["pools"]
        assert isinstance(listed, dict)
        listed["decode"]["engines"].append("http://127.0.0.1:9")
        with caplog.at_level("WARNING"):
            await post(gateway, "/v1/reload")
            await gateway.eventually(lambda: _has_reason(gateway, "decode-2"))
            assert "refused" in str((await engine(gateway, "decode-2"))["reason"])
        said = [r for r in caplog.records if "decode-2 is not up" in r.getMessage()]
        assert len(said) == 1


async def _has_reason(gateway: Served, name: str) -> bool:
    return "reason" in await engine(gateway, name)


async def test_a_turn_that_no_engine_can_take_is_told_why(serve: Serve) -> None:
    async with serve(prefill=[], max_wait_s=1.0, probe_interval_s=0.05) as gateway:
        for each in gateway.engines.values():
            await each.stop()
        await gateway.eventually(lambda: _none_up(gateway))
        answer = await gateway.ask("a", TEXT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_decode_engine")
        assert "decode-0 at http://127.0.0.1" in answer.json()["error"]["message"]


async def _none_up(gateway: Served) -> bool:
    engines = (await gateway.client.get("/health")).json()["engines"]
    return not any(engine["up"] for engine in engines)
