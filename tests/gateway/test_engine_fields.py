"""What of a client's body an engine gets: in one request, and over a real gateway."""

from __future__ import annotations

import json
import logging
from typing import Any

import openai
import pytest
from pydantic import SecretStr, ValidationError

from conserve_server.core.config import GatewayConfig, TenantConfig
from conserve_server.core.errors import InvalidRequest
from conserve_server.engines.engine import Role
from conserve_server.engines.wire import API_OF, RESPONSES_PATH
from conserve_server.serving.asked.cache_salts import CacheSalts
from conserve_server.serving.asked.engine_fields import MAX_NAMES_LOGGED, EngineFields
from conserve_server.serving.asked.request import TurnRequest, parse_request

from .conftest import MODEL, Serve, Served, engine_config

TEXT = "the ferry sails fourteen times a day and carries two hundred passengers " * 8
DIRECTING = {
    "request_id": "resp_1",
    "session_id": "other",
    "priority": -5,
    "vllm_xargs": {"session_id": "other", "anything": 1},
    "kv_transfer_params": {"remote_host": "10.0.0.1"},
    "ec_transfer_params": {"remote_host": "10.0.0.1"},
    "field_of_vllm_0_99": "x",
}
COMMON = {"metadata": {"a": "b"}, "user": "u", "temperature": 0.5, "top_p": 0.9, "seed": 1}
CONTENT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [],
        "reasoning_effort": "low",
        "chat_template_kwargs": {},
        "guided_json": {},
        "structured_outputs": {},
        **COMMON,
    },
    "/v1/completions": {"prompt": "x", "structured_outputs": {"regex": "a"}, "best_of": 1, **COMMON},
    "/v1/responses": {"input": "x", "store": True, "include": [], "prompt_cache_key": "k", **COMMON},
    "/v1/messages": {"messages": [], "max_tokens": 1, "thinking": {}, "metadata": {}, "service_tier": "auto"},
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 4},
    "/v1/completions": {"prompt": TEXT, "max_tokens": 4},
    "/v1/responses": {"input": TEXT, "max_output_tokens": 4},
    "/v1/messages": {"messages": [{"role": "user", "content": TEXT}], "max_tokens": 4},
}
NO_SALT_AND_ONE: tuple[dict[str, Any], ...] = ({}, {"cache_salt": "mine"})
KEYS = {"a": "sk-of-a", "b": "sk-of-b"}
TENANTS = {name: TenantConfig(api_keys=(SecretStr(key),)) for name, key in KEYS.items()}


def read(
    path: str, fields: dict[str, Any], rules: EngineFields | None = None, tenant: str = "default"
) -> TurnRequest:
    body = json.dumps({"model": "m", **fields}).encode()
    return parse_request(path, body, rules=rules or EngineFields(), tenant=tenant)


def legs(request: TurnRequest) -> list[dict[str, Any]]:
    return [json.loads(request.prefill_body()), json.loads(request.decode_body(None))]


@pytest.mark.parametrize("path", API_OF)
def test_what_a_client_may_say_goes_on_byte_for_byte(path: str) -> None:
    request = read(path, CONTENT[path])
    assert request.decode_body(None) is request.body


@pytest.mark.parametrize("path", API_OF)
@pytest.mark.parametrize("name", DIRECTING)
def test_what_directs_the_engine_is_in_no_leg(path: str, name: str) -> None:
    prefill, decode = legs(read(path, {**CONTENT[path], name: DIRECTING[name]}))
    assert name not in decode
    assert prefill.get(name) != DIRECTING[name]
    assert decode == {"model": "m", **CONTENT[path]}


@pytest.mark.parametrize("written", [b"request\\u005fid", b"session\\u005Fid"])
def test_a_name_written_in_another_way_is_the_same_name(written: bytes) -> None:
    request = parse_request(RESPONSES_PATH, b'{"model":"m","input":"x","%b":"y"}' % written)
    assert json.loads(request.decode_body(None)) == {"model": "m", "input": "x"}


@pytest.mark.parametrize("path", API_OF)
def test_an_operator_can_let_more_pass(path: str) -> None:
    rules = EngineFields(passed=("priority", "mine"), passed_xargs=("its",))
    request = read(
        path, {"priority": 3, "mine": [1], "yours": 2, "vllm_xargs": {"its": 1, "other": 2}}, rules
    )
    for leg in legs(request):
        assert (leg["priority"], leg["mine"], leg["vllm_xargs"]) == (3, [1], {"its": 1})
        assert "yours" not in leg


@pytest.mark.parametrize(
    "name", ["kv_transfer_params", "session_id", "request_id", "cache_salt", "vllm_xargs"]
)
def test_no_setting_lets_a_client_name_what_is_the_gateways_own(name: str) -> None:
    with pytest.raises(ValidationError, match="the gateway's own to set"):
        GatewayConfig(passed_fields=(name,))


def test_extra_arguments_that_models_sample_by_pass() -> None:
    xargs = {"ngram_size": 35, "window_size": 128}
    assert legs(read("/v1/chat/completions", {"vllm_xargs": xargs}))[1]["vllm_xargs"] == xargs


@pytest.mark.parametrize("xargs", [[], "x", 1])
def test_extra_arguments_that_are_none_are_refused(xargs: object) -> None:
    with pytest.raises(InvalidRequest, match="vllm_xargs is wrong"):
        read("/v1/chat/completions", {"vllm_xargs": xargs})


@pytest.mark.parametrize("path", API_OF)
def test_a_tenants_salt_is_in_both_legs_and_joined_with_its_own(path: str) -> None:
    rules = EngineFields(salts=CacheSalts({}))
    plain, salted = (legs(read(path, extra, rules, "a")) for extra in NO_SALT_AND_ONE)
    other = legs(read(path, {"cache_salt": "mine"}, rules, "b"))
    salts = [[leg["cache_salt"] for leg in pair] for pair in (plain, salted, other)]
    assert all(prefill == decode for prefill, decode in salts)
    assert len({prefill for prefill, _ in salts}) == 3
    assert "mine" not in {prefill for prefill, _ in salts}


@pytest.mark.parametrize("path", API_OF)
def test_without_tenants_a_clients_salt_is_its_own_business(path: str) -> None:
    request = read(path, {"cache_salt": "mine"})
    assert request.decode_body(None) is request.body


def test_a_dropped_name_is_told_once_and_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    rules = EngineFields()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            read("/v1/completions", {"new\nfield": 1, "vllm_xargs": {"odd": 1}, "session_id": "s"}, rules)
        assert [record.args for record in caplog.records] == [("'vllm_xargs.odd'",), ("'new\\nfield'",)]
        read("/v1/completions", {f"f{i}": 1 for i in range(3 * MAX_NAMES_LOGGED)}, rules)
    assert len(caplog.records) == MAX_NAMES_LOGGED


# -- over a gateway ------------------------------------------------------------------------------


def of(gateway: Served, tenant: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEYS[tenant], max_retries=0)


async def test_a_client_can_neither_choose_nor_overwrite_the_id_of_a_stored_response(serve: Serve) -> None:
    """On one decoder, where both tenants' answers lie side by side."""
    one = [engine_config(Role.DECODE, "decode-0")]
    async with (
        serve(decode=one, tenants=TENANTS) as gateway,
        of(gateway, "a") as own,
        of(gateway, "b") as other,
    ):
        first = await own.responses.create(model=MODEL, input="the secret " + TEXT)
        theirs = await other.responses.create(
            model=MODEL, input="mine " + TEXT, extra_body={"request_id": first.id}
        )
        assert theirs.id != first.id
        assert (await own.responses.retrieve(first.id)).output_text == first.output_text
        for steal in (other.responses.retrieve, other.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                await steal(first.id)


@pytest.mark.parametrize("named", [{}, {"x-session-id": "mine"}])
@pytest.mark.parametrize("streamed", [False, True])
async def test_no_tenant_goes_on_from_anothers_response_however_it_names_its_conversation(
    serve: Serve, named: dict[str, str], streamed: bool
) -> None:
    one = [engine_config(Role.DECODE, "decode-0")]
    async with (
        serve(decode=one, tenants=TENANTS) as gateway,
        of(gateway, "a") as own,
        of(gateway, "b") as other,
    ):
        first = await own.responses.create(model=MODEL, input="the secret " + TEXT)
        with pytest.raises(openai.NotFoundError, match="has not made it"):
            await other.responses.create(
                model=MODEL,
                input="go on",
                previous_response_id=first.id,
                extra_headers=named,
                stream=streamed,
            )


@pytest.mark.parametrize("path", BODIES)
async def test_the_session_of_an_engine_is_the_gateways(gateway: Served, path: str) -> None:
    """What a release names must be what the engine knows."""
    body = {"model": MODEL, **BODIES[path], "session_id": "of-the-body"}
    answer = await gateway.client.post(path, json=body, headers={"x-conserve-conversation-id": "of-us"})
    assert answer.status_code == 200
    decoder = gateway.engines[answer.headers["x-conserve-decoder"]]
    resident = await gateway.client.get(decoder.url + "/v1/conserve/resident")
    assert "of-us" in resident.text
    assert "of-the-body" not in resident.text


@pytest.mark.parametrize("path", BODIES)
async def test_cached_tokens_tell_no_tenant_what_another_has_sent(serve: Serve, path: str) -> None:
    """One engine of each role, so that every prompt meets the same caches."""
    async with serve(decode=[engine_config(Role.DECODE, "decode-0")], tenants=TENANTS) as gateway:

        async def cached(tenant: str, conversation: str) -> int:
            headers = {"x-session-id": conversation, "authorization": f"Bearer {KEYS[tenant]}"}
            answer = await gateway.client.post(path, json={"model": MODEL, **BODIES[path]}, headers=headers)
            assert answer.status_code == 200
            return int(answer.headers["x-conserve-cached-tokens"])

        assert await cached("a", "one") == 0
        assert await cached("b", "two") == 0
        assert await cached("a", "three") > 0
        assert await cached("b", "four") > 0


async def test_tenants_of_one_cache_group_share_their_cached_prompts(serve: Serve) -> None:
    trusting = {n: t.model_copy(update={"cache_group": "team"}) for n, t in TENANTS.items()}
    async with serve(decode=[engine_config(Role.DECODE, "decode-0")], tenants=trusting) as gateway:
        found = []
        for tenant in KEYS:
            headers = {"x-session-id": "c", "authorization": f"Bearer {KEYS[tenant]}"}
            body = {"model": MODEL, **BODIES["/v1/completions"]}
            answer = await gateway.client.post("/v1/completions", json=body, headers=headers)
            found.append(int(answer.headers["x-conserve-cached-tokens"]))
        assert found[0] == 0 < found[1]


async def test_a_first_turn_with_a_salt_is_prefilled_elsewhere_and_later_turns_find_it(serve: Serve) -> None:
    async with serve(tenants=TENANTS) as gateway:
        headers = {"x-session-id": "c", "authorization": f"Bearer {KEYS['a']}"}
        body = {"model": MODEL, **BODIES["/v1/chat/completions"], "cache_salt": "mine"}
        answers = [
            await gateway.client.post("/v1/chat/completions", json=body, headers=headers) for _ in range(2)
        ]
        assert [answer.headers["x-conserve-path"] for answer in answers] == ["remote-prefill", "pinned"]
        assert int(answers[1].headers["x-conserve-cached-tokens"]) > 0
