"""The comparison of policies: the search for goodput, the tiers, and how candidates are set up."""

from __future__ import annotations

import math

import pytest

from bench.policies.__main__ import _cell, _has_a_chance
from bench.policies.candidates import BASELINES, CANDIDATES, FLEETS, FULL_DISAGGREGATION, OURS
from bench.policies.goodput import HIGHEST, LOWEST, NARROW, TIERS, Point, Search, rate_of, step_of
from bench.policies.workloads import MAX_CONTEXT_TOKENS, conversations
from conserve_server.core.errors import ConserveError


def point(ttfet: float = 1.0, gap_s: float = 0.01, first_s: float = 1.0, later_s: float = 0.1) -> Point:
    return Point(1.0, ttfet, gap_s, first_s, later_s, 0.1, 1.0, 1.0, 100.0, 1.0, (0.5, 2.0), 1.0, 0.5)


def searched(last_that_passes: int) -> Search:
    """A search whose runs are made: those above the given step are too slow."""
    search = Search(OURS, "4xH100", "A", 1, "poisson")
    search.points = {
        step: point(ttfet=1.0 if step <= last_that_passes else 9.0) for step in range(LOWEST - 4, HIGHEST + 6)
    }
    return search


@pytest.mark.parametrize("last", [-20, -1, 0, 3, 7, 22])
@pytest.mark.parametrize("start", [-8, 0, 9])
def test_the_search_finds_the_highest_rate_that_passes(last: int, start: int) -> None:
    assert searched(last).goodput(TIERS["L"], start) == last


def test_a_tier_that_no_rate_passes_has_no_goodput() -> None:
    assert searched(LOWEST - 5).goodput(TIERS["L"], 0) is None


def test_a_load_that_nothing_is_too_much_for_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="raise the workload's count"):
        searched(HIGHEST + 9).goodput(TIERS["L"], 0)


def test_each_target_of_a_tier_counts() -> None:
    tier = TIERS["M"]
    assert point().passes(tier)
    for worse in (point(ttfet=3.1), point(gap_s=0.041), point(first_s=3.1), point(later_s=1.6)):
        assert not worse.passes(tier)


def test_steps_and_rates_are_each_others_inverse() -> None:
    assert [step_of(rate_of(step)) for step in (-9, 0, 14)] == [-9, 0, 14]


@pytest.mark.parametrize("fleet", sorted(FLEETS))
def test_every_candidate_has_engines_for_all_it_does(fleet: str) -> None:
    for candidate in CANDIDATES:
        engines = candidate.fleet(fleet).engines
        assert any(engine.takes_conversations for engine in engines)
        assert all(engine.takes_prefills or engine.takes_conversations for engine in engines)


def test_a_cell_compares_with_the_best_baseline_and_says_how_sure_it_is() -> None:
    def run(*goodputs: float) -> list[dict[str, object]]:
        return [{tier: {"goodput_per_s": value, "run": None} for tier in TIERS} for value in goodputs]

    runs = {
        f"{name} #{seed}": found
        for name, values in ((OURS.name, run(2.0, 4.0)), (BASELINES[0].name, run(1.0, 2.0)))
        for seed, found in enumerate(values, start=1)
    }
    cell = _cell("A/4xH100/poisson", "L", runs, (1, 2))
    assert cell["best_baseline"] == BASELINES[0].name
    assert cell["ours_over_best_baseline"] == 2.0
    ours = cell["policies"][OURS.name]  # type: ignore[index]
    assert ours["plus_minus"] == pytest.approx(1.96 * math.sqrt(2 / 2))


def test_sessions_are_cut_at_the_context_that_the_comparison_is_about() -> None:
    try:
        sessions = conversations("B")
    except ConserveError as error:
        pytest.skip(str(error))
    for session in sessions:
        context = 0
        for turn in session.turns:
            kept = context if turn.rewrites_from_tokens is None else min(context, turn.rewrites_from_tokens)
            context = kept + turn.appended_tokens + turn.output_tokens
            assert context <= MAX_CONTEXT_TOKENS


@pytest.mark.parametrize("last", [-20, 0, 3, 9])
def test_a_search_that_begins_near_the_end_finds_the_same(last: int) -> None:
    assert searched(last).goodput(TIERS["L"], last + 2, NARROW) == last
    assert searched(last).goodput(TIERS["L"], last - 2, NARROW) == last


def test_baselines_far_behind_in_every_tier_are_run_with_one_seed_only() -> None:
    near, far, full = BASELINES[1], BASELINES[0], next(c for c in BASELINES if c.name == FULL_DISAGGREGATION)
    goodputs = {near: (3.0, 0.5), far: (2.0, 0.9), full: (0.5, 0.1), BASELINES[2]: (2.0, 1.2)}
    found: dict[str, dict[str, object]] = {
        f"{candidate.name} #1": {
            tier: {"goodput_per_s": loose if tier == "L" else tight, "run": None} for tier in TIERS
        }
        for candidate, (loose, tight) in goodputs.items()
    }
    chances = {c.name for c in (*goodputs, OURS) if _has_a_chance(c, found, 1)}
    assert chances == {near.name, full.name, BASELINES[2].name, OURS.name}
