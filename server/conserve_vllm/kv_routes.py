"""The routes under `/v1/conserve/`, in the process of vLLM's API server.

    POST release   {"conversations": [id, …]}                  their KV is not needed any more
    POST refresh   {"conversations": [id, …]}                  as if just used
    POST keep      {"conversations": [id, …], "timeout_s": t}  taken last, for t seconds; 0 ends it
    GET  resident  ?since=cursor                               tokens cached of each conversation
    GET  capabilities

A conversation is named as its requests named it (`X-Session-ID`). Under `/v1`, so that
`--api-key` guards them. Where the plugin leaves vLLM alone they answer 501 with the reason.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from conserve_vllm.host_fetch import bring_back
from conserve_vllm.kv_guard import Vllm, why_not
from conserve_vllm.kv_hooks import UTILITY
from conserve_vllm.kv_metrics import KvMetrics

PREFIX: Final = "/v1/conserve/"
API_VERSION: Final = 1
CALL_TIMEOUT_S: Final = 10.0
"""Longest wait for the engine: it answers between two steps."""
MAX_CONVERSATIONS: Final = 1_000
MAX_ID_CHARACTERS: Final = 1_024
MAX_BODY_BYTES: Final = MAX_CONVERSATIONS * MAX_ID_CHARACTERS
MAX_TIMEOUT_S: Final = 86_400.0
_EVERYTHING: Final = -1.0

log = logging.getLogger("vllm.conserve")

CallEngines = Callable[[Any, str, list[str], float], Awaitable[list[dict[str, Any]]]]
"""Carries a call to every rank behind vLLM's engine client; one answer each."""


BringBack = Callable[[Any, dict[str, list[int]]], Awaitable[None]]
"""Brings the contexts of conversations, as token ids, into the engine's cache."""


class Refused(Exception):
    """The request can't be served: an HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's body, checked."""

    conversations: list[str]
    timeout_s: float = 0.0


async def call_engines(
    client: Any, call: str, conversations: list[str], number: float
) -> list[dict[str, Any]]:
    """Ask every data-parallel rank that this API server knows. Raises Refused."""
    core = getattr(client, "engine_core", None)
    ranks, send = getattr(core, "core_engines", None), getattr(core, "_call_utility_async", None)
    if ranks is None or send is None:
        raise Refused(501, "this vLLM's engine client has no way to reach every rank")
    calls = [send(UTILITY, call, conversations, number, engine=rank) for rank in ranks]
    async with asyncio.timeout(CALL_TIMEOUT_S):
        return list(await asyncio.gather(*calls))


def not_installed() -> str | None:
    """Why the engines have no hooks; None if they have them, as far as this process can tell."""
    reason = why_not()
    if reason is not None:
        return reason
    core = importlib.import_module("vllm.v1.engine.core").EngineCore
    if not hasattr(core, UTILITY):
        return "the plugin's hooks were not loaded: VLLM_PLUGINS must name conserve, or be unset"
    return None


class KvRoutes:
    """The routes over one API server's engine client (`app.state.engine_client`)."""

    def __init__(
        self,
        *,
        reason: str | None,
        vllm: Vllm,
        metrics: KvMetrics,
        call: CallEngines = call_engines,
        bring_back: BringBack = bring_back,
    ) -> None:
        self._reason = reason
        self._vllm = vllm
        self._metrics = metrics
        self._call = call
        self._bring_back = bring_back

    def table(self) -> list[Route]:
        """The routes, for an application."""
        posts = {
            "release": self.release,
            "refresh": self.refresh,
            "keep": self.keep,
            "offload": self.offload,
            "fetch": self.fetch,
        }
        gets = {"resident": self.resident, "capabilities": self.capabilities}
        return [
            *(Route(PREFIX + name, endpoint, methods=["POST"]) for name, endpoint in posts.items()),
            *(Route(PREFIX + name, endpoint, methods=["GET"]) for name, endpoint in gets.items()),
        ]

    async def release(self, request: Request) -> Response:
        """Free what no other conversation shares, at once or when the running requests have ended."""
        return await self._answer(request, "release", _merge_released)

    async def refresh(self, request: Request) -> Response:
        """Make them the most recently used."""
        return await self._answer(request, "refresh", _merge_blocks)

    async def keep(self, request: Request) -> Response:
        """Protect them until the time-out."""
        return await self._answer(request, "keep", _merge_blocks)

    async def offload(self, request: Request) -> Response:
        """Let what the host has a copy of be the next to be taken."""
        return await self._answer(request, "offload", _merge_blocks)

    async def fetch(self, request: Request) -> Response:
        """Bring conversations back from the host, ahead of their next turns. Answers when they are."""

        async def back(request: Request) -> dict[str, Any]:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answers = await self._ask(request, "context")
                if len(answers) > 1:
                    raise Refused(501, "fetch does not know which data-parallel rank the next turn goes to")
                contexts = {name: tokens for name, tokens in answers[0]["contexts"].items() if tokens}
                await self._bring_back(request.app.state.engine_client, contexts)
            return {"tokens": {name: len(tokens) - 1 for name, tokens in contexts.items()}}

        return await self._answered("fetch", back(request))

    async def resident(self, request: Request) -> Response:
        """What is cached of each conversation that has changed since the cursor."""
        return await self._answer(request, "resident", _merge_resident)

    async def capabilities(self, request: Request) -> Response:
        """What there is, and on which vLLM."""

        def merge(answers: list[dict[str, Any]]) -> dict[str, Any]:
            host_blocks = sum(answer["host_blocks"] for answer in answers)
            with_host = ["offload", *(["fetch"] if len(answers) == 1 else [])] if host_blocks else []
            return {
                "api_version": API_VERSION,
                "calls": ["release", "refresh", "keep", "resident", *with_host],
                "vllm_version": self._vllm.version,
                "is_tested": self._vllm.is_tested,
                "ranks": len(answers),
                "block_size": answers[0]["block_size"],
                "blocks": sum(answer["blocks"] for answer in answers),
                "host_blocks": host_blocks,
            }

        return await self._answer(request, "capabilities", merge)

    async def _answer(
        self, request: Request, call: str, merge: Callable[[list[dict[str, Any]]], dict[str, Any]]
    ) -> Response:
        async def merged() -> dict[str, Any]:
            return merge(await self._ask(request, call))

        return await self._answered(call, merged())

    async def _answered(self, call: str, work: Awaitable[dict[str, Any]]) -> Response:
        started_s, outcome = time.monotonic(), "failed"
        try:
            document = await work
            outcome = "done"
            return JSONResponse(document)
        except Refused as refused:
            outcome = "refused"
            return _error(refused.status, str(refused))
        except TimeoutError:
            return _error(504, f"the engine did not answer within {CALL_TIMEOUT_S:g} s")
        except Exception as error:
            log.exception("the call %s failed", call)
            return _error(503, f"the engine failed: {error}")
        finally:
            self._metrics.called(call, outcome, time.monotonic() - started_s)

    async def _ask(self, request: Request, call: str) -> list[dict[str, Any]]:
        if self._reason is not None:
            raise Refused(501, self._reason)
        conversations: list[str] = []
        number = _EVERYTHING
        if request.method == "POST":
            asked = await _read(request, needs_timeout=call == "keep")
            conversations, number = asked.conversations, asked.timeout_s
        elif call == "resident":
            number = _cursor(request.query_params.get("since"))
        client = request.app.state.engine_client
        answers = await self._call(client, call, conversations, number)
        if len(answers) > 1 and number != _EVERYTHING and call == "resident":
            # A cursor is one rank's own, and a conversation may be on several.
            answers = await self._call(client, call, conversations, _EVERYTHING)
        for answer in answers:
            if answer.get("refused") is not None:
                raise Refused(501, answer["refused"])
            self._metrics.add(answer["counts"])
        return answers


def _merge_released(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """`waiting`: those with requests under way, released at their end."""
    return {"waiting": sorted({name for answer in answers for name in answer["waiting"]})}


def _merge_blocks(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return {"blocks": sum(answer["blocks"] for answer in answers)}


def _merge_resident(answers: list[dict[str, Any]]) -> dict[str, Any]:
    tokens: dict[str, int] = {}
    for answer in answers:
        for name, number in answer["tokens"].items():
            tokens[name] = tokens.get(name, 0) + number
    is_full = any(answer["is_full"] for answer in answers)
    return {"cursor": answers[0]["cursor"], "is_full": is_full, "tokens": tokens}


async def _read(request: Request, *, needs_timeout: bool) -> Asked:
    if int(request.headers.get("content-length", "0")) > MAX_BODY_BYTES:
        raise Refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes: name fewer conversations")
    try:
        document = json.loads(await request.body())
        conversations, timeout_s = document["conversations"], document.get("timeout_s", 0.0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(400, 'the body must be JSON such as {"conversations": ["id"]}') from error
    if not isinstance(conversations, list) or len(conversations) > MAX_CONVERSATIONS:
        raise Refused(400, f"conversations must be a list of at most {MAX_CONVERSATIONS}")
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_ID_CHARACTERS for name in conversations):
        raise Refused(400, f"each conversation must be a text of 1 to {MAX_ID_CHARACTERS} characters")
    if needs_timeout and "timeout_s" not in document:
        raise Refused(400, "keep needs timeout_s, in seconds; 0 ends a keep")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise Refused(400, "timeout_s must be a number of seconds")
    if not 0 <= timeout_s <= MAX_TIMEOUT_S:
        raise Refused(400, f"timeout_s must be from 0 to {MAX_TIMEOUT_S:g}")
    return Asked(conversations, float(timeout_s))


def _cursor(text: str | None) -> float:
    if text is None:
        return _EVERYTHING
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise Refused(400, "since must be the cursor of an earlier answer")
    return float(text)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "conserve_kv", "code": status}}, status)
