"""What one emulated engine is: its name, its size and its behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from conserve_server.core.errors import ConfigError
from conserve_server.engines.emulated.faults import Fault
from conserve_server.engines.emulated.script import Rule
from conserve_server.engines.emulated.timing import EmulatedTiming
from conserve_server.engines.engine import Role


@dataclass(frozen=True, slots=True)
class EmulatedConfig:
    """One emulated engine. The names that vLLM has too mean what they mean there."""

    model: str = "emulated"
    name: str = "emulated"
    role: Role = Role.DECODE
    host: str = "127.0.0.1"
    port: int = 0
    """Where the engine listens, and where its peers pull KV from; 0 takes a free port."""
    kv_blocks: int = 10_000
    block_size: int = 32
    max_model_len: int = 40_960
    """Longest prompt and answer in tokens; never more than the KV cache holds."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    lease_s: float = 30.0
    """How long a prefilled request's KV waits for its decoder, unless a heartbeat renews it."""
    pull_timeout_s: float = 5.0
    kv_load_failure_policy: Literal["fail", "recompute"] = "fail"
    kv_bytes_per_token: int = 147_456
    answer_tokens: int = 32
    """Length of an answer that no script, schema or token limit decides, its end token included."""
    follows_conversations: bool = True
    """Whether it takes signals about conversations, as vLLM with `conserve_vllm` does."""
    timing: EmulatedTiming = field(default_factory=EmulatedTiming)
    script: tuple[Rule, ...] = ()
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool):
                continue
            if isinstance(value, int | float) and each.name != "port" and value <= 0:
                raise ConfigError(f"EmulatedConfig.{each.name} must be greater than 0, got {value}")

    @property
    def context_tokens(self) -> int:
        """The longest sequence that the engine can hold."""
        return min(self.max_model_len, self.kv_blocks * self.block_size)
