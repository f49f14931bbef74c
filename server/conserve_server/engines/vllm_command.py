"""The command line and environment of one local vLLM engine. Pure: data in, data out.

CPUs and GPUs differ in a `Recipe` alone. The CPU recipe is what vLLM 0.32 needs to move KV
between CPU engines: NIXL over UCX with host memory, blocks of 32 tokens (the CPU worker
does not take 16 with NIXL), float32 (bfloat16 without the CPU's support for it is slower by
orders of magnitude), no compilation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from conserve_server.core.config import Config
from conserve_server.core.errors import ConfigError
from conserve_server.engines.engine import Role, pool_of

HOST = "127.0.0.1"
UNBOUND = "nobind"
"""vLLM's word for threads that run where the kernel puts them."""
PLUGIN_ROUTES = "conserve_vllm.ConversationRoutes"
HOST_TIER = "conserve_vllm.host_tier"
SMALLEST_CHUNK = "CONSERVE_SMALLEST_CHUNK"
"""Read by conserve_vllm: prompt tokens of the smallest chunks."""
_OURS = ("--host", "--port", "--model", "--served-model-name")


@dataclass(frozen=True, slots=True)
class Slot:
    """An engine's place in its pool and on the machine.

    `cores` (or UNBOUND) and `gpus` as vLLM and CUDA write them; exactly one of them is used, by device.
    """

    role: Role
    index: int
    port: int
    transfer_port: int
    cores: str
    gpus: str

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"


@dataclass(frozen=True, slots=True)
class Model:
    """What an engine loads: a folder, or a model id that it fetches itself; `flags` are what it needs."""

    source: str
    is_folder: bool
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """What starts an engine: `env` is added to the launcher's own environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a kind of device asks for."""

    kv_buffer_device: str
    flags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def vllm_command(
    config: Config, slot: Slot, model: Model, *, python: str, device: str, has_plugin: bool = False
) -> EngineCommand:
    """The command of the engine in `slot` on `device` ("cpu" or "cuda"). Later flags win over earlier ones.

    `has_plugin`: `conserve_vllm` is installed beside vLLM and adds its routes.

    Raises ConfigError where the configuration's flags set what the launcher sets itself.
    """
    adapts_chunks = has_plugin and _adapts_chunks(config, slot.role)
    recipe = _cpu(config, slot) if device == "cpu" else _cuda(slot)
    pool = pool_of(config, slot.role)
    _refuse_ours("launcher.flags", config.launcher.flags)
    _refuse_ours(f"pools.{slot.role}.flags", pool.flags)
    argv = (
        *(python, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model.source, "--served-model-name", config.model),
        *("--host", HOST, "--port", str(slot.port)),
        *("--enable-prompt-tokens-details", "--enable-per-request-metrics"),
        *("--disable-access-log-for-endpoints", "/health,/metrics,/v1/models"),
        *(("--middleware", PLUGIN_ROUTES) if has_plugin else ()),
        *_max_model_len(config),
        *_kv_transfer(config, slot.role, recipe, has_plugin=has_plugin),
        *recipe.flags,
        *_scheduling(config, slot.role, adapts_chunks=adapts_chunks),
        *model.flags,
        *config.launcher.flags,
        *pool.flags,
    )
    plus = config.scheduler.conserve_plus
    chunks = {SMALLEST_CHUNK: str(plus.smallest_chunk_tokens)} if adapts_chunks else {}
    return EngineCommand(argv, {**_common_env(slot, model), **recipe.env, **chunks, **config.launcher.env})


def emulated_command(config: Config, slot: Slot, *, python: str) -> EngineCommand:
    """The command of an emulated engine in `slot`."""
    argv = (
        *(python, "-m", "conserve_server.engines.emulated"),
        *("--host", HOST, "--port", str(slot.port)),
        *("--role", str(slot.role), "--model", config.model, "--name", slot.name),
        *_max_model_len(config),
        *config.launcher.flags,
        *pool_of(config, slot.role).flags,
    )
    return EngineCommand(argv, config.launcher.env)


def _cpu(config: Config, slot: Slot) -> Recipe:
    threads = {"OMP_NUM_THREADS": "1"} if slot.cores == UNBOUND else {}
    kv_cache_bytes = int((config.launcher.kv_cache_gib or 1.0) * 1024**3)
    return Recipe(
        kv_buffer_device="cpu",
        flags=(
            *("--dtype", "float32", "--block-size", "32", "--enforce-eager"),
            *("--kv-cache-memory-bytes", str(kv_cache_bytes)),
        ),
        env={
            "VLLM_CPU_OMP_THREADS_BIND": slot.cores,
            **threads,
            "UCX_TLS": "tcp,shm,self",
            # Read by conserve_vllm: or each idle engine keeps a whole core busy.
            "CONSERVE_NIXL_POLL_US": "1000",
            # The same: or all engines of a machine compute on its last core.
            "CONSERVE_SHARE_CORES": "1",
            # The same: or readers that wait for a step keep a core busy, and other engines' steps wait.
            "CONSERVE_QUEUE_WAIT_US": "100",
        },
    )


def _cuda(slot: Slot) -> Recipe:
    gpus = slot.gpus.count(",") + 1
    return Recipe(
        kv_buffer_device="cuda",
        flags=("--tensor-parallel-size", str(gpus)) if gpus > 1 else (),
        env={"CUDA_VISIBLE_DEVICES": slot.gpus},
    )


def _common_env(slot: Slot, model: Model) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1"} if model.is_folder else {}
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(slot.transfer_port),
        "VLLM_NO_USAGE_STATS": "1",
        **offline,
    }


def _max_model_len(config: Config) -> tuple[str, ...]:
    length = config.launcher.max_model_len
    return () if length is None else ("--max-model-len", str(length))


def _adapts_chunks(config: Config, role: Role) -> bool:
    """Whether the configured policy lets engines of the role choose their chunks by their load."""
    scheduler = config.scheduler
    is_plus = scheduler.policy == "conserve_plus" and role is Role.DECODE
    return is_plus and scheduler.conserve_plus.smallest_chunk_tokens > 0


def _scheduling(config: Config, role: Role, *, adapts_chunks: bool) -> tuple[str, ...]:
    """What the configured policy needs of the engines' own schedulers."""
    scheduler, flags = config.scheduler, []
    plus = scheduler.conserve_plus
    is_plus, is_ampd = scheduler.policy == "conserve_plus", scheduler.policy == "ampd"
    if (is_plus and plus.first_turn_priority != 0) or (is_ampd and scheduler.ampd.reorders_prefills):
        flags += ["--scheduling-policy", "priority"]
    if is_plus and role is Role.DECODE and not adapts_chunks:
        if plus.decode_chunk_tokens:
            flags += ["--max-num-batched-tokens", str(plus.decode_chunk_tokens)]
        if plus.decode_long_prefill_tokens:
            # vLLM refuses a threshold beyond the longest context.
            longest = config.launcher.max_model_len or plus.decode_long_prefill_tokens
            threshold = min(plus.decode_long_prefill_tokens, longest)
            flags += ["--long-prefill-token-threshold", str(threshold)]
    return tuple(flags)


def _kv_transfer(config: Config, role: Role, recipe: Recipe, *, has_plugin: bool) -> tuple[str, ...]:
    """What moves KV between engines, and what moves it to the host and back.

    With both, NIXL is the first to be asked: a first turn's KV comes from its prefiller.
    """
    connectors = [*_between_engines(config, role, recipe)]
    host_gib = pool_of(config, role).host_kv_gib
    if host_gib is not None:
        connectors.append(_host_tier(role, recipe, host_gib, has_plugin=has_plugin))
    if not connectors:
        return ()
    connector: dict[str, object] = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"connectors": connectors},
    }
    return ("--kv-transfer-config", json.dumps(connectors[0] if len(connectors) == 1 else connector))


def _between_engines(config: Config, role: Role, recipe: Recipe) -> tuple[dict[str, object], ...]:
    """None where no engine prefills for another."""
    if config.pools.prefill.count == 0 and not config.pools.decode.has_both_roles:
        return ()
    one_role = "kv_producer" if role is Role.PREFILL else "kv_consumer"
    return (
        {
            "kv_connector": "NixlConnector",
            "kv_role": "kv_both" if pool_of(config, role).has_both_roles else one_role,
            "kv_buffer_device": recipe.kv_buffer_device,
        },
    )


def _host_tier(role: Role, recipe: Recipe, host_gib: float, *, has_plugin: bool) -> dict[str, object]:
    """vLLM's own host tier. An agent's next turn has its last answer in the prompt: that is kept too."""
    own_copies = recipe.kv_buffer_device == "cpu"
    if own_copies and not has_plugin:
        raise ConfigError(
            f"pools.{role}.host_kv_gib: on CPUs vLLM has no host tier without conserve_vllm: "
            "install it beside vLLM (pip install --no-deps conserve-sdk), or remove the key"
        )
    policy = {"eviction_policy": "ConversationPolicy", "cache_policy_module_path": HOST_TIER}
    spec = {"spec_name": "PlainCopySpec", "spec_module_path": HOST_TIER}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": int(host_gib * 1024**3),
            "offload_prompt_only": False,
            **(policy if has_plugin else {}),
            **(spec if own_copies else {}),
        },
    }


def _refuse_ours(key: str, flags: Sequence[str]) -> None:
    for flag in flags:
        name = flag.partition("=")[0]
        if name in _OURS:
            raise ConfigError(f"{key} must not set {name}: conserve up sets it; remove it there")
