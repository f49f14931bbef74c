"""The published experiment: what stitching leaves out, and that the report holds what it promises."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace

import pytest

from bench.reproduce.__main__ import reproduce
from bench.reproduce.experiment import HEADLINE_RATE, Experiment, Setting, fleet, published
from bench.reproduce.report import write_report
from bench.reproduce.stitched import StitchedSimulator, Stitching, alone_s
from conserve_server.core.errors import ConserveError
from conserve_server.core.policy_config import AMPDEmulatedConfig
from conserve_server.scheduling.policies.ampd_emulated import AMPDEmulated
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policy import Policy
from conserve_server.simulation.fleet import Options
from conserve_server.simulation.simulator import Outcome
from tests.simulation.fleets import conversation, ttft_s, workload


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    try:
        return Experiment()
    except ConserveError as error:
        pytest.skip(str(error))


def stitched(policy: Policy, stitching: Stitching, count: int = 6) -> Outcome:
    """So many conversations of two turns that arrive at once."""
    work = workload(*((0.0, conversation(f"c{n}", (8000, 20), (67, 600), gap_s=0.0)) for n in range(count)))
    where = fleet(Setting("conserve"))
    return StitchedSimulator(policy, where, Options(), stitching).run(work)


def test_a_stitched_first_turn_waits_for_nobody() -> None:
    outcome = stitched(ConServe(), Stitching())
    alone = alone_s(outcome.engines["p0"], 8000)
    first = [t for t, index in zip(ttft_s(outcome), outcome.records.index, strict=True) if index == 0]
    assert first == pytest.approx([alone] * 6, abs=0.15)


def test_the_prefiller_works_stitched_turns_off_all_the_same() -> None:
    outcome = stitched(ConServe(), Stitching())
    assert outcome.engines["p0"].activity.prefill_tokens == 6 * 8000


def test_a_wrong_turn_waits_behind_the_first_turns_unless_it_overtakes() -> None:
    always_wrong = AMPDEmulated(AMPDEmulatedConfig(wrong_share=1.0))
    waits, overtakes = (
        max(t for t, i in zip(ttft_s(outcome), outcome.records.index, strict=True) if i == 1)
        for outcome in (
            stitched(always_wrong, Stitching(), count=20),
            stitched(always_wrong, Stitching(wrong_turns_overtake=True), count=20),
        )
    )
    assert waits > 2 * overtakes


def test_without_any_choice_the_stitched_simulator_is_the_simulator() -> None:
    none = Stitching(skips_queue=False, moves_wrong_turns=False, doubles_context=False)
    first = sorted(ttft_s(stitched(ConServe(), none)))
    assert first[-1] > 5 * alone_s(stitched(ConServe(), none).engines["p0"], 8000)


@pytest.mark.slow
def test_as_published_policies_are_ordered_as_in_the_paper(experiment: Experiment) -> None:
    names = ("conserve", "collocated", "ampd_emulated", "full_disaggregation")
    found = [experiment.run(published(name), 1).metrics.x_alone for name in names]
    ratios = [each.ttfet.p95 for each in found if each is not None]
    assert ratios == sorted(ratios)
    assert ratios[0] < 5


@pytest.mark.slow
def test_as_felt_nothing_is_better_than_as_published(experiment: Experiment) -> None:
    for name in ("conserve", "ampd_emulated", "collocated"):
        felt, told = (experiment.run(s, 1).metrics.x_alone for s in (Setting(name), published(name)))
        assert felt is not None
        assert told is not None
        assert felt.ttfet.p95 >= told.ttfet.p95


@pytest.mark.slow
def test_a_power_cap_slows_the_decoders(experiment: Experiment) -> None:
    own, capped = (
        experiment.run(replace(Setting("conserve", 1.0), decoder_cap_w=w), 1) for w in (300.0, 200.0)
    )
    assert capped.metrics.last_tbt_s.mean > own.metrics.last_tbt_s.mean


@pytest.mark.slow
def test_the_report_holds_what_was_found(experiment: Experiment, tmp_path: pathlib.Path) -> None:
    found = reproduce((1,), (HEADLINE_RATE,))
    for way in ("as_published", "as_felt"):
        for figure in ("p95_ttfet_x_alone", "tokens_per_joule"):
            assert set(found[way][figure]) == {  # type: ignore[index]
                "collocated",
                "full_disaggregation",
                "ampd_10",
                "conserve",
            }
    write_report(json.loads(json.dumps(found)), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 6
