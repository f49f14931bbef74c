"""Compiles the step time grids that ship in the package, from measured kernel tables.

    make grids                     (installs the extra `simulation` first)
    python tools/compile_grids.py [--check 2000] [--output server/conserve_server/simulation/grids]

The tables and the model over them are NVIDIA's aiconfigurator-core (Apache-2.0). It composes a step
from three parts that add up: what all tokens of the step share (GEMMs, norms, logits), the attention
of what is prefilled, and the attention of what decodes. Each part is sampled on a grid of its own.
Then random steps are put to the grid and to the model's own forward pass estimate, and the
difference is written into the file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import pathlib
import random
import statistics
import sys
from collections.abc import Sequence

from aiconfigurator_core.sdk.engine import EngineHandle
from aiconfigurator_core.sdk.memory import estimate_kv_cache
from aiconfigurator_core.sdk.rust_engine_step import RustForwardPassPerfModel

from conserve_server.simulation.timing import Step
from conserve_server.simulation.timing_grid import SIGNIFICANT_FIGURES, Grid, GridTiming, HostOverhead

# The system's name there, and the version of vLLM whose kernels were measured.
GPUS = {
    "h100": ("h100_sxm", "0.24.0"),
    "h200": ("h200_sxm", "0.24.0"),
    "a100": ("a100_sxm", "0.14.0"),
    "l40s": ("l40s", "0.24.0"),
    "b200": ("b200_sxm", "0.24.0"),
    "rtx-pro-6000": ("rtx_pro_6000_server", "0.24.0"),
}
MODELS = {
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
}
# The points at which the kernels were measured, so that little is lost between them.
STEP_TOKENS = (
    *range(1, 18),
    *(each + after for each in (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256) for after in (0, 1)),
    *(384, 512, 513, 768, 769, 1024, 1025, 1280, 1281, 1536, 1537, 1792, 1793, 2048, 2049, 2304, 2305),
    *(2560, 2561, 2816, 2817, 3072, 3073, 3328, 3329, 3584, 3585, 3840, 3841, 4096, 4097, 4352, 4353),
    *(6144, 8192, 12288, 16384, 32768),
)
PREFILLS = (1, 2, 3, 4, 8, 16, 32)
PREFILL_TOKENS = (1, 16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)
PREFILL_TOKENS += (12288, 16384)
PREFILL_CONTEXT = (0, 256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 131072)
DECODES = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512)
DECODE_CONTEXT = (1, 64, 128, 256, 512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768)
DECODE_CONTEXT += (49152, 65536, 131072)
MAX_CHECK_CONTEXT = 65536
# The share of GPU memory that vLLM takes by default, and the largest step that its activations allow for.
GPU_MEMORY_UTILIZATION = 0.9
MAX_NUM_BATCHED_TOKENS = 8192


def main() -> int:
    options = parse(sys.argv[1:])
    logging.disable(logging.WARNING)
    options.output.mkdir(parents=True, exist_ok=True)
    for gpu in options.gpu or GPUS:
        for model in options.model or MODELS:
            write(options.output / f"{gpu}_{model}.json", gpu, model, check_steps=options.check)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", action="append", choices=GPUS, help="all by default; may be repeated")
    parser.add_argument("--model", action="append", choices=MODELS, help="all by default; may be repeated")
    parser.add_argument("--check", type=int, default=2000, help="random steps to compare (%(default)s)")
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("server/conserve_server/simulation/grids")
    )
    return parser.parse_args(arguments)


def write(path: pathlib.Path, gpu: str, model: str, *, check_steps: int) -> None:
    """Write one grid, or say why there is none: a model that doesn't fit has no KV to serve from."""
    try:
        memory = kv_memory(gpu, model)
    except ValueError as error:
        print(f"{gpu} {model}: no grid, {error}")
        return
    grid = sample(gpu, model, memory)
    grid["check"] = compare(Grid(**grid), check_steps)
    path.write_text(json.dumps(grid, separators=(",", ":")) + "\n")
    print(f"{gpu} {model}: {path.stat().st_size:,} bytes, {grid['check']}")


def kv_memory(gpu: str, model: str) -> dict[str, int]:
    system, vllm = GPUS[gpu]
    return estimate_kv_cache(
        MODELS[model],
        system,
        "vllm",
        backend_version=vllm,
        max_num_tokens=MAX_NUM_BATCHED_TOKENS,
        max_batch_size=256,
        memory_fraction_kind="of_total",
        memory_fraction_value=GPU_MEMORY_UTILIZATION,
    )


def sample(gpu: str, model: str, memory: dict[str, int]) -> dict[str, object]:
    system, vllm = GPUS[gpu]
    kernels = Kernels(EngineHandle.compile(MODELS[model], system, "vllm"))
    version = importlib.metadata.version("aiconfigurator-core")
    return {
        "gpu": gpu,
        "model": model,
        "source": f"aiconfigurator-core {version} ({system}, vLLM {vllm} kernels, bf16, TP1), Apache-2.0",
        "kv_bytes_per_token": memory["kv_size_per_token_bytes"],
        "kv_capacity_tokens": memory["total_kv_size_tokens"],
        "step_tokens": STEP_TOKENS,
        "shared_ms": [kernels.shared_ms(tokens) for tokens in STEP_TOKENS],
        "prefills": PREFILLS,
        "prefill_tokens": PREFILL_TOKENS,
        "prefill_context": PREFILL_CONTEXT,
        "prefill_ms": [
            [
                [kernels.prefill_ms(requests, tokens, context) for context in PREFILL_CONTEXT]
                for tokens in PREFILL_TOKENS
            ]
            for requests in PREFILLS
        ],
        "decodes": DECODES,
        "decode_context": DECODE_CONTEXT,
        "decode_ms": [
            [kernels.decode_ms(requests, context) for context in DECODE_CONTEXT] for requests in DECODES
        ],
    }


class Kernels:
    """The three parts of a step, of the model's own composition, each rounded for the file."""

    def __init__(self, engine: EngineHandle) -> None:
        self._engine = engine

    def shared_ms(self, tokens: int) -> float:
        shared, _, _ = self._engine.mixed_step_breakdown_per_op(tokens, 0, tokens, 2)
        return _rounded(sum(latency_ms for _, latency_ms, _, _ in shared))

    def prefill_ms(self, requests: int, tokens: int, context: int) -> float:
        operations, _ = self._engine.run_static_per_op(
            batch_size=requests, isl=tokens + context, osl=1, prefix=context, mode="static_ctx"
        )
        return _attention_ms(operations)

    def decode_ms(self, requests: int, context: int) -> float:
        return _attention_ms(self._engine.decode_step_per_op(requests, context, 2))


def _attention_ms(operations: Sequence[tuple[str, float, float, str]]) -> float:
    return _rounded(sum(latency_ms for name, latency_ms, _, _ in operations if name.endswith("_attention")))


def _rounded(value: float) -> float:
    return float(f"{value:.{SIGNIFICANT_FIGURES}g}")


def compare(grid: Grid, steps: int) -> dict[str, float | int]:
    """How far the grid is from the model's own estimate of random steps, as shares of it."""
    config = {
        "schema_version": 1,
        "model_name": MODELS[grid.model],
        "system_name": GPUS[grid.gpu][0],
        "backend": "vllm",
        "tp_size": 1,
        "pp_size": 1,
    }
    model = RustForwardPassPerfModel.from_native(config)
    timing = GridTiming(grid, overhead=HostOverhead(0.0, 0.0))
    rng = random.Random(0)
    errors = []
    for _ in range(steps):
        step = random_step(rng)
        expected_s = model.estimate_forward_pass_time_ms(forward_pass(step)) / 1e3
        errors.append(abs(timing.step_s(step) - expected_s) / expected_s)
    errors.sort()
    return {
        "steps": steps,
        "median_error": _rounded(statistics.median(errors)),
        "p95_error": _rounded(errors[int(0.95 * len(errors))]),
        "max_error": _rounded(errors[-1]),
    }


def random_step(rng: random.Random) -> Step:
    """Steps as engines meet them: prefills alone, decodes alone, and both; sizes on a log scale."""
    kind = rng.choice(("prefill", "decode", "mixed"))
    prefills = 0 if kind == "decode" else rng.choice((1, 1, 1, 2, 3, 5))
    decodes = 0 if kind == "prefill" else _log_uniform(rng, 1, 256)
    tokens = prefills * _log_uniform(rng, 1, 8192 // max(prefills, 1))
    context = prefills * (rng.random() < 0.8 and _log_uniform(rng, 16, MAX_CHECK_CONTEXT))
    return Step(prefills, tokens, context, decodes, decodes * _log_uniform(rng, 16, MAX_CHECK_CONTEXT))


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** rng.random())


def forward_pass(step: Step) -> dict[str, object]:
    scheduled = {
        "num_prefill_requests": step.prefill_requests,
        "sum_prefill_tokens": step.prefill_tokens,
        "sum_prefill_kv_tokens": step.prefill_context_tokens,
        "var_prefill_length": 0.0,
        "num_decode_requests": step.decode_requests,
        "sum_decode_kv_tokens": step.decode_context_tokens,
        "var_decode_kv_tokens": 0.0,
    }
    identity = {"version": 1, "worker_id": "-", "dp_rank": 0, "counter_id": 0, "wall_time": 0.0}
    return {**identity, "queued_requests": {}, "scheduled_requests": scheduled}


if __name__ == "__main__":
    sys.exit(main())
