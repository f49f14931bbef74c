"""ConServe inside vLLM, installed where the engines run: KV that follows the conversation.

vLLM loads the general plugin in the API server, the engine core and the workers. It imports
nothing else of this project. What it can't do safely it leaves undone, and says why in one
line of the log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from conserve_vllm.adaptive_chunks import SMALLEST, adapt_chunks, smallest_tokens
from conserve_vllm.core_sharing import is_wanted, share_cores
from conserve_vllm.kv_guard import installed_vllm, why_not
from conserve_vllm.nixl_polling import POLL_US, poll_patiently, poll_us
from conserve_vllm.queue_waiting import WAIT_US, sleep_between_looks, wait_us

if TYPE_CHECKING:
    from conserve_vllm.kv_server import ConversationEndpoints, ConversationRoutes

log = logging.getLogger("vllm.conserve")


def register() -> None:
    """The entry point of `vllm.general_plugins`. Never raises: an engine without it serves as before."""
    _poll_nixl_patiently()
    _share_cores()
    _sleep_between_looks()
    _adapt_chunks()
    _follow_conversations()


def _poll_nixl_patiently() -> None:
    try:
        interval_us = poll_us()
        if interval_us is not None and poll_patiently(interval_us):
            log.info("NIXL's progress thread waits for up to %d µs instead of spinning", interval_us)
    except ValueError as error:
        log.warning("%s is ignored: %s", POLL_US, error)
    except AttributeError as error:
        log.warning("NIXL's progress thread spins as before: its binding has changed (%s)", error)


def _share_cores() -> None:
    if not is_wanted():
        return
    try:
        share_cores()
    except (ImportError, AttributeError) as error:
        log.warning("the worker takes the last core as before: vLLM has changed (%s)", error)
    else:
        log.info("the worker stays on the cores that the engine was given")


def _sleep_between_looks() -> None:
    try:
        interval_us = wait_us()
        if interval_us is not None:
            sleep_between_looks(interval_us)
            log.info("readers of the engine's queues sleep %d µs between two looks", interval_us)
    except ValueError as error:
        log.warning("%s is ignored: %s", WAIT_US, error)
    except (ImportError, AttributeError) as error:
        log.warning("readers of the engine's queues yield as before: vLLM has changed (%s)", error)


def _adapt_chunks() -> None:
    try:
        smallest = smallest_tokens()
        if smallest is not None:
            adapt_chunks(smallest)
            log.info("chunks of prompts follow the load, from %d tokens on", smallest)
    except ValueError as error:
        log.warning("%s is ignored: %s", SMALLEST, error)
    except (ImportError, AttributeError, OSError) as error:
        log.warning("chunks of prompts stay as they are: vLLM has changed (%s)", error)


def _follow_conversations() -> None:
    from conserve_vllm.kv_hooks import install

    try:
        reason = why_not()
        if reason is not None:
            log.warning("conversation KV is off: %s", reason)
            return
        install()
    except Exception:
        log.exception("conversation KV is off: it could not be installed")
        return
    vllm = installed_vllm()
    note = "" if vllm.is_tested else ": not a tested version, but it behaves like one"
    log.info("KV follows conversations on vLLM %s%s", vllm.version, note)


def __getattr__(name: str) -> Any:
    """The server's parts, loaded only in its process."""
    if name in ("ConversationEndpoints", "ConversationRoutes"):
        from conserve_vllm import kv_server

        return getattr(kv_server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["ConversationEndpoints", "ConversationRoutes", "register"]
