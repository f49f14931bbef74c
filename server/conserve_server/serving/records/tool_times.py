"""How long tools took: what was seen of each, and nothing else."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

from conserve_server.core.kv_config import KvConfig

SAMPLES: Final = 64
"""Latest durations of a tool that count."""
TOOLS: Final = 1_000
"""Tools remembered, those of the latest calls."""


class ToolTimes:
    """Durations in seconds, by tenant and tool."""

    def __init__(self, config: KvConfig) -> None:
        self._config = config
        self._seen: OrderedDict[tuple[str, str], deque[float]] = OrderedDict()

    def learn(self, tenant: str, tool: str, duration_s: float) -> None:
        """A call of it took so long."""
        key = (tenant, tool)
        self._seen.setdefault(key, deque(maxlen=SAMPLES)).append(duration_s)
        self._seen.move_to_end(key)
        if len(self._seen) > TOOLS:
            self._seen.popitem(last=False)

    def keep_s(self, tenant: str, tool: str) -> float:
        """How long a conversation should be kept over a call of it that begins now."""
        config, seen = self._config, self._seen.get((tenant, tool))
        if seen is None:
            return min(config.first_keep_s, config.max_keep_s)
        rank = math.ceil(config.keep_quantile * len(seen)) - 1
        wanted_s = sorted(seen)[rank] * config.keep_margin
        return min(max(wanted_s, config.min_keep_s), config.max_keep_s)
