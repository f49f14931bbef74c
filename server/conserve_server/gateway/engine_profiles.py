"""The engines as the scheduler knows them: what each may do, how fast its tier is, what that is for."""

from __future__ import annotations

from collections.abc import Sequence

from conserve_server.core.config import Config
from conserve_server.engines.engine import EngineSpec, Role
from conserve_server.scheduling.engine_state import EngineProfile


def engine_profiles(config: Config, specs: Sequence[EngineSpec]) -> list[EngineProfile]:
    """A profile for each engine, in the same order. The n-th engine of a role has its pool's n-th tier."""
    seen = dict.fromkeys(Role, 0)
    profiles = []
    for spec in specs:
        profiles.append(profile_at(config, spec, seen[spec.role]))
        seen[spec.role] += 1
    return profiles


def profile_at(config: Config, spec: EngineSpec, index: int) -> EngineProfile:
    """The profile of the engine at that place in its pool."""
    pool = config.pools.prefill if spec.role is Role.PREFILL else config.pools.decode
    tier = config.tiers[pool.tiers[index]] if index < len(pool.tiers) else None
    return EngineProfile(
        spec.name,
        takes_prefills=spec.role is Role.PREFILL or pool.has_both_roles,
        takes_conversations=spec.role is Role.DECODE or pool.has_both_roles,
        prefill_tokens_per_s=tier.prefill_tokens_per_s if tier else None,
        decode_step_s=tier.decode_step_s if tier else None,
        prefers=tier.prefers if tier else None,
    )
