"""Estimated prompt lengths."""

import pytest

from conserve_server.gateway.estimate import TokenEstimate


def test_the_estimate_moves_towards_what_engines_count() -> None:
    estimate = TokenEstimate()
    for _ in range(200):
        estimate.learn(body_bytes=600, prompt_tokens=100)
    assert estimate.prompt_tokens(6000) == pytest.approx(1000, rel=0.01)


def test_an_empty_count_teaches_nothing() -> None:
    estimate = TokenEstimate()
    estimate.learn(600, 0)
    assert estimate.prompt_tokens(400) == 100


def test_a_prompt_is_never_estimated_empty() -> None:
    assert TokenEstimate().prompt_tokens(0) == 1
