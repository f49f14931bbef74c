"""ConServe inside vLLM: a general plugin, installed where the engines run.

vLLM loads it in the API server, the engine core and the workers. It imports nothing else of
this project, and does nothing that its environment variables don't ask for.
"""

from __future__ import annotations

import logging

from conserve_vllm.nixl_polling import POLL_US, poll_patiently, poll_us

log = logging.getLogger("vllm.conserve")


def register() -> None:
    """The entry point of `vllm.general_plugins`. Never raises: an engine without it serves as before."""
    try:
        interval_us = poll_us()
        if interval_us is not None and poll_patiently(interval_us):
            log.info("NIXL's progress thread waits for up to %d µs instead of spinning", interval_us)
    except ValueError as error:
        log.warning("%s is ignored: %s", POLL_US, error)
    except AttributeError as error:
        log.warning("NIXL's progress thread spins as before: its binding has changed (%s)", error)
