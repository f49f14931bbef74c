"""Step times of known GPUs and models, interpolated in grids that ship with the package.

Each grid file holds one model on one GPU (TP1, bf16), sampled from measured kernel times by
`tools/compile_grids.py`: no call into another package is made while a simulation runs. A step is
the sum of three parts: what all its tokens share (GEMMs, norms, logits), attention of what is
prefilled, attention of what decodes; and of the host's overhead, which kernel times don't have.
Requests of a step count as equally long: a grid knows their sums only. Beyond a grid's last point
its last slope goes on.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from conserve_server.core.errors import ConfigError

from .timing import Step

_FOLDER = "grids"
# Enough figures for what is known of a kernel time; half the file's size of all of them.
SIGNIFICANT_FIGURES = 4


@dataclass(frozen=True, slots=True)
class HostOverhead:
    """What an engine's own code adds to the kernels: seconds a step, and for each sequence in it.

    The defaults fit a run of vLLM 0.19 (Llama-3.1-8B on one RTX PRO 6000, `make validate`), as do
    others along a line, such as 0.9 ms and 0.030 ms: its batch was nearly always full. vLLM 0.11
    took 0.5 ms and 0.074 ms.
    """

    step_s: float = 0.3e-3
    sequence_s: float = 0.035e-3


DEFAULT_OVERHEAD = HostOverhead()


@dataclass(frozen=True, slots=True)
class Grid:
    """The points of one model on one GPU. Times are in milliseconds of kernel time.

    `shared_ms[i]` is for `step_tokens[i]`. `prefill_ms[i][j][k]` is the attention of `prefills[i]`
    requests of `prefill_tokens[j]` new tokens each, over `prefill_context[k]` tokens each.
    `decode_ms[i][j]` is the attention of `decodes[i]` requests that read `decode_context[j]` tokens
    each. `check` says how far the grid is from the model that it was sampled from.
    """

    gpu: str
    model: str
    source: str
    kv_bytes_per_token: int
    kv_capacity_tokens: int
    step_tokens: Sequence[int]
    shared_ms: Sequence[float]
    prefills: Sequence[int]
    prefill_tokens: Sequence[int]
    prefill_context: Sequence[int]
    prefill_ms: Sequence[Sequence[Sequence[float]]]
    decodes: Sequence[int]
    decode_context: Sequence[int]
    decode_ms: Sequence[Sequence[float]]
    check: Mapping[str, float | int] | None = None


class GridTiming:
    """The timing of one model on one GPU: a grid, the host's overhead and a KV capacity."""

    def __init__(
        self, grid: Grid, *, overhead: HostOverhead = DEFAULT_OVERHEAD, kv_capacity_tokens: int | None = None
    ) -> None:
        self.grid = grid
        self.overhead = overhead
        self.kv_bytes_per_token = grid.kv_bytes_per_token
        self.kv_capacity_tokens = kv_capacity_tokens or grid.kv_capacity_tokens
        self._shared = _SharedSeconds(grid)
        self._tables = [_seconds(table) for table in grid.prefill_ms]
        self._table_of = dict(zip(grid.prefills, self._tables, strict=True))
        self._decode = _DecodeLines(grid)

    def step_s(self, step: Step) -> float:
        prefills, decodes = step.prefill_requests, step.decode_requests
        overhead = self.overhead
        seconds = overhead.step_s + overhead.sequence_s * (prefills + decodes)
        seconds += self._shared[step.prefill_tokens + decodes]
        if prefills:
            tokens, context = step.prefill_tokens / prefills, step.prefill_context_tokens / prefills
            seconds += self._prefill_s(prefills, tokens, context)
        if decodes:
            starts, offsets, slopes = self._decode[decodes]
            i = bisect_right(starts, step.decode_context_tokens)
            seconds += offsets[i] + slopes[i] * step.decode_context_tokens
        return seconds

    def _prefill_s(self, requests: int, tokens: float, context: float) -> float:
        grid = self.grid
        table = self._table_of.get(requests)
        if table is not None:
            return _bilinear(grid.prefill_tokens, grid.prefill_context, table, tokens, context)
        i = _left_of(grid.prefills, requests)
        low, high = grid.prefills[i], grid.prefills[i + 1]
        below = _bilinear(grid.prefill_tokens, grid.prefill_context, self._tables[i], tokens, context)
        above = _bilinear(grid.prefill_tokens, grid.prefill_context, self._tables[i + 1], tokens, context)
        return below + (above - below) * (requests - low) / (high - low)


class _SharedSeconds(dict[int, float]):
    """Seconds of what a step's tokens share, by their number; each is interpolated once and kept."""

    def __init__(self, grid: Grid) -> None:
        super().__init__({0: 0.0})
        self._tokens, self._ms = grid.step_tokens, grid.shared_ms

    def __missing__(self, tokens: int) -> float:
        i = _left_of(self._tokens, tokens)
        low, high = self._tokens[i], self._tokens[i + 1]
        below, above = self._ms[i], self._ms[i + 1]
        seconds = self[tokens] = (below + (above - below) * (tokens - low) / (high - low)) / 1e3
        return seconds


class _DecodeLines(dict[int, tuple[list[float], list[float], list[float]]]):
    """Decode attention by the number of requests: where each line over their context tokens starts
    (but the first), and what it is, in seconds and seconds a token. Nearly all steps only decode.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._grid = grid

    def __missing__(self, requests: int) -> tuple[list[float], list[float], list[float]]:
        grid = self._grid
        i = _left_of(grid.decodes, requests)
        share = (requests - grid.decodes[i]) / (grid.decodes[i + 1] - grid.decodes[i])
        pairs = zip(grid.decode_ms[i], grid.decode_ms[i + 1], strict=True)
        points = [tokens * requests for tokens in grid.decode_context]
        seconds = [(low + (high - low) * share) / 1e3 for low, high in pairs]
        between = itertools.pairwise(zip(points, seconds, strict=True))
        slopes = [(end_s - start_s) / (end - start) for (start, start_s), (end, end_s) in between]
        offsets = [at_s - slope * at for at, at_s, slope in zip(points, seconds, slopes, strict=False)]
        lines = self[requests] = ([float(at) for at in points[1:-1]], offsets, slopes)
        return lines


def _seconds(table_ms: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[ms / 1e3 for ms in row] for row in table_ms]


def _left_of(points: Sequence[int], value: float) -> int:
    """The index of the interval that holds `value`; the first or the last where none does."""
    return min(max(bisect_right(points, value) - 1, 0), len(points) - 2)


def _bilinear(
    rows: Sequence[int], columns: Sequence[int], table: Sequence[Sequence[float]], row: float, column: float
) -> float:
    i, j = bisect_right(rows, row) - 1, bisect_right(columns, column) - 1
    i = 0 if i < 0 else min(i, len(rows) - 2)
    j = 0 if j < 0 else min(j, len(columns) - 2)
    near, far = table[i], table[i + 1]
    along = (column - columns[j]) / (columns[j + 1] - columns[j])
    below = near[j] + (near[j + 1] - near[j]) * along
    above = far[j] + (far[j + 1] - far[j]) * along
    return below + (above - below) * (row - rows[i]) / (rows[i + 1] - rows[i])


def grid_names() -> list[tuple[str, str]]:
    """The (GPU, model) pairs that a grid is shipped for, in order."""
    files = (resources.files(__package__) / _FOLDER).iterdir()
    stems = sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))
    return [(gpu, model) for gpu, _, model in (stem.partition("_") for stem in stems)]


def load_grid(gpu: str, model: str) -> Grid:
    """The shipped grid of `model` on `gpu`, such as `load_grid("h100", "qwen3-8b")`.

    Raises ConfigError, naming what there is, where no grid is shipped for the pair.
    """
    pair = (gpu.lower(), model.lower().rpartition("/")[2])
    if pair not in grid_names():
        known = ", ".join(f"{each_gpu} {each_model}" for each_gpu, each_model in grid_names())
        raise ConfigError(f"there is no step time grid for {model!r} on {gpu!r}; there are: {known}")
    file = resources.files(__package__) / _FOLDER / f"{pair[0]}_{pair[1]}.json"
    return Grid(**json.loads(file.read_text()))


def grid_timing(gpu: str, model: str, *, overhead: HostOverhead = DEFAULT_OVERHEAD) -> GridTiming:
    """The timing of `model` on `gpu`, from the grid that ships with the package."""
    return GridTiming(load_grid(gpu, model), overhead=overhead)
