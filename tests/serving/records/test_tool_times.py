"""A keep follows the durations that were seen of a tool."""

from __future__ import annotations

from conserve_server.core.kv_config import KvConfig
from conserve_server.serving.records.tool_times import TOOLS, ToolTimes

CONFIG = KvConfig(keep_quantile=0.9, keep_margin=2.0, first_keep_s=30.0, min_keep_s=1.0, max_keep_s=100.0)


def times(*seen_s: float) -> ToolTimes:
    found = ToolTimes(CONFIG)
    for duration_s in seen_s:
        found.learn("t", "search", duration_s)
    return found


def test_a_tool_that_was_not_seen_gets_the_configured_time() -> None:
    assert times().keep_s("t", "search") == 30.0


def test_the_keep_is_the_quantile_of_what_was_seen_times_the_margin() -> None:
    assert times(*range(1, 11)).keep_s("t", "search") == 18.0


def test_one_long_call_among_many_does_not_decide() -> None:
    assert times(*[2.0] * 19, 50.0).keep_s("t", "search") == 4.0


def test_the_keep_has_bounds() -> None:
    assert times(0.001).keep_s("t", "search") == 1.0
    assert times(9_999.0).keep_s("t", "search") == 100.0


def test_old_calls_are_forgotten() -> None:
    assert times(*[50.0] * 64, *[2.0] * 64).keep_s("t", "search") == 4.0


def test_a_tenant_s_tools_are_its_own() -> None:
    assert times(5.0).keep_s("other", "search") == 30.0


def test_the_tools_called_longest_ago_are_forgotten_first() -> None:
    found = times(5.0)
    for i in range(TOOLS):
        found.learn("t", f"tool-{i}", 3.0)
    assert found.keep_s("t", "search") == 30.0
    assert found.keep_s("t", "tool-0") == 6.0
