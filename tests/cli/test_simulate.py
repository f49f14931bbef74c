"""`conserve simulate`: from a profile or a trace's file to a table or a document."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from conserve_server.cli.main import main

SMALL = ["simulate", "tool-chat", "--rate", "2", "--count", "12"]


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*SMALL, *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_profile_is_simulated_and_told_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "--policy", "full_disaggregation")
    assert found["policy"] == "full_disaggregation"
    assert found["metrics"]["conversations"] == 12
    assert found["metrics"]["transfers"] == found["metrics"]["turns"]
    low, high = found["energy"]["range_j"]
    assert low < found["energy"]["total_j"] < high


def test_the_same_command_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys) == document(capsys)


def test_a_table_is_printed_without_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    assert "TTFT, first turns" in capsys.readouterr().out


def test_policy_and_pools_come_from_a_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    config = tmp_path / "conserve.toml"
    config.write_text(
        '[scheduler]\npolicy = "collocated_sticky"\n[pools.decode]\ncount = 2\n[pools.prefill]\ncount = 0\n'
    )
    found = document(capsys, "--config", str(config))
    assert found["policy"] == "collocated_sticky"
    assert found["engines"] == ["decode-0", "decode-1"]


def test_gpus_of_the_two_pools_may_differ(capsys: pytest.CaptureFixture[str]) -> None:
    same, slower = document(capsys), document(capsys, "--gpu", "h100,a100")
    assert slower["metrics"]["tbt_s"]["p50"] > same["metrics"]["tbt_s"]["p50"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "neither a file nor a profile; the profiles are: coding-agent"),
        (["tool-chat"], "pass --rate"),
        (["tool-chat", "--rate", "1", "--gpu", "abacus"], "no step time grid for 'qwen3-8b' on 'abacus'"),
        (["tool-chat", "--rate", "1", "--policy", "best"], "scheduler.policy must be one of"),
        (["tool-chat", "--rate", "1", "--decode", "0"], "--decode must be at least 1"),
    ],
)
def test_what_can_not_be_simulated_is_named(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_calibrated_engine_is_simulated(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    constants = {"base_s": 0.02, "prefill_token_s": 1e-4, "prefill_pair_s": 0, "decode_s": 0.001}
    sizes = {"decode_context_s": 0, "request_s": 0, "kv_bytes_per_token": 1000, "kv_capacity_tokens": 90_000}
    fit = {"observations": 9, "median_error": 0, "p95_error": 0, "worst_error": 0}
    file = tmp_path / "timing.json"
    file.write_text(
        json.dumps({"format": "conserve-timing-v1", "model": "m", **constants, **sizes, "fit": fit})
    )
    found = document(capsys, "--gpu", f"h100@{file}")
    assert found["metrics"]["gap_p50_s"] >= 0.02


def test_a_host_tier_loads_what_was_evicted(capsys: pytest.CaptureFixture[str]) -> None:
    busy = ["--policy", "collocated", "--prefill", "0", "--decode", "1", "--gpu", "a100"]
    without = document(capsys, *busy)
    tiered = document(capsys, *busy, "--host-kv", "4000000", "--fetch-lead", "0.02", "--release-kv")
    assert without["loaded_from_host_tokens"] == 0
    assert tiered["metrics"]["cached_share"] >= without["metrics"]["cached_share"]


def test_a_configuration_s_host_memory_is_simulated(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    config = tmp_path / "conserve.toml"
    config.write_text("[pools.decode]\ncount = 1\nhost_kv_gib = 8\n")
    assert main([*SMALL, "--config", str(config)]) == 0
    assert "tokens loaded from host tiers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--host-kv", "0"), "more than 0 tokens"), (("--fetch-lead", "1"), "--host-kv")],
)
def test_a_host_tier_that_is_none_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert main([*SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_power_cap_slows_prefills_and_hardly_decodes(capsys: pytest.CaptureFixture[str]) -> None:
    pools = ("--policy", "collocated_sticky", "--prefill", "0", "--decode", "2")
    whole = document(capsys, *pools)
    capped = document(capsys, *pools, "--power-cap", "500")
    assert capped["metrics"]["ttft_s"]["p50"] > 1.1 * whole["metrics"]["ttft_s"]["p50"]
    assert 1 < capped["metrics"]["gap_p50_s"] / whole["metrics"]["gap_p50_s"] < 1.1
