"""A timing fitted to what a real engine took, and the file that keeps it.

What was observed is a sum of a `LinearTiming`'s parts, each observation weighing the same relative
to its length, and of a constant for each request (HTTP, tokenising: no part of a step). All
constants are at least 0.
"""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from conserve_server.core.errors import ConfigError, TraceError

from .timing import LinearTiming, Step
from .workloads.reading import Seconds, json_document

FORMAT = "conserve-timing-v1"


@dataclass(frozen=True, slots=True)
class Observation:
    """So many seconds for one step, or for a request of one step (with its overhead)."""

    step: Step
    seconds: float
    is_request: bool


class FitQuality(msgspec.Struct, frozen=True):
    """How far the fit is from its observations: relative errors."""

    observations: int
    median_error: float
    p95_error: float
    worst_error: float


class Calibration(msgspec.Struct, frozen=True, tag_field="format", tag=FORMAT, forbid_unknown_fields=True):
    """A fitted engine. Times in seconds; `request_s` comes on top of a request's steps, once."""

    model: str
    base_s: Seconds
    prefill_token_s: Seconds
    prefill_pair_s: Seconds
    decode_s: Seconds
    decode_context_s: Seconds
    request_s: Seconds
    kv_bytes_per_token: int
    kv_capacity_tokens: int
    fit: FitQuality

    @property
    def timing(self) -> LinearTiming:
        return LinearTiming(
            base_s=self.base_s,
            prefill_token_s=self.prefill_token_s,
            prefill_pair_s=self.prefill_pair_s,
            decode_s=self.decode_s,
            decode_context_s=self.decode_context_s,
            kv_bytes_per_token=self.kv_bytes_per_token,
            kv_capacity_tokens=self.kv_capacity_tokens,
        )


def fit(
    observations: Sequence[Observation], *, model: str, kv_bytes_per_token: int, kv_capacity_tokens: int
) -> Calibration:
    """The constants that explain the observations best. Raises ConfigError for too few of them."""
    if len(observations) < len(_features(observations[0])) if observations else True:
        raise ConfigError(f"{len(observations)} observations are too few for a fit: measure more steps")
    rows = np.array([_features(each) for each in observations], dtype=np.float64)
    seconds = np.array([each.seconds for each in observations], dtype=np.float64)
    constants = non_negative(rows / seconds[:, None], np.ones(len(seconds)))
    errors = sorted(abs(float(error)) for error in (rows @ constants - seconds) / seconds)
    base_s, prefill_token_s, prefill_pair_s, decode_s, decode_context_s, request_s = constants.tolist()
    return Calibration(
        model=model,
        base_s=base_s,
        prefill_token_s=prefill_token_s,
        prefill_pair_s=prefill_pair_s,
        decode_s=decode_s,
        decode_context_s=decode_context_s,
        request_s=request_s,
        kv_bytes_per_token=kv_bytes_per_token,
        kv_capacity_tokens=kv_capacity_tokens,
        fit=FitQuality(
            observations=len(errors),
            median_error=statistics.median(errors),
            p95_error=errors[int(0.95 * (len(errors) - 1))],
            worst_error=errors[-1],
        ),
    )


def _features(observation: Observation) -> tuple[float, ...]:
    """What each constant is multiplied by, in the order of `LinearTiming`; the request's own comes last."""
    step = observation.step
    pairs = 0.0
    if step.prefill_tokens:
        context = step.prefill_context_tokens / step.prefill_requests + step.prefill_tokens / 2
        pairs = step.prefill_tokens * context
    decodes = float(step.decode_requests), float(step.decode_context_tokens)
    return 1.0, float(step.prefill_tokens), pairs, *decodes, float(observation.is_request)


def non_negative(rows: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with no constant below 0: the most negative one is held at 0 until none is."""
    free = list(range(rows.shape[1]))
    constants = np.zeros(rows.shape[1])
    while free:
        found = np.linalg.lstsq(rows[:, free], values, rcond=None)[0]
        if found.min() >= 0:
            constants[free] = found
            break
        free.pop(int(found.argmin()))
    return constants


def read_calibration(path: pathlib.Path) -> Calibration:
    """A calibration from its file. Raises TraceError for one that doesn't follow the format."""
    return json_document(path, Calibration)


def write_calibration(path: pathlib.Path, calibration: Calibration) -> None:
    """Write it as JSON, for people to read too."""
    text = msgspec.json.format(msgspec.json.encode(calibration), indent=2)
    try:
        path.write_bytes(text + b"\n")
    except OSError as error:
        raise TraceError(f"can't write {path}: {error.strerror}; name another file") from error
