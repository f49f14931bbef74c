"""Finds the host tier of a vLLM scheduler: only where its connector uses our cache policy."""

from __future__ import annotations

from typing import Any

from conserve_vllm.host_ledger import HostLedger
from conserve_vllm.host_order import HostOrder


def host_ledger_of(scheduler: Any, block_size: int) -> HostLedger | None:
    """A ledger over the host tier of this scheduler, None where there is none that we can follow.

    One cache group, and host chunks of one block: then a copy's key is its block's hash.
    """
    connector = getattr(scheduler, "connector", None)
    for each in (connector, *getattr(connector, "sub_connectors", ())):
        offloading: Any = getattr(each, "connector_scheduler", None)
        order = getattr(getattr(offloading, "manager", None), "_policy", None)
        if isinstance(order, HostOrder):
            groups = offloading.config.kv_group_configs
            if len(groups) == 1 and groups[0].hashes_per_chunk == 1 and groups[0].group_idx == 0:
                return HostLedger(order, block_size=block_size)
    return None


def keys_of(request: Any) -> list[bytes]:
    """A key for each whole block of the request's context."""
    group = (0).to_bytes(4, "big")
    return [bytes(block_hash) + group for block_hash in request.block_hashes]


def tokens_of(request: Any) -> list[int] | None:
    """The ids of its tokens; None where they are not all that its blocks' hashes depend on."""
    if request.mm_features or request.lora_request is not None or request.cache_salt:
        return None
    if request.prompt_embeds is not None:
        return None
    return list(request.all_token_ids)
