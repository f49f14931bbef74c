"""The hooks in vLLM's engine: a ledger for each KV cache, told of what requests free."""

from __future__ import annotations

import functools
import importlib
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from conserve_vllm.host_hooks import host_ledger_of, keys_of, tokens_of
from conserve_vllm.host_ledger import HostLedger
from conserve_vllm.kv_calls import answer_call
from conserve_vllm.kv_ledger import Ledger
from conserve_vllm.kv_queue import attach

UTILITY: Final = "conserve_kv"
"""The engine core's method that the API server's process calls."""
_LEDGER: Final = "_conserve_ledger"
_REFUSED: Final = "_conserve_refused"
_HOST: Final = "_conserve_host"
_DENSE: Final = ("FullAttentionSpec", "MLAAttentionSpec")

log = logging.getLogger("vllm.conserve")


def install() -> None:
    """Hook into vLLM's classes, once a process. Call it only where `kv_guard.why_not()` has no reason."""
    manager = importlib.import_module("vllm.v1.core.kv_cache_manager").KVCacheManager
    core = importlib.import_module("vllm.v1.engine.core").EngineCore
    if hasattr(core, UTILITY):
        return
    setattr(core, UTILITY, _utility)
    manager.free = _around_free(manager.free)
    manager.pop_blocks_for_free = _around_free(manager.pop_blocks_for_free)
    manager.new_step_starts = _before_step(manager.new_step_starts)


def ledger_of(manager: Any) -> Ledger | None:
    """The ledger of one KV cache, made when first asked for; None where it is refused."""
    found: Ledger | None = manager.__dict__.get(_LEDGER)
    if found is None and _REFUSED not in manager.__dict__:
        reason = _refusal(manager)
        if reason is not None:
            _refuse(manager, reason)
            return None
        (group,) = manager.kv_cache_config.kv_cache_groups
        found = Ledger(manager.block_pool, block_size=group.kv_cache_spec.block_size, now_s=time.monotonic)
        attach(manager.block_pool.free_block_queue, found)
        setattr(manager, _LEDGER, found)
    return found


def refused(manager: Any) -> str | None:
    """Why this KV cache is left alone; None if it is not."""
    ledger_of(manager)
    reason: str | None = manager.__dict__.get(_REFUSED)
    return reason


def _refusal(manager: Any) -> str | None:
    if not manager.enable_caching:
        return "prefix caching is off"
    groups = manager.kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        return f"the model has {len(groups)} KV cache groups (hybrid): only one is supported"
    kind = type(groups[0].kv_cache_spec).__name__
    if kind not in _DENSE:
        return f"the KV cache is a {kind}: only {' and '.join(_DENSE)} are supported"
    return None


def _refuse(manager: Any, reason: str) -> None:
    log.warning("conversation KV is off: %s", reason)
    setattr(manager, _REFUSED, reason)
    ledger: Ledger | None = manager.__dict__.pop(_LEDGER, None)
    if ledger is not None:
        ledger.clear()
    manager.__dict__.pop(_HOST, None)


def _host_of(scheduler: Any, ledger: Ledger) -> HostLedger | None:
    """The ledger of the host tier, looked for at the first call: a gateway asks before it sends turns."""
    manager = scheduler.kv_cache_manager
    if _HOST not in manager.__dict__:
        try:
            found = host_ledger_of(scheduler, ledger.block_size)
        except Exception:
            log.exception("the host tier is not followed: it is unlike that of the tested versions")
            found = None
        ledger.on_released = None if found is None else found.release
        setattr(manager, _HOST, found)
    host: HostLedger | None = manager.__dict__[_HOST]
    return host


def _guarded(manager: Any, act: Callable[[Ledger], None]) -> None:
    """Run `act` on the cache's ledger. What fails there must not fail a request: the ledger goes instead."""
    try:
        ledger = ledger_of(manager)
        if ledger is not None:
            act(ledger)
    except Exception as error:
        log.exception("conversation KV failed")
        _refuse(manager, f"it failed and was given up: {type(error).__name__}: {error}")


def _around_free(original: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @functools.wraps(original)
    def free(self: Any, request: Any) -> Any:
        session, request_id = request.session_id, request.request_id

        def record(ledger: Ledger) -> None:
            (blocks,) = self.coordinator.get_blocks(request_id)
            ledger.record(session, request_id, blocks)
            host: HostLedger | None = self.__dict__.get(_HOST)
            if host is not None:
                host.record(session, keys_of(request), tokens_of(request))

        _guarded(self, record)
        result = original(self, request)
        if request.is_finished():  # or preempted: then it comes back
            _guarded(self, lambda ledger: ledger.freed(session, request_id))
        return result

    return free


def _before_step(original: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(original)
    def new_step_starts(self: Any) -> None:
        _guarded(self, Ledger.step)
        original(self)

    return new_step_starts


def _utility(self: Any, call: str, conversations: list[str], number: float) -> dict[str, Any]:
    """`EngineCore.conserve_kv`: runs in the engine's thread, between steps."""
    manager = self.scheduler.kv_cache_manager
    reason = refused(manager)
    ledger = ledger_of(manager)
    if ledger is None:
        return {"refused": reason}
    host = _host_of(self.scheduler, ledger)
    return answer_call(ledger, self.scheduler.requests.values(), call, conversations, number, host)
