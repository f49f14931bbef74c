"""Reading a request and building its legs."""

import json

import pytest

from conserve_server.core.errors import InvalidRequest
from conserve_server.serving.asked.request import check_model, parse_request

CHAT = "/v1/chat/completions"
MESSAGES = '[{"role": "user", "content": "h\\u00e9llo  \\ud83d\\ude00"}]'


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def test_a_request_that_needs_no_change_is_forwarded_byte_for_byte() -> None:
    raw = b'{ "model":"m",\n "messages": ' + MESSAGES.encode() + b" }"
    assert parse_request(CHAT, raw).decode_body(None) is raw


def test_a_stream_is_asked_for_its_usage_and_its_messages_stay_as_they_were() -> None:
    raw = b'{"model":"m","stream":true,"messages":' + MESSAGES.encode() + b"}"
    sent = parse_request(CHAT, raw).decode_body(None)
    assert MESSAGES.encode() in sent
    assert json.loads(sent)["stream_options"] == {"include_usage": True}


def test_stream_options_of_the_client_are_kept() -> None:
    request = parse_request(CHAT, body(stream=True, stream_options={"other": 1}))
    assert json.loads(request.decode_body(None))["stream_options"] == {"other": 1, "include_usage": True}
    asked = {"continuous_usage_stats": True, "include_usage": True}
    request = parse_request(CHAT, body(stream=True, stream_options=asked))
    assert json.loads(request.decode_body(None))["stream_options"] == asked


def test_usage_in_every_chunk_is_not_asked_for_a_client_that_asked_for_none() -> None:
    """vLLM heeds `continuous_usage_stats` only beside `include_usage`, which only the gateway asks for."""
    request = parse_request(CHAT, body(stream=True, stream_options={"continuous_usage_stats": True}))
    assert json.loads(request.decode_body(None))["stream_options"] == {"include_usage": True}


def test_the_prefill_leg_asks_for_one_token_and_for_its_kv_to_be_held() -> None:
    request = parse_request(
        CHAT,
        body(
            stream=True,
            stream_options={"include_usage": True},
            max_completion_tokens=50,
            min_tokens=9,
            seed=3,
        ),
    )
    leg = json.loads(request.prefill_body())
    assert leg["stream"] is False
    assert (leg["max_tokens"], leg["max_completion_tokens"], leg["seed"]) == (1, 1, 3)
    assert not {"stream_options", "min_tokens"} & leg.keys()
    assert leg["kv_transfer_params"]["do_remote_decode"] is True


def test_the_decode_leg_carries_the_prefillers_parameters_unread() -> None:
    params = b'{"do_remote_prefill":true, "remote_block_ids":[[1,2]]}'
    sent = parse_request(CHAT, body()).decode_body(params)
    assert params in sent


def test_a_clients_own_kv_transfer_params_never_reach_an_engine() -> None:
    request = parse_request(CHAT, body(kv_transfer_params={"remote_host": "10.0.0.1"}))
    assert b"10.0.0.1" not in request.decode_body(None)
    assert b"10.0.0.1" not in request.prefill_body()


def test_a_placements_priority_is_in_both_legs_and_replaces_the_clients() -> None:
    request = parse_request(CHAT, body(priority=-99))
    assert json.loads(request.prefill_body(10))["priority"] == 10
    assert json.loads(request.decode_body(None, 10))["priority"] == 10


def test_without_a_priority_nothing_is_added() -> None:
    raw = body()
    assert parse_request(CHAT, raw).decode_body(None, None) is raw
    assert "priority" not in json.loads(parse_request(CHAT, raw).prefill_body())


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"{", "invalid_json", None),
        (b"[]", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"{}", "missing_model", "model"),
        (b'{"model": 3}', "invalid_field", "model"),
        (b'{"model": "m", "stream": "perhaps"}', "invalid_field", "stream"),
        (b'{"model": "m", "stream_options": 1}', "invalid_field", "stream_options"),
    ],
)
def test_what_is_wrong_with_a_body_is_named(raw: bytes, code: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_request(CHAT, raw)
    assert (raised.value.code, raised.value.param, raised.value.status) == (code, param, 400)


def test_an_unknown_model_is_a_404_that_lists_the_served_ones() -> None:
    with pytest.raises(InvalidRequest, match="served models: a, b") as raised:
        check_model("c", {"b", "a"})
    assert raised.value.status == 404


def test_any_model_passes_while_no_engine_has_said_what_it_serves() -> None:
    check_model("c", set())
