"""Pools and the records of their engines."""

from __future__ import annotations

from typing import Any

import pytest

from conserve_server.core.config import Config, parse_config
from conserve_server.core.errors import ConfigError
from conserve_server.engines.engine import listed_engines


def config(*engines: object, **pool: object) -> Config:
    document: dict[str, Any] = {"pools": {"decode": {"engines": list(engines), **pool}}}
    return parse_config(document | {"tiers": {"fast": {}, "slow": {}}})


def test_an_engine_is_a_url_or_a_record() -> None:
    found = listed_engines(config("http://a:1/v1/", {"url": "http://b:1", "name": "rack-3", "tier": "fast"}))
    assert [(spec.name, spec.url, spec.tier) for spec in found] == [
        ("decode-0", "http://a:1", None),
        ("rack-3", "http://b:1", "fast"),
    ]


def test_a_made_up_name_is_nobodys_own() -> None:
    found = listed_engines(config("http://a", {"url": "http://b", "name": "decode-0"}))
    assert [spec.name for spec in found] == ["decode-1", "decode-0"]


def test_what_a_record_leaves_out_is_the_pools() -> None:
    made = config(
        {"url": "https://a", "ca_file": "own.pem"}, "https://b", ca_file="pool.pem", tiers=["fast", "slow"]
    )
    assert [(r.ca_file, r.tier) for r in made.pools.decode.records] == [
        ("own.pem", "fast"),
        ("pool.pem", "slow"),
    ]


def test_a_password_in_a_url_is_taken_out_of_it_and_shown_nowhere() -> None:
    made = config("http://user:s%40lt@a:1/base")
    (record,) = made.pools.decode.records
    assert record.url == "http://a:1/base"
    assert record.basic_auth is not None
    assert record.basic_auth.get_secret_value() == "user:s@lt"
    (spec,) = listed_engines(made)
    shown = f"{made!r} {made.model_dump()} {spec!r} {record}"
    assert "s@lt" not in shown
    assert "s%40lt" not in shown


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        (["http://a", "http://a/v1"], "lists one URL twice: http://a"),
        (["http://u:p@a", "http://a"], "lists one URL twice: http://a"),
        ([{"url": "http://a", "name": "x"}, {"url": "http://b", "name": "x"}], "two engines are named 'x'"),
        ([{"name": "x"}], "url: missing"),
        ([{"url": "http://a", "tier": "none"}], r"describe it as \[tiers.none\]"),
        ([{"url": "http://a", "key": "x"}], "key: no such key"),
        (["user:secret@a"], "is not a URL"),
        (["http://a:99999"], "is not a URL"),
        (["http://a?x=1"], "query"),
        ([3], "engines.0"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(engines: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        config(*engines)
    assert "secret" not in str(raised.value)
