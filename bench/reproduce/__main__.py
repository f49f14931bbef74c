"""The paper's experiment, twice: as published, and as a user feels it; then one factor at a time.

    python -m bench.reproduce [--quick] [--output build]

Writes build/reproduction.json and build/reproduction.html. `--quick`: one seed, two rates.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.reproduce.cells import Cell, run_cell
from bench.reproduce.experiment import HEADLINE_RATE, RATES, SEEDS, Experiment, Setting, published
from bench.reproduce.factors import factors
from bench.reproduce.paper import PAPER, PAPER_ERROR_SWEEP, WRONG_SHARES
from bench.reproduce.report import write_report

POLICIES = {"collocated": "collocated", "full_disaggregation": "full_disaggregation",
            "ampd_10": "ampd_emulated", "conserve": "conserve"}  # fmt: skip

FEW = 3
"""Seeds of the curves over load and of the factors; the tables and the error sweep have all."""

Cells = dict[str, Cell]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed and two rates: a look, no result")
    parser.add_argument("--output", type=Path, default=Path("build"))
    args = parser.parse_args()
    seeds, rates = ((1,), (1.0, HEADLINE_RATE)) if args.quick else (SEEDS, RATES)
    found = reproduce(seeds, rates)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "reproduction.json").write_text(json.dumps(found, indent=2) + "\n")
    write_report(found, args.output / "reproduction.html")
    print(summary(found))
    print(f"report: {args.output / 'reproduction.html'}")


def reproduce(seeds: Sequence[int], rates: Sequence[float]) -> dict[str, object]:
    """Everything that the report shows, as JSON."""
    started_s = time.monotonic()
    experiment = Experiment()
    as_published = {name: run_cell(experiment, published(p), seeds) for name, p in POLICIES.items()}
    as_felt = {name: run_cell(experiment, Setting(p), seeds) for name, p in POLICIES.items()}
    capped = {
        name: run_cell(experiment, published(p, decoder_cap_w=200.0), seeds) for name, p in POLICIES.items()
    }
    felt_capped = {
        name: run_cell(experiment, Setting(p, decoder_cap_w=200.0), seeds) for name, p in POLICIES.items()
    }
    return {
        "command": shlex.join(["python", "-m", "bench.reproduce", *sys.argv[1:]]),
        "python": platform.python_version(),
        "seeds": list(seeds),
        "energy": "modelled",
        "as_published": _table(as_published),
        "as_felt": _table(as_felt),
        "headline": headline(as_published, capped, as_felt, felt_capped),
        "paper": PAPER,
        "comparison": comparison(as_published),
        "decoders_at_200_w": {"as_published": _table(capped), "as_felt": _table(felt_capped)},
        "over_rates": _over_rates(experiment, seeds[:FEW], rates),
        "error_sweep": _error_sweep(experiment, seeds),
        "factors": factors(seeds[:FEW]),
        "took_s": time.monotonic() - started_s,
    }


def _table(cells: Cells) -> dict[str, object]:
    """As the report's readers look it up: figure, then policy."""
    return {
        "p95_ttfet_x_alone": {name: cell.p95_ttfet_x_alone.mean for name, cell in cells.items()},
        "tokens_per_joule": {name: cell.tokens_per_joule.mean for name, cell in cells.items()},
        "cells": {name: cell.to_json() for name, cell in cells.items()},
    }


def headline(published_: Cells, capped: Cells, felt: Cells, felt_capped: Cells) -> dict[str, object]:
    """The three numbers of the paper's abstract, in percent, beside ours."""

    def numbers(cells: Cells, at_200_w: Cells) -> dict[str, object]:
        ours, ampd, tiers = cells["conserve"], cells["ampd_10"], at_200_w["conserve"]
        joule = ours.tokens_per_joule.mean
        ends = zip(
            tiers.tokens_per_joule_range,
            ours.tokens_per_joule_range,
            ampd.tokens_per_joule_range,
            strict=True,
        )
        by_watts = [(100 * (capped / own - 1), 100 * (own / theirs - 1)) for capped, own, theirs in ends]
        return {
            "p95_ttfet_percent": 100 * (ours.p95_ttfet_x_alone.mean / ampd.p95_ttfet_x_alone.mean - 1),
            "energy_efficiency_percent": 100 * (joule / ampd.tokens_per_joule.mean - 1),
            "energy_efficiency_percent_range": sorted(by_policy for _, by_policy in by_watts),
            "tiers_energy_efficiency_percent": 100 * (tiers.tokens_per_joule.mean / joule - 1),
            "tiers_energy_efficiency_percent_range": sorted(by_cap for by_cap, _ in by_watts),
        }

    return {
        "paper": {
            "p95_ttfet_percent": -51.08,
            "energy_efficiency_percent": 7.51,
            "tiers_energy_efficiency_percent": 22.75,
        },
        "as_published": numbers(published_, capped),
        "as_felt": numbers(felt, felt_capped),
    }


def comparison(cells: Cells) -> dict[str, object]:
    """Ours against the paper's table: ratios of 1 agree."""
    paper_ttfet, paper_joule = PAPER["p95_ttfet_x_alone"], PAPER["tokens_per_joule"]
    ttfet = {n: c.p95_ttfet_x_alone.mean / paper_ttfet[n] for n, c in cells.items()}
    base, paper_base = cells["conserve"].tokens_per_joule.mean, paper_joule["conserve"]
    joule = {n: (c.tokens_per_joule.mean / base) / (paper_joule[n] / paper_base) for n, c in cells.items()}
    ours = sorted(cells, key=lambda n: cells[n].p95_ttfet_x_alone.mean)
    return {
        "ordering_equal": ours == sorted(cells, key=lambda n: paper_ttfet[n]),
        "p95_ttfet_ours_over_paper": ttfet,
        "tokens_per_joule_relative_to_conserve_ours_over_paper": joule,
        "within_20_percent": {
            "p95_ttfet_x_alone": {n: abs(value - 1) <= 0.2 for n, value in ttfet.items()},
            "tokens_per_joule": {n: abs(value - 1) <= 0.2 for n, value in joule.items()},
        },
    }


def _over_rates(experiment: Experiment, seeds: Sequence[int], rates: Sequence[float]) -> Mapping[str, object]:
    def row(name: str, rate: float) -> dict[str, object]:
        ways = {
            "as_published": published(POLICIES[name], rate),
            "as_felt": Setting(POLICIES[name], rate),
            "as_felt_decoders_at_200_w": Setting(POLICIES[name], rate, decoder_cap_w=200.0),
        }
        cells = {way: run_cell(experiment, setting, seeds) for way, setting in ways.items()}
        return {"rate_per_s": rate, **{way: cell.to_json() for way, cell in cells.items()}}

    return {name: [row(name, rate) for rate in rates] for name in POLICIES}


def _error_sweep(experiment: Experiment, seeds: Sequence[int]) -> list[dict[str, object]]:
    rows = []
    for share, paper in zip(WRONG_SHARES, PAPER_ERROR_SWEEP, strict=True):
        as_published = run_cell(experiment, published("ampd_emulated", wrong_share=share), seeds)
        as_felt = run_cell(experiment, Setting("ampd_emulated", wrong_share=share), seeds)
        rows.append(
            {
                "wrong_share": share,
                "paper_p95_ttfet_x_alone": paper,
                "as_published": as_published.to_json(),
                "as_felt": as_felt.to_json(),
            }
        )
    return rows


def summary(found: dict[str, object]) -> str:
    """What a terminal shows."""
    return json.dumps({key: found[key] for key in ("comparison", "headline")}, indent=2)


if __name__ == "__main__":
    main()
