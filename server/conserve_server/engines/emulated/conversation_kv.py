"""The emulated engine's side of `/v1/conserve/`: what `conserve_vllm` adds to a real one.

A conversation's blocks are known by their digests, as its requests left them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_server.core.clock import Clock
from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.kv_cache import BlockPool
from conserve_server.engines.emulated.wire import WireError, bad_request, http_error, parse_body

CALLS: Final = ("release", "refresh", "keep", "resident")


class ConversationKv:
    """Which blocks are whose, and until when they are kept. `running` gives the sessions under way."""

    def __init__(
        self,
        config: EmulatedConfig,
        clock: Clock,
        pool: BlockPool,
        running: Callable[[], Iterable[str | None]],
    ) -> None:
        self._config = config
        self._clock = clock
        self._pool = pool
        self._running = running
        self._digests: dict[str, dict[int, None]] = {}
        self._kept_until_s: dict[str, float] = {}
        self._ending: set[str] = set()
        self._reported: dict[str, int] = {}
        pool.is_kept = self._is_kept

    def freed(self, session: str | None, digests: Iterable[int]) -> None:
        """A request of that conversation has given its blocks back."""
        if session is not None:
            self._digests.setdefault(session, {}).update(dict.fromkeys(digests))
        for name in tuple(self._ending):
            self.release(name)

    def release(self, session: str) -> bool:
        """Free what no other conversation shares; False while a request of it runs."""
        self._kept_until_s.pop(session, None)
        if session in self._running():
            self._ending.add(session)
            return False
        self._ending.discard(session)
        own = self._digests.pop(session, {})
        shared = set().union(*self._digests.values()) if self._digests else set()
        self._pool.forget([digest for digest in own if digest not in shared])
        return True

    def refresh(self, session: str) -> int:
        """Its blocks are the last to be taken; how many there are."""
        return self._pool.refresh(self._digests.get(session, {}))

    def keep(self, session: str, timeout_s: float) -> int:
        """The same, and before all that is not kept; 0 seconds end it."""
        if timeout_s <= 0:
            self._kept_until_s.pop(session, None)
        elif session in self._digests:
            self._kept_until_s[session] = self._clock.now_s() + timeout_s
        return self.refresh(session)

    def is_kept(self, session: str) -> bool:
        return self._kept_until_s.get(session, 0.0) > self._clock.now_s()

    def resident(self) -> dict[str, int]:
        """Tokens cached of each conversation, 0 for one that is gone since the last call."""
        size = self._config.block_size
        now = {name: self._pool.count(digests) * size for name, digests in self._digests.items()}
        gone = dict.fromkeys(self._reported.keys() - now.keys(), 0)
        self._reported = now
        return now | gone

    def _is_kept(self, digest: int) -> bool:
        return any(self.is_kept(name) and digest in self._digests[name] for name in self._kept_until_s)


def conversation_routes(kv: ConversationKv, config: EmulatedConfig) -> list[Route]:
    """The routes; without the plugin to emulate, those of an engine that has none."""

    async def act(request: Request) -> Response:
        try:
            names, timeout_s = _read(parse_body(await request.body()))
        except WireError as error:
            return error.response()
        match request.path_params["call"]:
            case "release":
                return JSONResponse({"waiting": [name for name in names if not kv.release(name)]})
            case "refresh":
                return JSONResponse({"blocks": sum(kv.refresh(name) for name in names)})
            case "keep":
                return JSONResponse({"blocks": sum(kv.keep(name, timeout_s) for name in names)})
        return http_error(404, "Not Found").response()

    async def resident(_: Request) -> Response:
        return JSONResponse({"cursor": 0, "is_full": True, "tokens": kv.resident()})

    async def capabilities(_: Request) -> Response:
        sizes = {"block_size": config.block_size, "blocks": config.kv_blocks}
        return JSONResponse({"api_version": 1, "calls": list(CALLS), "ranks": 1, **sizes})

    if not config.follows_conversations:
        return []
    return [
        Route("/v1/conserve/resident", resident),
        Route("/v1/conserve/capabilities", capabilities),
        Route("/v1/conserve/{call}", act, methods=["POST"]),
    ]


def _read(document: Any) -> tuple[list[str], float]:
    names = document.get("conversations") if isinstance(document, dict) else None
    if not isinstance(names, list):
        raise bad_request("conversations must be a list")
    return [str(name) for name in names], float(document.get("timeout_s", 0.0))
