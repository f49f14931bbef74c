"""The engines as the scheduler knows them: what each may do, how fast its tier is, what that is for."""

from __future__ import annotations

from conserve_server.core.config import Config
from conserve_server.engines.engine import EngineSpec, Role, pool_of
from conserve_server.scheduling.engine_state import EngineProfile


def profile_of(config: Config, spec: EngineSpec) -> EngineProfile:
    """The engine's profile, by its pool and its tier."""
    pool = pool_of(config, spec.role)
    tier = config.tiers[spec.tier] if spec.tier is not None else None
    return EngineProfile(
        spec.name,
        takes_prefills=spec.role is Role.PREFILL or pool.has_both_roles,
        takes_conversations=spec.role is Role.DECODE or pool.has_both_roles,
        prefill_tokens_per_s=tier.prefill_tokens_per_s if tier else None,
        decode_step_s=tier.decode_step_s if tier else None,
        prefers=tier.prefers if tier else None,
    )
