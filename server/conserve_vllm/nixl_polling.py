"""NIXL's progress thread, told to wait for events instead of spinning.

The Python binding of NIXL 1.5 fixes the thread's poll time-out at 0 (`pthrDelay`), so that
each agent keeps one core busy for as long as it lives. A GPU node has cores to spare, and
gains a little latency; where engines share a few cores, one idle engine takes a whole one
from the others. With a time-out the thread sleeps in `poll` and still wakes for each event.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

from conserve_vllm.settings import positive

POLL_US: Final = "CONSERVE_NIXL_POLL_US"
"""Environment variable: the poll time-out in microseconds; unset leaves NIXL as it is."""
_BINDINGS: Final = ("nixl_cu12._bindings", "nixl_cu13._bindings", "nixl._bindings")


def poll_us() -> int | None:
    """The asked-for time-out in µs, None if none is. Raises ValueError for one that is no positive number."""
    return positive(POLL_US)


def poll_patiently(interval_us: int) -> bool:
    """Give every NIXL agent of this process that poll time-out; False where NIXL is not installed."""
    found = [module for name in _BINDINGS if (module := _module(name)) is not None]
    for module in found:
        module.nixlAgentConfig = patient(module.nixlAgentConfig, interval_us)
    return bool(found)


def patient(config: type[Any], interval_us: int) -> type[Any]:
    """The configuration class with a time-out of 0 replaced. Raises AttributeError if it knows none."""
    if not hasattr(config, "pthrDelay"):
        raise AttributeError(f"{config.__name__} has no pthrDelay")

    class PatientAgentConfig(config):  # type: ignore[misc]
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, interval_us if name == "pthrDelay" and value == 0 else value)

    return PatientAgentConfig


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
