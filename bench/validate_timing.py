"""The engine model against a real vLLM run: TTFT, TPOT and E2E of each request, simulated and measured.

    make validate                  (data: docs/workloads.md, in the folder $CONSERVE_DATA)
    python bench/validate_timing.py [--output build/validation.json]

300 ShareGPT requests that vLLM 0.19.0 served (Llama-3.1-8B, bf16, one RTX PRO 6000, max_num_seqs 128,
max_num_batched_tokens 2048). They arrive at the simulated engine when they were queued at the real
one. Kernel times are the shipped grid's; the host's overhead, two constants, is fitted on every
second request and checked on the others: nothing else is adjusted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from conserve_server.energy.modelled import A40
from conserve_server.scheduling.policies.collocated import Collocated
from conserve_server.simulation.engine_model import EngineSettings
from conserve_server.simulation.fleet import Fleet, Options, SimulatedEngine
from conserve_server.simulation.simulator import Simulator
from conserve_server.simulation.timing_grid import DEFAULT_OVERHEAD, GridTiming, HostOverhead, load_grid
from conserve_server.simulation.workload import Arrival, ConversationShape, TurnShape, Workload
from conserve_server.simulation.workloads.reading import csv_rows, data_file

FILE = "vllm_0_19_rtxpro6000_llama31_8b.csv.gz"
COLUMNS = (
    "queued_s",
    "input_tokens",
    "prefix_tokens_seen_before",
    "output_tokens",
    "first_token_s",
    "last_token_s",
)
SETTINGS = EngineSettings(max_num_seqs=128, max_num_batched_tokens=2048)
TARGET = 0.05
# The fit looks at a coarse grid of both constants, then around the best of it.
STEP_MS: Sequence[float] = (0.0, 0.3, 0.6, 0.9, 1.2)
SEQUENCE_MS: Sequence[float] = (0.0, 0.015, 0.03, 0.045, 0.06)
REFINEMENTS = 3

Times = dict[str, list[float]]
"""By metric, a value for each request in the order of their arrival."""
Metrics = dict[str, dict[str, dict[str, float]]]
"""By metric and statistic: measured, simulated, and the relative error."""


@dataclass(frozen=True)
class Served:
    """What the real engine served: the workload, and each request's times."""

    workload: Workload
    times: Times


def main() -> None:
    options = parse(sys.argv[1:])
    served = read_served()
    began_s = time.perf_counter()
    overhead = fitted(served)
    simulated = simulate(served.workload, overhead)
    unfitted = half(served.times, simulate(served.workload, DEFAULT_OVERHEAD), 1)
    halves = {
        "fitted_on": half(served.times, simulated, 0),
        "checked_on": half(served.times, simulated, 1),
    }
    worst = worst_error(halves["checked_on"])
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.platform()}, {platform.machine()}, {os.cpu_count()} logical CPUs",
        "versions": {
            "python": platform.python_version(),
            "conserve-sdk": importlib.metadata.version("conserve-sdk"),
        },
        "grid": load_grid("rtx-pro-6000", "llama-3.1-8b").source,
        "requests": len(served.workload.arrivals),
        "overhead": asdict(overhead),
        "target": TARGET,
        "worst_checked_error": worst,
        "within_target": worst <= TARGET,
        "worst_error_with_default_overhead": worst_error(unfitted),
        "seconds": time.perf_counter() - began_s,
        **halves,
    }
    print(table(halves["checked_on"]))
    print(f"host overhead {overhead}: worst error {worst:.1%}, target {TARGET:.0%}")
    print(f"with the default overhead, fitted on nothing: worst error {worst_error(unfitted):.1%}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/validation.json"))
    return parser.parse_args(arguments)


def read_served() -> Served:
    """The run. Of a prompt whose beginning was cached, only the rest is simulated (32 requests)."""
    arrivals: list[Arrival] = []
    times: Times = {"ttft": [], "tpot": [], "e2e": []}
    for line, row in csv_rows(data_file(FILE), COLUMNS):
        new = int(row["input_tokens"] - row["prefix_tokens_seen_before"])
        turn = TurnShape(max(new, 1), int(row["output_tokens"]))
        arrivals.append(Arrival(row["queued_s"], ConversationShape(str(line), (turn,))))
        add(times, row["queued_s"], (row["first_token_s"], row["last_token_s"]), turn.output_tokens)
    return Served(Workload(FILE, arrivals), times)


def add(times: Times, arrived_s: float, ends_s: tuple[float, float], tokens: int) -> None:
    """A request's times; `ends_s` are those of its first and its last token."""
    first_s, last_s = ends_s
    times["ttft"].append(first_s - arrived_s)
    times["tpot"].append((last_s - first_s) / max(tokens - 1, 1))
    times["e2e"].append(last_s - arrived_s)


def simulate(workload: Workload, overhead: HostOverhead) -> Times:
    """Each request's times on the engine model."""
    timing = GridTiming(load_grid("rtx-pro-6000", "llama-3.1-8b"), overhead=overhead)
    engine = SimulatedEngine(
        name="engine", timing=timing, power=A40, settings=SETTINGS, takes_conversations=True
    )
    options = Options(reports_every_s=None, kv_budget_fraction=1.0)
    records = Simulator(Collocated(), Fleet((engine,)), options).run(workload).records
    times: Times = {"ttft": [], "tpot": [], "e2e": []}
    for row in sorted(range(len(records)), key=records.conversation.__getitem__):
        ends = records.first_token_s[row], records.ended_s[row]
        add(times, records.arrived_s[row], ends, records.output_tokens[row])
    return times


def fitted(served: Served) -> HostOverhead:
    """The constants with the least error on the first half of the requests."""
    steps, sequences = STEP_MS, SEQUENCE_MS
    best = HostOverhead(0.0, 0.0)
    for _ in range(1 + REFINEMENTS):
        candidates = [HostOverhead(a / 1e3, b / 1e3) for a, b in itertools.product(steps, sequences)]
        best = min(candidates, key=lambda each: error(served, simulate(served.workload, each)))
        steps = around(best.step_s * 1e3, steps)
        sequences = around(best.sequence_s * 1e3, sequences)
    return best


def around(best: float, tried: Sequence[float]) -> tuple[float, ...]:
    """Five points on both sides of the best, half as far apart."""
    apart = (tried[1] - tried[0]) / 2
    return tuple(sorted({max(best + apart * place, 0.0) for place in (-2, -1, 0, 1, 2)}))


def error(served: Served, simulated: Times) -> float:
    compared = half(served.times, simulated, 0)
    return sum(abs(each["error"]) for metric in compared.values() for each in metric.values())


def worst_error(metrics: Metrics) -> float:
    return max(abs(each["error"]) for metric in metrics.values() for each in metric.values())


def half(measured: Times, simulated: Times, first: int) -> Metrics:
    """Over every second request."""
    return {
        metric: {
            name: compared(of(measured[metric][first::2]), of(simulated[metric][first::2]))
            for name, of in STATISTICS.items()
        }
        for metric in measured
    }


def compared(measured: float, simulated: float) -> dict[str, float]:
    return {"measured_s": measured, "simulated_s": simulated, "error": simulated / measured - 1}


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "p50": statistics.median,
    "p95": p95,
}


def table(metrics: Metrics) -> str:
    rows = [f"{'':6}{'':6}{'measured s':>12}{'simulated s':>13}{'error':>9}"]
    for metric, each in metrics.items():
        for name, found in each.items():
            figures = f"{found['measured_s']:12.4f}{found['simulated_s']:13.4f}{found['error']:+9.1%}"
            rows.append(f"{metric:6}{name:6}{figures}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
