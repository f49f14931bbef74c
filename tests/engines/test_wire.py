"""Bodies of the legs, and what is read of a prefill leg's answer, on each API."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from conserve_server.engines.wire import API_OF, Api, Usage, decode_leg, prefill_leg, read_prefill_answer

CHAT = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}
RESPONSES = {"input_tokens": 9, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 4}}
MESSAGES = {
    "input_tokens": 3,
    "output_tokens": 1,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 2,
}


def fields_of(**given: Any) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(json.dumps(given).encode(), type=dict[str, msgspec.Raw])


@pytest.mark.parametrize(
    ("path", "usage"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", CHAT),
        ("/v1/responses", RESPONSES),
        ("/v1/messages", MESSAGES),
    ],
)
def test_a_prefill_answers_counts_are_the_same_on_every_api(path: str, usage: dict[str, Any]) -> None:
    content = json.dumps({"kv_transfer_params": {"remote_host": "h"}, "usage": usage}).encode()
    params, counted = read_prefill_answer(path, content)
    assert json.loads(params or b"") == {"remote_host": "h"}
    assert counted is not None
    assert (counted.prompt_tokens, counted.completion_tokens, counted.cached_tokens) == (9, 1, 4)


@pytest.mark.parametrize("params", ['"x"', "[1]", "1", "true"])
def test_transfer_parameters_that_are_no_object_are_refused(params: str) -> None:
    content = f'{{"kv_transfer_params": {params}, "usage": {json.dumps(CHAT)}}}'.encode()
    with pytest.raises(msgspec.MsgspecError):
        read_prefill_answer("/v1/completions", content)


def test_what_a_prefill_answer_lacks_is_none() -> None:
    assert read_prefill_answer("/v1/messages", b"{}") == (None, None)
    assert read_prefill_answer("/v1/completions", b'{"usage": {"prompt_tokens": 2}}') == (None, Usage(2))


@pytest.mark.parametrize(
    ("api", "limit"),
    [(Api.COMPLETIONS, "max_tokens"), (Api.RESPONSES, "max_output_tokens"), (Api.MESSAGES, "max_tokens")],
)
def test_a_prefill_leg_makes_one_token_and_is_not_streamed(api: Api, limit: str) -> None:
    given = {limit: 100, "stream": True, "stream_options": {}, "min_tokens": 5, "ec_transfer_params": {}}
    leg = json.loads(prefill_leg(fields_of(**given, kv_transfer_params={"remote_host": "evil"}), api=api))
    assert (leg[limit], leg["stream"], leg["kv_transfer_params"]["do_remote_decode"]) == (1, False, True)
    assert leg["kv_transfer_params"]["remote_host"] is None
    assert not {"stream_options", "min_tokens", "ec_transfer_params"} & leg.keys()


def test_a_prefill_leg_stores_nothing_and_runs_in_front() -> None:
    leg = json.loads(prefill_leg(fields_of(store=True, background=True), api=Api.RESPONSES))
    assert (leg["store"], leg["background"]) == (False, False)


def test_only_messages_have_no_priority() -> None:
    for api in Api:
        legs = [
            prefill_leg(fields_of(), api=api, priority=3),
            decode_leg(fields_of(), kv_transfer_params=None, with_usage=False, api=api, priority=3),
        ]
        assert [json.loads(leg).get("priority") for leg in legs] == [None if api is Api.MESSAGES else 3] * 2


def test_every_route_of_turns_has_an_api() -> None:
    assert set(API_OF.values()) == set(Api)
