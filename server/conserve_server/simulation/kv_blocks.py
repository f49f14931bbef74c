"""An engine's paged KV: blocks that running requests hold, and a prefix cache in what they leave.

A conversation's blocks stay cached when its request ends, least recently used first to go, from
their end (vLLM frees them in that order). A prefix that conversations share is held once while
any of them runs. Counted in whole blocks, like vLLM's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from conserve_server.simulation.host_tier import HostMemory, HostTier
from conserve_server.simulation.request import Request

BLOCK_TOKENS = 16
"""vLLM's block size on GPUs."""


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


@dataclass(slots=True)
class _Cached:
    """What nobody runs with: a conversation's own blocks, behind `shared_blocks` of a prefix; or a prefix."""

    blocks: int
    shared_blocks: int = 0


@dataclass(slots=True)
class _Prefix:
    """A prefix that `users` run with; `is_computed` once the first of them has prefilled it."""

    blocks: int
    users: int = 1
    is_computed: bool = False


class KVBlocks:
    """Blocks of one engine. `used` are held by requests, `cached` can be evicted, the rest is free."""

    def __init__(self, capacity_tokens: int, host: HostMemory | None = None) -> None:
        self.total = capacity_tokens // BLOCK_TOKENS
        self.used = 0
        self.cached = 0
        self._lru: OrderedDict[str, _Cached] = OrderedDict()
        self._kept: dict[str, float] = {}
        self._prefixes: dict[str, _Prefix] = {}
        self.evicted_blocks = 0
        self.host = HostTier(host, block_tokens=BLOCK_TOKENS) if host is not None else None

    @property
    def available(self) -> int:
        """Blocks that a request may still take; cached ones are evicted for it."""
        return self.total - self.used

    def take(self, blocks: int, now_s: float) -> None:
        """Hold so many more blocks; at most `available`."""
        short = blocks - (self.total - self.used - self.cached)
        if short > 0:
            self._evict(short, now_s)
        self.used += blocks

    def give_back(self, blocks: int) -> None:
        """Free blocks that a request held and that nothing is remembered of."""
        self.used -= blocks

    # -- requests ------------------------------------------------------------------------------

    def cached_tokens(self, request: Request) -> int:
        """Tokens of the request's context that are cached for it now."""
        own, shared = self._hits(request)
        return (own + shared) * BLOCK_TOKENS

    def admit(self, request: Request, now_s: float) -> bool:
        """Hold the blocks of the request's whole context and note its hit; False where there is no room.

        vLLM admits a request when its whole prompt fits (`scheduler_reserve_full_isl`).
        """
        own_hit, shared_hit = self._hits(request)
        loads = max(0, self._reach(request) - own_hit - shared_hit)
        entry = self._lru.get(request.conversation)
        shared = self._shared_blocks(request, entry)
        prefix = self._prefixes.get(request.prefix) if shared and request.prefix is not None else None
        woken = shared if prefix is None else 0
        need = blocks_of(request.length) - shared
        if need + woken > self.available:
            return False
        if entry is not None:
            self._forget(request.conversation)
        if shared and request.prefix is not None:
            self._join_prefix(request.prefix, shared, now_s)
        self.take(need, now_s)
        request.shared_blocks = shared
        request.computed = (own_hit + shared_hit) * BLOCK_TOKENS
        request.load_tokens = 0 if request.is_pulled else loads * BLOCK_TOKENS
        request.hit_tokens = request.computed + request.load_tokens
        if self.host is not None and request.load_tokens:
            self.host.touch(request.conversation)
        return True

    def release(self, request: Request, kv_tokens: int, *, held_tokens: int, remembers: bool = True) -> None:
        """The request holds nothing more: of `held_tokens`, the whole blocks of `kv_tokens` stay cached."""
        self.used -= blocks_of(held_tokens) - request.shared_blocks
        own = kv_tokens // BLOCK_TOKENS - request.shared_blocks
        if remembers and own > 0:
            self._remember(request.conversation, _Cached(own, request.shared_blocks))
        if request.shared_blocks and request.prefix is not None:
            self._leave_prefix(request.prefix)
        request.shared_blocks = 0

    def prefilled(self, request: Request) -> None:
        """The request has computed its prompt: others hit its prefix from now on."""
        if request.shared_blocks and request.prefix is not None:
            self._prefixes[request.prefix].is_computed = True

    def drop(self, conversation: str) -> None:
        """The conversation has ended: free what is cached of it."""
        if conversation in self._lru:
            self._forget(conversation)
        if self.host is not None:
            self.host.end(conversation)

    def missing_tokens(self, request: Request) -> int:
        """Tokens of the request's context that are on the host alone."""
        own, shared = self._hits(request)
        return max(0, self._reach(request) - own - shared) * BLOCK_TOKENS

    def restore(self, request: Request, now_s: float) -> bool:
        """Cache again what the host has of the conversation; False where there is no room for more of it.

        A prefix that is not on the device any more comes as the conversation's own.
        """
        shared = self._resident(request)
        own = self._reach(request) - shared
        entry = self._lru.get(request.conversation)
        if own <= (entry.blocks if entry is not None else 0) or own > self.available:
            return False
        if entry is not None:
            self._forget(request.conversation)
        self.take(own, now_s)
        self.used -= own
        self._cache(request.conversation, _Cached(own, shared))
        return True

    def truncate(self, conversation: str, tokens: int) -> None:
        """The conversation's history was rewritten after so many tokens: what came later is of no use."""
        if self.host is not None:
            self.host.truncate(conversation, tokens // BLOCK_TOKENS)
        entry = self._lru.get(conversation)
        if entry is None:
            return
        useful = max(0, tokens // BLOCK_TOKENS - entry.shared_blocks)
        if useful == 0:
            self._forget(conversation)
        elif useful < entry.blocks:
            self.cached -= entry.blocks - useful
            entry.blocks = useful

    def keep(self, conversation: str, until_s: float) -> None:
        """Evict the conversation's blocks only if nothing else can go, until that time."""
        self._kept[conversation] = until_s

    # -- the cache -----------------------------------------------------------------------------

    def _hits(self, request: Request) -> tuple[int, int]:
        """Blocks of the conversation's own, and of its prefix, that need no computing."""
        limit = request.reusable_tokens // BLOCK_TOKENS
        entry = self._lru.get(request.conversation)
        if entry is None:
            shared = self._resident(request)
            return 0, min(shared, limit)
        if entry.shared_blocks > self._resident(request):
            return 0, min(self._resident(request), limit)
        return max(0, min(entry.blocks, limit - entry.shared_blocks)), min(entry.shared_blocks, limit)

    def _reach(self, request: Request) -> int:
        """Blocks of the request's context that need no computing if the host is asked; 0 without one."""
        if self.host is None:
            return 0
        prefix = _prefix_key(request.prefix) if request.prefix is not None else None
        reach = self.host.reach(request.conversation, prefix, self._resident(request))
        return min(reach, request.reusable_tokens // BLOCK_TOKENS)

    def _resident(self, request: Request) -> int:
        """Blocks of the request's prefix that are computed and on the engine."""
        if request.prefix is None:
            return 0
        running = self._prefixes.get(request.prefix)
        if running is not None:
            return running.blocks if running.is_computed else 0
        idle = self._lru.get(_prefix_key(request.prefix))
        return idle.blocks if idle is not None else 0

    def _shared_blocks(self, request: Request, entry: _Cached | None) -> int:
        """Blocks that the request holds together with others; 0 where it holds them alone."""
        if request.prefix is None:
            return 0
        running = self._prefixes.get(request.prefix)
        if running is not None and not running.is_computed:
            return 0
        if entry is not None and not entry.shared_blocks:
            return 0
        shared = min(request.shared_tokens, request.length) // BLOCK_TOKENS
        return min(shared, running.blocks) if running is not None else shared

    def _join_prefix(self, name: str, blocks: int, now_s: float) -> None:
        running = self._prefixes.get(name)
        if running is not None:
            running.users += 1
            return
        idle = self._lru.get(_prefix_key(name))
        is_computed = idle is not None and idle.blocks >= blocks
        if idle is not None:
            self._forget(_prefix_key(name))
        self.take(blocks, now_s)
        self._prefixes[name] = _Prefix(blocks, is_computed=is_computed)

    def _leave_prefix(self, name: str) -> None:
        prefix = self._prefixes[name]
        prefix.users -= 1
        if prefix.users:
            return
        del self._prefixes[name]
        self.used -= prefix.blocks
        if prefix.is_computed:
            self._remember(_prefix_key(name), _Cached(prefix.blocks))

    def _remember(self, key: str, entry: _Cached) -> None:
        self._cache(key, entry)
        if self.host is not None:
            self.host.store(key, entry.blocks, entry.shared_blocks)

    def _cache(self, key: str, entry: _Cached) -> None:
        if key in self._lru:
            self._forget(key)
        self._lru[key] = entry
        self.cached += entry.blocks

    def _forget(self, key: str) -> None:
        self.cached -= self._lru.pop(key).blocks
        self._kept.pop(key, None)

    def _evict(self, blocks: int, now_s: float) -> None:
        """Free cached blocks, least recently used first; kept conversations last."""
        self.evicted_blocks += blocks
        while blocks > 0:
            key = self._first_to_go(now_s) if self._kept else next(iter(self._lru))
            entry = self._lru[key]
            gone = min(blocks, entry.blocks)
            entry.blocks -= gone
            self.cached -= gone
            blocks -= gone
            if not entry.blocks:
                self._forget(key)

    def _first_to_go(self, now_s: float) -> str:
        keys = (key for key in self._lru if self._kept.get(key, now_s) <= now_s)
        return next(keys, None) or next(iter(self._lru))


def _prefix_key(name: str) -> str:
    return f"\0{name}"
