"""Readers of vLLM's shared-memory queues, told to sleep instead of yielding the core over and over.

An engine core and its workers pass each step on through rings in shared memory. For a second after
a read, a reader that finds nothing yields (`sched_yield`) and looks again. A machine with a core for
each of them gains a few microseconds. Where engines share cores, readers of those that have nothing
to do keep the cores busy beside those that compute.
"""

from __future__ import annotations

import importlib
import time
from typing import Any, Final

from conserve_vllm.settings import positive

WAIT_US: Final = "CONSERVE_QUEUE_WAIT_US"
"""Environment variable: the sleep between two looks in microseconds; unset leaves vLLM as it is."""
_QUEUES: Final = "vllm.distributed.device_communicators.shm_broadcast"


def wait_us() -> int | None:
    """The asked-for sleep in µs, None if none is. Raises ValueError for one that is no positive number."""
    return positive(WAIT_US)


def sleep_between_looks(interval_us: int) -> None:
    """Let every queue of this process wait that way.

    Raises ImportError or AttributeError where vLLM has changed.
    """
    queues: Any = importlib.import_module(_QUEUES)
    replace(queues, interval_us)


def replace(queues: Any, interval_us: int) -> None:
    """Put a sleep where the module yields. Raises AttributeError if it does not."""
    if not hasattr(queues, "sched_yield"):
        raise AttributeError(f"{queues.__name__} has no sched_yield")
    interval_s = interval_us / 1e6
    queues.sched_yield = lambda: time.sleep(interval_s)
