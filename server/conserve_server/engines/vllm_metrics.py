"""What a vLLM engine's Prometheus page says about its load and its KV cache.

Only the few wanted lines are parsed: a vLLM page has about a thousand, and it is read every
second. Names as of vLLM 0.31–0.33. A page is another program's: whatever is wrong with it is a
ValueError that says so, never a number that the gateway would count with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

RUNNING: Final = "vllm:num_requests_running"
WAITING: Final = "vllm:num_requests_waiting"
KV_USAGE: Final = "vllm:kv_cache_usage_perc"
CACHE_CONFIG: Final = "vllm:cache_config_info"
STARTED: Final = "process_start_time_seconds"
TRANSFERS: Final = "vllm:nixl_xfer_time_seconds_count"
TRANSFER_BYTES: Final = "vllm:nixl_bytes_transferred_sum"
REQUESTS: Final = "vllm:request_success_total"
MAX_SAMPLES: Final = 4_096
"""Wanted lines of one page: five for each data-parallel rank."""
MAX_COUNT: Final = 2**53
"""Larger requests, blocks or tokens are none."""
_ROUNDING: Final = 1e-6
"""vLLM subtracts the free share from 1."""
_WANTED: Final = (RUNNING, WAITING, KV_USAGE, CACHE_CONFIG, STARTED)


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """Load and KV cache now. `kv_usage` is a share from 0 to 1; `generation` is the process's start time."""

    running: int
    waiting: int
    kv_usage: float
    kv_capacity_tokens: int | None
    generation: str


def read_metrics(page: str) -> EngineMetrics:
    """Read a `/metrics` page. Data-parallel ranks are summed; KV use is their highest.

    Raises ValueError, which names the series, for a page that is not vLLM's: no load on it, a
    value that no load can have, the same series twice.
    """
    samples = wanted_samples(page, _WANTED)
    _refuse_repeated(samples)
    started = [_number(s, 0.0, MAX_COUNT) for s in samples if s.name == STARTED]
    return EngineMetrics(
        running=int(sum(_load(samples, RUNNING, MAX_COUNT))),
        waiting=int(sum(_load(samples, WAITING, MAX_COUNT))),
        kv_usage=min(max(0.0, *_load(samples, KV_USAGE, 1.0)), 1.0),
        kv_capacity_tokens=capacity_tokens(samples),
        generation=str(started[0]) if started else "",
    )


def wanted_samples(page: str, names: tuple[str, ...]) -> list[Sample]:
    """The samples of these names, in the page's order. Raises ValueError for lines that are none."""
    # Not splitlines: a label may hold what that takes for the end of a line.
    lines = [line for line in page.split("\n") if line.startswith(names)]
    if len(lines) > MAX_SAMPLES:
        raise ValueError(f"{len(lines)} lines of {names[0]} and the like, more than {MAX_SAMPLES}")
    try:
        families = tuple(text_string_to_metric_families("\n".join(lines) + "\n"))
    except ValueError:
        raise
    except Exception as error:  # the parser promises nothing about pages that are none
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return [s for family in families for s in family.samples if s.name in names]


def total(page: str, name: str) -> float:
    """The sum of a counter over its labels; 0 where the engine has not counted yet."""
    return sum(s.value for s in wanted_samples(page, (name,)))


def capacity_tokens(samples: Iterable[Sample]) -> int | None:
    """The KV cache of all ranks in tokens; None where the engine does not say. Raises ValueError."""
    ranks = [s.labels for s in samples if s.name == CACHE_CONFIG]
    sizes = [(r.get("num_gpu_blocks", "None"), r.get("block_size", "None")) for r in ranks]
    if any("None" in size for size in sizes):
        return None
    tokens = sum(_whole(blocks) * _whole(block_size) for blocks, block_size in sizes)
    if tokens > MAX_COUNT:
        raise ValueError(f"{CACHE_CONFIG} means {tokens} tokens")
    return tokens or None


def _refuse_repeated(samples: Iterable[Sample]) -> None:
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for sample in samples:
        series = sample.name, frozenset(sample.labels.items())
        if series in seen:
            raise ValueError(f"{sample.name} is there twice with the same labels")
        seen.add(series)


def _load(samples: Iterable[Sample], name: str, most: float) -> list[float]:
    """A gauge's values, one a rank."""
    found = [_number(s, 0.0, most) for s in samples if s.name == name]
    if not found:
        raise ValueError(f"no {name} (an engine that runs with --disable-log-stats has none)")
    return found


def _number(sample: Sample, least: float, most: float) -> float:
    value = float(sample.value)
    if not math.isfinite(value) or not least - _ROUNDING <= value <= most + _ROUNDING:
        raise ValueError(f"{sample.name} is {value:g}, which is no number from {least:g} to {most:g}")
    return value


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_COUNT))):
        raise ValueError(f"{CACHE_CONFIG} has a size of {text[:20]!r}")
    return int(text)
