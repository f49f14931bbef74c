"""Workers of vLLM's CPU engines, kept on the cores that they were given.

The NIXL connector of vLLM 0.31 to 0.33 pins its worker's main thread, which also runs the model, to
the last core of the machine's memory node. That leaves the other cores to computing threads where a
machine has one engine; where it has several, their workers take turns on one core.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, Final

SHARE: Final = "CONSERVE_SHARE_CORES"
"""Environment variable: 1 keeps an engine on its cores; unset leaves vLLM as it is."""
_CONNECTOR: Final = "vllm.distributed.kv_transfer.kv_connector.v1.nixl.base_worker"


def is_wanted() -> bool:
    return os.environ.get(SHARE) == "1"


def share_cores() -> None:
    """Change this process's vLLM. Raises ImportError or AttributeError where vLLM has changed."""
    connector: Any = importlib.import_module(_CONNECTOR)
    worker = connector.NixlBaseConnectorWorker
    worker.__init__ = keeping_affinity(worker.__init__)


def keeping_affinity(begin: Callable[..., None]) -> Callable[..., None]:
    """The function, after which the calling thread may run where it might before."""

    @functools.wraps(begin)
    def kept(*arguments: Any, **named: Any) -> None:
        cores = os.sched_getaffinity(0)
        try:
            begin(*arguments, **named)
        finally:
            os.sched_setaffinity(0, cores)

    return kept
