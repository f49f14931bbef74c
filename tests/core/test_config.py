"""The configuration file."""

from pathlib import Path

import pytest

from conserve_server.core.config import load_config, parse_config
from conserve_server.core.errors import ConfigError


def test_two_listed_pools_are_enough() -> None:
    config = parse_config({"pools": {"decode": {"engines": ["http://10.0.0.7:8100/v1/"]}}})
    assert [record.url for record in config.pools.decode.engines] == ["http://10.0.0.7:8100"]
    assert not config.is_local


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "pools: missing"),
        ({"pools": {}}, "decode has no engines"),
        ({"pools": {"decode": {"count": 1}}, "gatway": {}}, "gatway: no such key"),
        ({"pools": {"decode": {"count": 1, "core": ["0"]}}}, "pools.decode.core: no such key"),
        ({"pools": {"decode": {"count": -1}}}, "pools.decode.count: "),
        ({"pools": {"decode": {"engines": ["10.0.0.7:8100"]}}}, "is not a URL such as"),
        ({"pools": {"decode": {"engines": ["http://a"], "count": 1}}}, "both engines and count"),
        ({"pools": {"decode": {"count": 2, "cores": ["0"]}}}, "cores must have one entry for each of its 2"),
        (
            {"pools": {"decode": {"count": 1}, "prefill": {"count": 1, "gpus": ["1"]}}},
            "only one pool has gpus",
        ),
        ({"pools": {"decode": {"count": 1}}, "gateway": {"port": "80"}}, "gateway.port: "),
        ({"pools": {"decode": {"count": 1}}, "gateway": {"max_wait_s": 0.0}}, "gateway.max_wait_s: "),
        ({"pools": {"decode": {"count": 1}, "prefill": {"engines": ["http://a"]}}}, "do the same in both"),
        ({"pools": {"decode": {"count": 2, "tiers": ["a"]}}}, "tiers must have one entry for each of its 2"),
        ({"pools": {"decode": {"count": 1, "tiers": ["a"]}}}, r"names 'a': describe it as \[tiers\.a\]"),
        (
            {"pools": {"decode": {"count": 1}}, "tiers": {"a": {"decode_step_s": 0.0}}},
            r"tiers\.a\.decode_step_s: ",
        ),
        (
            {"pools": {"decode": {"count": 1}}, "scheduler": {"conserve_plus": {"spil_wait_s": 1.0}}},
            r"scheduler\.conserve_plus\.spil_wait_s: no such key",
        ),
    ],
)
def test_what_is_wrong_is_named(document: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(document)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config({"pools": {"decode": {"count": 1}}, "a": 1, "b": 2})
    assert "a: no such key" in str(raised.value)
    assert "b: no such key" in str(raised.value)


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at .*absent\.toml"):
        load_config(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = [")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        load_config(broken)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("scheduler", "fraction"),
    [
        ({}, 0.9),
        ({"policy": "conserve_plus"}, 2.0),
        ({"policy": "conserve_plus", "kv_budget_fraction": 0.8}, 0.8),
        ({"policy": "collocated"}, 0.9),
    ],
)
def test_the_kv_budget_has_a_default_for_each_policy(scheduler: dict[str, object], fraction: float) -> None:
    document = {"scheduler": scheduler, "pools": {"decode": {"count": 1}}}
    assert parse_config(document).scheduler.budget_fraction == fraction
