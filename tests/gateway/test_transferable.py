"""Which requests' KV may move: of one prompt and one sequence."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from conserve_server.engines.wire import CHAT_PATH, COMPLETIONS_PATH
from conserve_server.serving.asked.transferable import is_transferable

from .conftest import MODEL, Served


def moves(path: str = COMPLETIONS_PATH, **fields: Any) -> bool:
    return is_transferable(path, {n: msgspec.Raw(json.dumps(v).encode()) for n, v in fields.items()})


@pytest.mark.parametrize(
    "prompt", ["a text", "[1, 2]", [1, 2, 3], ["only one"], [[1, 2, 3]], [7], "", [" [1"], [["odd"]]]
)
def test_one_prompt_in_any_form_moves(prompt: Any) -> None:
    assert moves(prompt=prompt)


@pytest.mark.parametrize("prompt", [["a", "b"], [[1, 2], [3]], [], [[], []], ["1", "2"]])
def test_several_prompts_or_none_do_not(prompt: Any) -> None:
    assert not moves(prompt=prompt)


@pytest.mark.parametrize("indent", [None, 0, 1, 80, "\t", "\r\n"])
@pytest.mark.parametrize(
    ("prompt", "is_one"),
    [
        ([1, 2], True),
        ([[1, 2]], True),
        (["a"], True),
        ([[1, 2], [3]], False),
        (["a", "b"], False),
        ([], False),
    ],
)
def test_how_a_list_is_laid_out_makes_no_difference(
    prompt: list[object], indent: int | str | None, is_one: bool
) -> None:
    text = json.dumps(prompt, indent=indent)
    if isinstance(indent, str):
        text = text.replace(" ", "").replace("[", f"[{indent}")
    assert is_transferable(COMPLETIONS_PATH, {"prompt": msgspec.Raw(text.encode())}) is is_one


@pytest.mark.parametrize(
    "fields",
    [
        *({"n": 2}, {"n": "2"}, {"best_of": 3}, {"use_beam_search": True}, {"use_beam_search": 1}),
        *({"prompt_logprobs": number} for number in (-1, 0, 1, 5)),
        *({"echo": True}, {"echo": 1}, {"echo": "true"}, {"prompt_embeds": "x"}, {"prompt_embeds": ["x"]}),
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, COMPLETIONS_PATH])
def test_what_asks_for_more_than_one_sequence_or_for_the_prompt_does_not(
    path: str, fields: dict[str, Any]
) -> None:
    assert not moves(path, **fields)


@pytest.mark.parametrize("fields", [{"n": 1}, {"n": None}, {"echo": False}, {"prompt_logprobs": None}])
def test_what_asks_for_nothing_special_moves(fields: dict[str, Any]) -> None:
    assert moves(CHAT_PATH, messages=[], **fields)


async def test_several_prompts_are_prefilled_where_they_are_answered(gateway: Served) -> None:
    answer = await gateway.client.post(
        "/v1/completions", json={"model": MODEL, "prompt": ["a", "b"]}, headers={"x-session-id": "a"}
    )
    assert answer.headers["x-conserve-path"] == "local-prefill"
    requests = [await gateway.engine_metric("prefill-0", "vllm:request_success_total")]
    assert requests == [0]


@pytest.mark.parametrize("flag", ["false", "FALSE", "0", "off", "no", 0, 0.0, False, None])
async def test_a_flag_that_vllm_takes_for_no_is_no(gateway: Served, flag: Any) -> None:
    assert (await gateway.ask(None, "hello", stream=flag)).headers["content-type"] == "application/json"


@pytest.mark.parametrize("flag", ["true", "1", "on", 1, True])
async def test_a_flag_that_vllm_takes_for_yes_is_yes(gateway: Served, flag: Any) -> None:
    assert "event-stream" in (await gateway.ask(None, "hello", stream=flag)).headers["content-type"]


@pytest.mark.parametrize("flag", ["perhaps", 2, [], {}])
async def test_a_flag_that_is_none_is_refused_by_name(gateway: Served, flag: Any) -> None:
    answer = await gateway.ask(None, "hello", stream=flag)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize("model", [{}, {"model": None}, {"model": ""}])
async def test_a_request_without_a_model_gets_the_only_one(gateway: Served, model: dict[str, Any]) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **model}
    answer = await gateway.client.post("/v1/chat/completions", json=body)
    assert answer.json()["model"] == MODEL


async def test_models_are_listed_whole_and_one_by_one(gateway: Served) -> None:
    (card,) = (await gateway.client.get("/v1/models")).json()["data"]
    assert {"id", "object", "created", "owned_by", "root", "parent", "max_model_len"} == card.keys()
    assert (await gateway.client.get(f"/v1/models/{MODEL}")).json() == card
    missing = await gateway.client.get("/v1/models/other/model")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_texts_are_tokenised_by_an_engine(gateway: Served) -> None:
    found = (await gateway.client.post("/tokenize", json={"prompt": "the ferry", "session_id": "x"})).json()
    assert found["count"] == len(found["tokens"]) > 0
    back = await gateway.client.post("/detokenize", json={"model": MODEL, "tokens": found["tokens"]})
    assert back.json()["prompt"]
