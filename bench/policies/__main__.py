"""Goodput of the policies on real sessions and profiles, cell by cell: `make bench-policies`.

    python -m bench.policies [--quick] [--workloads A,B] [--fleets 4xH100] [--kinds poisson] [--jobs 2]

A cell is a workload on a fleet under an arrival process; each policy has a goodput in each tier,
the mean over the arrival seeds with its 95 % interval. All baselines are run with the first seed;
with the others those that came near the best of them in some tier, and full disaggregation. What
was found is kept in build/policies-runs.json after each policy and seed, so that a run that was
stopped goes on where it was. Writes build/policies.json. `--quick`: one workload, two seeds, the
main policies.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from math import sqrt
from pathlib import Path

from bench.policies.candidates import (
    BASELINES,
    CANDIDATES,
    FLEETS,
    FULL_DISAGGREGATION,
    OURS,
    Candidate,
)
from bench.policies.goodput import NARROW, TIERS, WIDE, Search, rate_of, step_of
from bench.policies.workloads import SOURCES

SEEDS = (1, 2, 3, 4, 5)
KINDS = ("poisson", "bursty")
START_PER_ENGINE = {"A": 0.5, "A2": 0.4, "B": 0.15, "BS": 0.2, "C": 2.5, "S": 0.15}
"""Conversations a second for each engine that a search begins with."""

CHANCE = 0.8
"""A baseline under this share of the best one's goodput, in all tiers, is not run with more seeds."""

Cell = tuple[str, str, str]
"""Workload, fleet and arrival process."""
Found = dict[str, dict[str, dict[str, object]]]
"""By cell and policy with seed, then tier: the goodput and the run at it."""


def main() -> None:
    args = _arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    runs = args.output / "policies-runs.json"
    found: Found = json.loads(runs.read_text()) if runs.exists() else {}
    with ProcessPoolExecutor(args.jobs) as pool:
        for cell in args.cells:
            of_cell = found.setdefault("/".join(cell), {})
            first, *others = args.seeds
            todo = [(candidate, first) for candidate in args.candidates]
            _search_all(pool, cell, todo, of_cell, lambda: _write(runs, found))
            todo = [(c, seed) for seed in others for c in args.candidates if _has_a_chance(c, of_cell, first)]
            _search_all(pool, cell, todo, of_cell, lambda: _write(runs, found))
    document = _document(found, args.seeds)
    _write(args.output / "policies.json", document)
    for row in document["cells"]:  # type: ignore[attr-defined]
        print(_line(row))


def _search_all(
    pool: Executor,
    cell: Cell,
    todo: Sequence[tuple[Candidate, int]],
    found: dict[str, dict[str, object]],
    keep: Callable[[], None],
) -> None:
    """Search what is not found yet, and keep each result as it comes."""
    searches = {
        pool.submit(_search, CANDIDATES.index(candidate), cell, seed, _near(found, candidate)): key
        for candidate, seed in todo
        if (key := _key(candidate, seed)) not in found
    }
    for search in as_completed(searches):
        found[searches[search]] = search.result()
        keep()


def _key(candidate: Candidate, seed: int) -> str:
    return f"{candidate.name} #{seed}"


def _near(found: Mapping[str, Mapping[str, object]], candidate: Candidate) -> dict[str, int]:
    """The steps, by tier, at which the candidate's first search ended; none before it."""
    tiers = next((tiers for key, tiers in found.items() if key.rpartition(" #")[0] == candidate.name), {})
    rates = {name: tier["goodput_per_s"] for name, tier in tiers.items()}  # type: ignore[index]
    return {name: step_of(rate) for name, rate in rates.items() if rate}


def _has_a_chance(candidate: Candidate, found: Mapping[str, Mapping[str, object]], seed: int) -> bool:
    """Whether it may be the best baseline of some tier, by the first seed; all others are wanted anyway."""
    if candidate.kind != "baseline" or candidate.name == FULL_DISAGGREGATION:
        return True
    of_seed = {c.name: found[_key(c, seed)] for c in BASELINES if _key(c, seed) in found}
    rates = {name: {tier: _rate(tiers[tier]) for tier in TIERS} for name, tiers in of_seed.items()}
    best = {tier: max(each[tier] for each in rates.values()) for tier in TIERS}
    return any(rates[candidate.name][tier] >= CHANCE * best[tier] > 0 for tier in TIERS)


def _rate(tier: object) -> float:
    return float(tier["goodput_per_s"])  # type: ignore[index]


def _write(path: Path, document: object) -> None:
    """Replace the file as a whole: a run that is stopped while it writes loses nothing."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    beside.replace(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--workloads", type=_names, default=tuple(SOURCES))
    parser.add_argument("--fleets", type=_names, default=tuple(FLEETS))
    parser.add_argument("--kinds", type=_names, default=KINDS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many (default: 5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--output", type=Path, default=Path("build"))
    args = parser.parse_args()
    if args.quick:
        args.workloads, args.fleets, args.kinds, args.seeds = ("A",), tuple(FLEETS)[:1], KINDS[:1], 2
    args.cells = [(w, f, k) for f in args.fleets for w in args.workloads for k in args.kinds]
    args.seeds = SEEDS[: args.seeds]
    args.candidates = CANDIDATES[:6] if args.quick else CANDIDATES
    return args


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _search(number: int, cell: Cell, seed: int, near: Mapping[str, int]) -> dict[str, object]:
    """The candidate's goodput in each tier, easiest first, and what the run at it was like.

    `near`: by tier, where another seed's search ended; the next tier of a search that knows
    none begins where the tier before ended.
    """
    workload, fleet, kind = cell
    search = Search(CANDIDATES[number], fleet, workload, seed, kind)  # type: ignore[arg-type]
    step = step_of(START_PER_ENGINE[workload] * len(FLEETS[fleet]))
    tiers: dict[str, object] = {}
    for name, tier in TIERS.items():
        start, stride = (near[name], NARROW) if name in near else (step, WIDE)
        best = search.goodput(tier, start, stride)
        if best is None:
            tiers[name] = {"goodput_per_s": 0.0, "run": None}
            continue
        step = best
        tiers[name] = {"goodput_per_s": rate_of(best), "run": asdict(search.points[best])}
    return tiers


# -- what is written -----------------------------------------------------------------------------


def _document(found: Found, seeds: Sequence[int]) -> dict[str, object]:
    cells = [_cell(name, tier, runs, seeds) for name, runs in found.items() for tier in TIERS if runs]
    return {
        "command": shlex.join(["python", "-m", "bench.policies", *sys.argv[1:]]),
        "python": platform.python_version(),
        "model": "Qwen3-8B",
        "energy": "modelled",
        "tiers": {name: asdict(tier) for name, tier in TIERS.items()},
        "cells": cells,
    }


def _cell(
    name: str, tier: str, runs: Mapping[str, Mapping[str, object]], seeds: Sequence[int]
) -> dict[str, object]:
    workload, fleet, kind = name.split("/")
    policies = {}
    for candidate in CANDIDATES:
        each = [runs[key][tier] for seed in seeds if (key := f"{candidate.name} #{seed}") in runs]
        if each:
            policies[candidate.name] = {"kind": candidate.kind, **_goodput(each)}
    seeds_run = {name: int(str(p["seeds"])) for name, p in policies.items()}
    compared = {n: p for n, p in policies.items() if seeds_run[n] == max(seeds_run.values())}
    baselines = {n: p["goodput_per_s"] for n, p in compared.items() if p["kind"] == "baseline"}
    best = max(baselines, key=lambda n: float(str(baselines[n])), default=None)
    ours = policies.get(OURS.name, {}).get("goodput_per_s")
    top = baselines.get(best) if best else None
    full = baselines.get(FULL_DISAGGREGATION)
    return {
        "workload": workload,
        "fleet": fleet,
        "arrivals": kind,
        "tier": tier,
        "policies": policies,
        "best_baseline": best,
        "ours_over_best_baseline": _ratio(ours, top),
        "ours_over_full_disaggregation": _ratio(ours, full),
    }


def _goodput(each: Sequence[object]) -> dict[str, object]:
    """Mean and 95 % interval over the seeds, and the run of the first seed at its goodput."""
    values = [float(run["goodput_per_s"]) for run in each]  # type: ignore[index]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
    return {
        "goodput_per_s": mean,
        "plus_minus": 1.96 * sqrt(variance / len(values)),
        "seeds": len(values),
        "by_seed": values,
        "run": each[0]["run"],  # type: ignore[index]
    }


def _ratio(ours: object, other: object) -> float | None:
    if not isinstance(ours, float) or not isinstance(other, float) or not other:
        return None
    return ours / other


def _line(row: Mapping[str, object]) -> str:
    ratio = row["ours_over_best_baseline"]
    told = f"{ratio:.2f} x" if isinstance(ratio, float) else "-"
    where = f"{row['workload']:3} {row['fleet']:14} {row['arrivals']:8} {row['tier']}"
    return f"{where}  ConServe+ {told} the best baseline ({row['best_baseline']})"


if __name__ == "__main__":
    main()
