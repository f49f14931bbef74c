"""A call from the API server's process, carried out on one engine's ledger. Plain values in and out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Protocol

from conserve_vllm.kv_ledger import Ledger


class RunningRequest(Protocol):
    """A request that vLLM's scheduler still has: waiting, running, or held for a transfer."""

    request_id: str
    session_id: str | None


def answer_call(
    ledger: Ledger,
    requests: Iterable[RunningRequest],
    call: str,
    conversations: list[str],
    number: float,
) -> dict[str, Any]:
    """What the call did, and the ledger's counts since the last call. `number`: time-out or cursor.

    Raises ValueError for a call that there is none of.
    """
    if call == "release":
        found = _release(ledger, requests, conversations)
    elif call == "refresh":
        found = {"blocks": sum(ledger.refresh(name) for name in conversations)}
    elif call == "keep":
        found = {"blocks": sum(ledger.keep(name, number) for name in conversations)}
    elif call == "resident":
        resident = ledger.resident(int(number) if number >= 0 else None)
        found = {"cursor": resident.cursor, "tokens": resident.tokens, "is_full": resident.is_full}
    elif call == "capabilities":
        found = {"block_size": ledger.block_size, "blocks": ledger.blocks}
    else:
        raise ValueError(f"no such call: {call}")
    return {**found, "counts": asdict(ledger.take_counts())}


def _release(ledger: Ledger, requests: Iterable[RunningRequest], conversations: list[str]) -> dict[str, Any]:
    running: dict[str, set[str]] = {name: set() for name in conversations}
    for request in requests:
        if request.session_id in running:
            running[request.session_id].add(request.request_id)
    waiting = [name for name in conversations if not ledger.release(name, running[name])]
    return {"waiting": waiting}
