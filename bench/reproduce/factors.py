"""One factor at a time: from the experiment as a user feels it, and from the one that was published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from bench.reproduce.cells import run_cell
from bench.reproduce.experiment import Experiment, Setting, published
from bench.reproduce.stitched import Stitching
from conserve_server.simulation.metrics import Clock

COMPARED = ("collocated", "full_disaggregation", "conserve")

Rows = list[dict[str, object]]


def factors(seeds: Sequence[int]) -> Mapping[str, Rows]:
    """Each factor's rows: what was changed, under which policy, and what came of it."""
    base = Experiment()
    return {
        "published_choices": _published_choices(base, seeds),
        "prefiller_kv": _prefiller_kv(base, seeds),
        "reservation": [
            _row(base, seeds, mode, Setting(policy, mode=mode))
            for policy in ("collocated", "conserve")
            for mode in ("oracle", "grow")
        ],
        "ampd_rule": [
            _row(base, seeds, "emulated, 10 % wrong", Setting("ampd_emulated")),
            _row(base, seeds, "its own rule", Setting("ampd")),
        ],
        "prefillers": [
            _row(base, seeds, f"{n} of 4", Setting(policy, prefillers=n))
            for policy in ("full_disaggregation", "conserve")
            for n in (1, 2, 3)
        ],
        "policies": [
            _row(base, seeds, policy, Setting(policy))
            for policy in ("collocated_sticky", "conditional", "ppd", "conserve_plus")
        ],
        "tool_gaps": _workloads(seeds, "gap", (0.0, 1.0, 3.4, 10.0), lambda gap: Experiment(gap_s=gap)),
        "appended_tokens": _workloads(
            seeds, "appended", (67, 250, 630, 1300), lambda n: Experiment(appended_tokens=int(n))
        ),
        "turns": _workloads(seeds, "turns", (2, 5, 10), lambda n: Experiment(turns=int(n))),
    }


def _prefiller_kv(base: Experiment, seeds: Sequence[int]) -> Rows:
    """What full disaggregation's prefiller still holds of a conversation when its next turn comes."""
    rows = []
    for sticky in (False, True):
        for kv in (1.0, 2.0, 2.5, 3.0, 4.0):
            setting = Setting("full_disaggregation", prefiller_kv=kv, is_sticky=sticky)
            name = f"{kv:g} x an A40's KV, {'keeps its engines' if sticky else 'least busy engines'}"
            rows.append(_row(base, seeds, name, setting))
    return rows


def _published_choices(base: Experiment, seeds: Sequence[int]) -> Rows:
    """From as published to as felt: each choice taken back alone, then all of them."""
    conserve, ampd = published("conserve"), published("ampd_emulated")
    rows = [
        _row(base, seeds, "as published", conserve),
        _row(base, seeds, "admission wait counted", replace(conserve, clock=Clock.ARRIVAL)),
        _row(base, seeds, "prefiller's queue and transfer counted", replace(conserve, stitching=None)),
        _row(base, seeds, "all counted", Setting("conserve")),
        _row(base, seeds, "as published", ampd),
        _row(base, seeds, "admission wait counted", replace(ampd, clock=Clock.ARRIVAL)),
        _row(base, seeds, "context counted once", replace(ampd, stitching=Stitching(doubles_context=False))),
        _row(
            base,
            seeds,
            "wrong turns computed again",
            replace(ampd, stitching=Stitching(moves_wrong_turns=False, doubles_context=False)),
        ),
        _row(base, seeds, "first turns queue too", replace(ampd, stitching=Stitching(skips_queue=False))),
        _row(
            base,
            seeds,
            "wrong turns overtake first turns",
            replace(ampd, stitching=Stitching(wrong_turns_overtake=True)),
        ),
        _row(base, seeds, "all counted", Setting("ampd_emulated")),
    ]
    collocated = published("collocated")
    rows.append(_row(base, seeds, "as published", collocated))
    rows.append(_row(base, seeds, "admission wait counted", replace(collocated, clock=Clock.ARRIVAL)))
    full = published("full_disaggregation")
    rows.append(_row(base, seeds, "as published", full))
    rows.append(_row(base, seeds, "admission wait left out", replace(full, clock=Clock.ADMISSION)))
    return rows


def _workloads(
    seeds: Sequence[int], name: str, values: Sequence[float], make: Callable[[float], Experiment]
) -> Rows:
    rows: Rows = []
    for value in values:
        changed = make(value)
        rows += [_row(changed, seeds, f"{name} {value:g}", Setting(policy)) for policy in COMPARED]
    return rows


def _row(experiment: Experiment, seeds: Sequence[int], change: str, setting: Setting) -> dict[str, object]:
    cell = run_cell(experiment, setting, seeds)
    return {
        "change": change,
        "policy": setting.policy,
        "p95_ttfet_x_alone": cell.p95_ttfet_x_alone.mean,
        "plus_minus": cell.p95_ttfet_x_alone.plus_minus,
        "p95_e2e_x_alone": cell.p95_e2e_x_alone.mean,
        "p95_last_tbt_x_alone": cell.p95_last_tbt_x_alone.mean,
        "tokens_per_joule": cell.tokens_per_joule.mean,
        "cached_share": cell.cached_share,
        "p95_first_ttft_s": cell.p95_first_ttft_s,
        "p95_later_ttft_s": cell.p95_later_ttft_s,
    }
