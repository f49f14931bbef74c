"""Which part of the machine each local engine gets: its cores, its GPUs, its ports."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from conserve_server.core.config import Config
from conserve_server.engines.engine import Role, pool_of
from conserve_server.engines.ports import hold_port
from conserve_server.engines.vllm_command import HOST, UNBOUND, Slot


def engine_slots(
    config: Config,
    held: ExitStack,
    *,
    cores: Sequence[int],
    visible_gpus: str | None = None,
    first_port: int | None = None,
) -> tuple[Slot, ...]:
    """A slot for every local engine, prefillers first; its ports stay held until `held` closes.

    `cores` are those that this process may use, `visible_gpus` its CUDA_VISIBLE_DEVICES.
    The engines' ports are free ones, or `first_port` and up.
    """
    engines = tuple(_engines(config))
    spread = {Role.PREFILL: prefill_cores(config, cores), Role.DECODE: decode_cores(config, cores)}
    is_crowded = len(engines) > len(cores)
    return tuple(
        Slot(
            role=role,
            index=index,
            port=hold_port(held, HOST, None if first_port is None else first_port + order),
            transfer_port=hold_port(held, HOST),
            cores=_entry(pool_of(config, role).cores, index)
            or (UNBOUND if is_crowded else share_of(spread[role], index, count)),
            gpus=_entry(pool_of(config, role).gpus, index) or gpu_of(visible_gpus, order),
        )
        for order, (role, index, count) in enumerate(engines)
    )


def usable_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def prefill_cores(config: Config, cores: Sequence[int]) -> Sequence[int]:
    """The prefillers' part of the cores, by their number; at least one is left to the decoders."""
    prefillers, decoders = config.pools.prefill.count, config.pools.decode.count
    if prefillers == 0 or len(cores) == 1:
        return cores[:1]
    part = round(len(cores) * prefillers / (prefillers + decoders))
    return cores[: min(max(part, 1), len(cores) - 1)]


def decode_cores(config: Config, cores: Sequence[int]) -> Sequence[int]:
    """What the prefillers leave, so that a prefill never takes a decoder's time."""
    if config.pools.prefill.count == 0 or len(cores) == 1:
        return cores
    return cores[len(prefill_cores(config, cores)) :]


def share_of(cores: Sequence[int], index: int, count: int) -> str:
    """The cores of engine `index` of `count`, as vLLM writes them: an equal part.

    Of a part with more than one core, one stays free of OpenMP threads: the engine's own loop runs
    there, and threads that wait for it on a shared core run at a fifth of their speed.
    """
    size = len(cores) // count
    part = cores[index * size : (index + 1) * size]
    return ",".join(str(core) for core in part[: max(1, size - 1)])


def gpu_of(visible: str | None, order: int) -> str:
    """One GPU an engine in order, out of those that CUDA_VISIBLE_DEVICES leaves."""
    listed = [gpu.strip() for gpu in (visible or "").split(",") if gpu.strip()]
    return listed[order] if order < len(listed) else str(order)


def _engines(config: Config) -> Iterator[tuple[Role, int, int]]:
    for role in (Role.PREFILL, Role.DECODE):
        count = pool_of(config, role).count
        for index in range(count):
            yield role, index, count


def _entry(listed: Sequence[str], index: int) -> str | None:
    return listed[index] if listed else None
