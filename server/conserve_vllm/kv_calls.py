"""A call from the API server's process, carried out on one engine's ledger. Plain values in and out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, Final, Protocol

from conserve_vllm.host_ledger import HostLedger
from conserve_vllm.kv_ledger import Ledger

NO_HOST: Final = "the engine has no host tier that the plugin can follow"


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
    host: HostLedger | None = None,
) -> dict[str, Any]:
    """What the call did, and the ledger's counts since the last call. `number`: time-out or cursor.

    `context` gives the tokens whose request would bring each conversation back from the host;
    none where nothing is missing, or where that would cost others what is kept.

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
        chunks = 0 if host is None else host.chunks
        found = {"block_size": ledger.block_size, "blocks": ledger.blocks, "host_blocks": chunks}
    elif host is None and call in ("offload", "context"):
        return {"refused": NO_HOST}
    elif host is not None and call == "offload":
        found = {"blocks": sum(ledger.offload(name, host.holds) for name in conversations)}
    elif host is not None and call == "context":
        found = {"contexts": {name: _to_fetch(ledger, host, name) for name in conversations}}
    else:
        raise ValueError(f"no such call: {call}")
    return {**found, "counts": asdict(ledger.take_counts())}


def _to_fetch(ledger: Ledger, host: HostLedger, name: str) -> list[int]:
    found = host.fetch(name, ledger.hashes(name))
    if not found.missing or found.missing >= ledger.free_unkept:
        return []
    ledger.counts.fetched += found.missing
    return found.tokens


def _release(ledger: Ledger, requests: Iterable[RunningRequest], conversations: list[str]) -> dict[str, Any]:
    running: dict[str, set[str]] = {name: set() for name in conversations}
    for request in requests:
        if request.session_id in running:
            running[request.session_id].add(request.request_id)
    waiting = [name for name in conversations if not ledger.release(name, running[name])]
    return {"waiting": waiting}
