"""Handing KV over: leases on the prefill engine, pulls on the decode engine.

The parameters have the shape that vLLM's NixlConnector returns; the KV itself is stood in
for by the digests of its blocks, which the decode engine fetches from the prefill engine
over HTTP and compares with its own prompt's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote
from uuid import uuid4

import httpx2

from conserve_server.core.clock import Clock
from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.kv_cache import BlockPool, digest_blocks
from conserve_server.engines.emulated.metrics import EngineMetrics
from conserve_server.engines.emulated.sequence import KvLoadFailed, Sequence


class LeaseRefused(Exception):
    """A pull that can't be served; the message says why, `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class _Lease:
    blocks: list[int]
    digests: list[int]
    expires_s: float
    session: str | None = None
    is_pulled: bool = False


class LeaseBook:
    """KV that waits on this engine for its decoders. `engine_id` is new with every start."""

    def __init__(
        self,
        config: EmulatedConfig,
        clock: Clock,
        pool: BlockPool,
        metrics: EngineMetrics,
        on_freed: Callable[[], None],
    ) -> None:
        self.engine_id = str(uuid4())
        self._config = config
        self._clock = clock
        self._pool = pool
        self._metrics = metrics
        self._on_freed = on_freed
        self._leases: dict[str, _Lease] = {}

    @property
    def sessions(self) -> set[str | None]:
        """The conversations whose KV waits here."""
        return {lease.session for lease in self._leases.values()}

    def hold(self, sequence: Sequence) -> dict[str, object]:
        """Keep the sequence's blocks for a decoder; the transfer parameters to pass on."""
        digests = digest_blocks(sequence.prompt, self._config.block_size, with_tail=True)
        expires_s = self._clock.now_s() + self._config.lease_s
        self._leases[sequence.id] = _Lease(sequence.blocks, digests, expires_s, sequence.session)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(sequence.blocks)],
            "remote_engine_id": self.engine_id,
            "remote_request_id": sequence.id,
            "remote_host": self._config.host,
            "remote_port": self._config.port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": len(sequence.prompt),
            "remote_blocks_expiry_time": None,
            "transfer_mode": "pull",
            "remote_prefill_cached_tokens": sequence.cached_tokens,
        }

    async def watch(self, request_id: str) -> None:
        """Return once the lease has ended, ending it when its time is over."""
        while (lease := self._leases.get(request_id)) is not None:
            left_s = lease.expires_s - self._clock.now_s()
            if left_s <= 0:
                self._metrics.lease_expired()
                self.free(request_id)
                return
            await self._clock.sleep(left_s)

    def pull(self, engine_id: str, request_id: str) -> list[int]:
        """The digests of a lease's blocks, once. Raises LeaseRefused."""
        lease = self._find(engine_id, request_id)
        if lease.is_pulled:
            raise LeaseRefused(f"the KV of {request_id} has been pulled already", 409)
        lease.is_pulled = True
        self._extend(lease)
        return lease.digests

    def renew(self, engine_id: str, request_id: str) -> None:
        """A decoder that still waits for room says so. Raises LeaseRefused."""
        self._extend(self._find(engine_id, request_id))

    def free(self, request_id: str) -> None:
        """Give the blocks back; a lease that has ended is left alone."""
        lease = self._leases.pop(request_id, None)
        if lease is not None:
            self._pool.release(lease.blocks)
            self._on_freed()

    def _extend(self, lease: _Lease) -> None:
        lease.expires_s = max(lease.expires_s, self._clock.now_s() + self._config.lease_s * 2 / 3)

    def _find(self, engine_id: str, request_id: str) -> _Lease:
        if engine_id != self.engine_id:
            raise LeaseRefused(f"engine {engine_id} is not here, {self.engine_id} is: it was restarted", 404)
        lease = self._leases.get(request_id)
        if lease is None:
            raise LeaseRefused(
                f"no KV is held for {request_id}: pulled, expired or never prefilled here", 404
            )
        if self._clock.now_s() >= lease.expires_s:
            raise LeaseRefused(f"the lease on the KV of {request_id} has expired", 410)
        return lease


class Puller:
    """The decode engine's side: fetches, compares, waits the modelled time."""

    def __init__(self, config: EmulatedConfig, clock: Clock, client: httpx2.AsyncClient) -> None:
        self._config = config
        self._clock = clock
        self._client = client

    async def pull(self, sequence: Sequence, tokens: int) -> None:
        """Have the last `tokens` of the sequence's prompt moved here. Raises KvLoadFailed."""
        address = _address(sequence.kv_params)
        answer = await self._ask("POST", address)
        if answer.status_code != 200:
            raise KvLoadFailed(f"{address} refused: {answer.text}")
        own = digest_blocks(sequence.prompt, self._config.block_size, with_tail=True)
        if _block_hashes(answer) != own:
            await self.release(sequence.kv_params)
            raise KvLoadFailed(f"the KV at {address} is not that of this prompt: its block hashes differ")
        await self._clock.sleep(self._config.timing.transfer_s(tokens))
        await self.release(sequence.kv_params)

    async def release(self, kv_params: Mapping[str, object]) -> None:
        """Tell the prefill engine that its blocks are not wanted; where it can't be told, they expire."""
        try:
            await self._ask("DELETE", _address(kv_params))
        except KvLoadFailed:
            return

    async def keep(self, sequence: Sequence) -> None:
        """Renew the lease for as long as the sequence waits for room; ends when it is placed or gone."""
        while True:
            await self._clock.sleep(self._config.lease_s / 6)
            if sequence.blocks or sequence.finish_reason is not None:
                return
            try:
                await self._ask("PUT", _address(sequence.kv_params))
            except KvLoadFailed:
                return

    async def _ask(self, method: str, address: str) -> httpx2.Response:
        try:
            async with asyncio.timeout(self._config.pull_timeout_s):
                return await self._client.request(method, address)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError) as error:
            raise KvLoadFailed(f"{address} did not answer: {error!r}") from error


def _block_hashes(answer: httpx2.Response) -> object:
    try:
        document = answer.json()
    except ValueError:
        return None
    return document.get("block_hashes") if isinstance(document, dict) else None


def _address(params: Mapping[str, object]) -> str:
    names = ("remote_host", "remote_port", "remote_engine_id", "remote_request_id")
    missing = [name for name in (*names, "remote_block_ids") if not params.get(name)]
    if missing:
        raise KvLoadFailed(f"kv_transfer_params lacks {', '.join(missing)}")
    host, port, engine_id, request_id = (quote(str(params[name]), safe="") for name in names)
    return f"http://{host}:{port}/emulated/kv/{engine_id}/{request_id}"
