"""A vLLM engine over HTTP (vLLM ≥ 0.31, any hardware): both legs, cancellation, and a look at it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Annotated, NoReturn, TypeVar

import msgspec

from conserve_sdk.protocol import RECEIPT_EMULATED
from conserve_server.core.errors import EngineFailed, EngineRefused
from conserve_server.engines.connection import silent
from conserve_server.engines.connections import Connections
from conserve_server.engines.document import MAX_LOOK_BYTES, decoded, read_whole
from conserve_server.engines.engine import Answer, EngineSpec, EngineStatus, ModelCard, PrefillAnswer
from conserve_server.engines.reasons import why_refused
from conserve_server.engines.vllm_metrics import MAX_COUNT, read_metrics
from conserve_server.engines.wire import read_prefill_answer

T = TypeVar("T")

LOOK_TIMEOUT_S = 5.0


_Text = Annotated[str, msgspec.Meta(max_length=1_024)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class _ModelCard(msgspec.Struct):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=1_024)]
    root: _Text | None = None
    parent: _Text | None = None
    created: _Count | None = None
    max_model_len: _Count | None = None


class _Models(msgspec.Struct):
    data: Annotated[list[_ModelCard], msgspec.Meta(max_length=10_000)]


class _ErrorText(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorText | None = None
    message: str = ""


class VllmEngine:
    """One engine behind a URL, and the connections to it."""

    def __init__(
        self, spec: EngineSpec, *, silence_timeout_s: float, look_timeout_s: float = LOOK_TIMEOUT_S
    ) -> None:
        self._spec = spec
        self._look_timeout_s = look_timeout_s
        self._connections = Connections(
            spec.name, spec.url, silence_timeout_s=silence_timeout_s, access=spec.access
        )

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    async def prefill(self, path: str, body: bytes, headers: Mapping[str, str]) -> PrefillAnswer:
        async with self.send(path, body, headers) as answer:
            content = await read_whole(answer, self._spec.name)
            if answer.status >= 400:
                self._refused(answer.status, content)
        return self._prefilled(path, content)

    def send(
        self, path: str, body: bytes, headers: Mapping[str, str], *, method: str = "POST"
    ) -> AbstractAsyncContextManager[Answer]:
        return self._connections.request(method, path, {"content-type": "application/json", **headers}, body)

    def close(self) -> None:
        """Close the connections; what still runs on them fails."""
        self._connections.close()

    async def look(self) -> EngineStatus:
        try:
            async with asyncio.timeout(self._look_timeout_s):
                await self._get("/health")
                models, _ = await self._get("/v1/models")
                metrics, headers = await self._get("/metrics")
        except TimeoutError as error:
            raise silent(self._spec.name) from error
        cards = self._read("/v1/models", lambda: decoded(models, _Models).data)
        if not cards:
            raise unhealthy(self._spec.name, "its /v1/models names no model")
        seen = self._read("/metrics", lambda: read_metrics(metrics.decode()))
        return EngineStatus(
            models=tuple(card.id for card in cards),
            generation=seen.generation,
            kv_capacity_tokens=seen.kv_capacity_tokens,
            kv_usage=seen.kv_usage,
            running=seen.running,
            waiting=seen.waiting,
            emulated=headers.get(RECEIPT_EMULATED) == "true",
            max_model_len=min((c.max_model_len for c in cards if c.max_model_len), default=None),
            cards=tuple(ModelCard(c.id, c.root, c.parent, c.created, c.max_model_len) for c in cards),
        )

    async def _get(self, path: str) -> tuple[bytes, Mapping[str, str]]:
        async with self._connections.request("GET", path, {}) as answer:
            if answer.status != 200:
                has_key = self._spec.access.authorization is not None
                raise unhealthy(self._spec.name, why_refused(answer.status, path, has_key=has_key))
            return await read_whole(answer, self._spec.name, MAX_LOOK_BYTES), answer.headers

    def _read(self, path: str, read: Callable[[], T]) -> T:
        """What `read` makes of a page; a page that is none is this engine's failure."""
        try:
            return read()
        except ValueError as error:
            raise self._failed(f"answers {path} with something else: {error}", "engine_protocol") from error

    def _prefilled(self, path: str, content: bytes) -> PrefillAnswer:
        try:
            params, usage = read_prefill_answer(path, content)
        except (ValueError, RecursionError) as error:
            raise self._failed(
                f"answered the prefill leg with something else: {error}", "engine_protocol"
            ) from error
        if params is None:
            raise self._failed(
                "answered the prefill leg without kv_transfer_params: start it with a KV connector "
                "(--kv-transfer-config with NixlConnector and kv_role kv_producer)",
                "engine_without_kv_transfer",
            )
        if usage is None:
            raise self._failed("answered the prefill leg without usage", "engine_protocol")
        return PrefillAnswer(params, usage.prompt_tokens, usage.cached_tokens)

    def _refused(self, status: int, content: bytes) -> NoReturn:
        message = error_message(content) or f"status {status}"
        if status in (400, 404, 413, 422):
            raise EngineRefused(message, content, status=status)
        raise self._failed(f"answered with status {status}: {message}", "engine_error")

    def _failed(self, what: str, code: str) -> EngineFailed:
        return EngineFailed(f"engine {self._spec.name} {what}", code=code, engine=self._spec.name)


def unhealthy(engine: str, why: str) -> EngineFailed:
    """It answers, and not as an engine that can serve."""
    return EngineFailed(f"engine {engine} can't serve: {why}", code="engine_unhealthy", engine=engine)


def error_message(content: bytes) -> str:
    """The message of an OpenAI-shaped error body, or the body's beginning where it has another shape."""
    try:
        body = decoded(content, _ErrorBody)
    except ValueError:
        return content[:300].decode(errors="replace")
    return body.error.message if body.error is not None else body.message
