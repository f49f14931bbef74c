"""Estimated prompt lengths."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_server.serving.asked.estimate import MAX_MEANS, Kind, TokenEstimate
from conserve_server.serving.asked.prompt_size import PromptSize, prompt_size

KIND = Kind("t", "m", "/v1/chat/completions")
PICTURE = "iVBORw0KGgo" * 100_000
DATA_URL = "data:image/png;base64," + PICTURE


def text(size: int) -> PromptSize:
    return PromptSize(size)


def test_the_estimate_moves_towards_what_engines_count() -> None:
    estimate = TokenEstimate()
    for _ in range(200):
        estimate.learn(KIND, text(600), 100)
    assert estimate.prompt_tokens(KIND, text(6000)) == pytest.approx(1000, rel=0.01)


def test_an_empty_count_teaches_nothing() -> None:
    estimate = TokenEstimate()
    estimate.learn(KIND, text(600), 0)
    assert estimate.prompt_tokens(KIND, text(400)) == 100


def test_a_prompt_is_never_estimated_empty() -> None:
    assert TokenEstimate().prompt_tokens(KIND, text(0)) == 1


def test_what_one_tenant_sends_says_nothing_of_anothers_prompts() -> None:
    estimate = TokenEstimate()
    for _ in range(200):
        estimate.learn(KIND, text(100_000), 10)
    for other in (KIND._replace(tenant="u"), KIND._replace(model="n"), KIND._replace(api="/v1/messages")):
        assert estimate.prompt_tokens(other, text(400)) == 100


def test_one_tenants_pictures_say_nothing_of_anothers() -> None:
    estimate, picture = TokenEstimate(), PromptSize(0, 1)
    for _ in range(200):
        estimate.learn(KIND, picture, 10)
    assert estimate.prompt_tokens(KIND, picture) == 10
    assert estimate.prompt_tokens(KIND._replace(api="/v1/messages"), picture) == 10
    for other in (KIND._replace(tenant="u"), KIND._replace(model="n")):
        assert estimate.prompt_tokens(other, picture) == 1000


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(-5, 10**9)), max_size=30))
def test_no_request_takes_the_estimate_out_of_its_bounds(seen: list[tuple[int, int]]) -> None:
    estimate = TokenEstimate()
    for size, tokens in seen:
        estimate.learn(KIND, text(size), tokens)
    assert 100 <= estimate.prompt_tokens(KIND, text(1600)) <= 1600


def test_a_prompt_is_never_longer_than_its_model_takes() -> None:
    assert TokenEstimate().prompt_tokens(KIND, text(10**6), longest=4096) == 4096


def test_means_are_bounded() -> None:
    estimate = TokenEstimate()
    for number in range(MAX_MEANS + 10):
        estimate.learn(KIND._replace(model=str(number)), text(400), 50)
    assert len(estimate._bytes_per_token) == MAX_MEANS


MEDIA: dict[str, Any] = {
    "chat": {"type": "image_url", "image_url": {"url": DATA_URL}},
    "audio": {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}},
    "file": {"type": "file", "file": {"file_data": "data:application/pdf;base64," + PICTURE}},
    "bare file": {"type": "file", "file": {"file_data": PICTURE, "filename": "a.pdf"}},
    "embeds": {"type": "image_embeds", "image_embeds": PICTURE},
    "responses": {"type": "input_image", "image_url": DATA_URL},
    "messages": {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
    "document": {"source": {"data": PICTURE, "type": "base64"}, "type": "document"},
}


@pytest.mark.parametrize("name", MEDIA)
@pytest.mark.parametrize("indent", [None, 1])
def test_media_is_an_item_and_not_its_bytes(name: str, indent: int | None) -> None:
    part = {"type": "text", "text": "What is it?"}
    body = json.dumps(
        {"messages": [{"role": "user", "content": [part, MEDIA[name]]}]}, indent=indent
    ).encode()
    size = prompt_size(body)
    assert size.media_items == 1
    assert size.text_bytes < 600
    two = json.dumps([MEDIA[name], MEDIA[name]], indent=indent).encode()
    assert prompt_size(two).media_items == 2


@pytest.mark.parametrize("content", ["a ;base64, b", '"data": "x"', "data:image/png;base64,", "x" * 100_000])
def test_text_that_speaks_of_media_is_text(content: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    assert prompt_size(body) == PromptSize(len(body))


def test_base64_whose_slashes_are_escaped_is_media() -> None:
    body = json.dumps({"data": "ab/c" * 500}).replace("/", r"\/").encode()
    assert prompt_size(body).media_items == 1


@pytest.mark.parametrize("data", ["the ferry sails at noon ", "x,y\n", "1;2;3|", '{"a": 1}', "sí"])
@pytest.mark.parametrize("key", ["data", "file_data"])
def test_a_tools_data_is_text(key: str, data: str) -> None:
    body = json.dumps({key: data * 500}).encode()
    assert prompt_size(body).media_items == 0


@given(st.binary(max_size=400))
def test_any_bytes_have_a_size(body: bytes) -> None:
    size = prompt_size(body * 3 + b'"data":"' + body)
    assert size.text_bytes >= 0


def test_media_items_have_a_mean_of_their_own_and_teach_nothing_of_text() -> None:
    estimate = TokenEstimate()
    for _ in range(200):
        estimate.learn(KIND, PromptSize(400, media_items=2), 100 + 2 * 300)
    assert estimate.prompt_tokens(KIND, PromptSize(0, media_items=1)) == pytest.approx(300, rel=0.01)
    assert estimate.prompt_tokens(KIND, text(400)) == 100
