"""The part of the configuration that says how engines are told of conversations."""

from __future__ import annotations

from pydantic import Field

from conserve_server.core.config_part import Part, Seconds


class KvConfig(Part):
    """Signals to engines with `conserve_vllm`: what has ended, what waits for a tool."""

    sends_releases: bool = True
    """Whether engines are told that a conversation has ended."""
    sends_keeps: bool = True
    """Whether engines are told that a conversation waits for a tool."""
    uses_host_tier: bool = True
    """Whether engines with a host tier are told to let KV go to the host while a conversation waits for
    a tool and its decoder is over its budget, and to bring it back when the tool has ended."""
    first_keep_s: Seconds = 60.0
    """How long a conversation is kept over a tool that was not seen before."""
    keep_quantile: float = Field(default=0.95, gt=0, le=1)
    """Which of a tool's observed durations the keep follows."""
    keep_margin: float = Field(default=1.5, ge=1)
    """Times that duration."""
    min_keep_s: Seconds = 2.0
    max_keep_s: Seconds = 600.0
    return_keep_s: Seconds = 10.0
    """How long it is kept for the next turn to arrive, once the tool has ended."""
