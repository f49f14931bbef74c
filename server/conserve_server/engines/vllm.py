"""A vLLM engine over HTTP (vLLM ≥ 0.31, any hardware): both legs, cancellation, and a look at it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NoReturn

import aiohttp
import msgspec

from conserve_sdk.protocol import RECEIPT_EMULATED
from conserve_server.core.errors import EngineFailed, InvalidRequest
from conserve_server.engines.engine import Answer, EngineSpec, EngineStatus, PrefillAnswer
from conserve_server.engines.vllm_metrics import read_metrics
from conserve_server.engines.wire import PrefillUsage

LOOK_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 5.0


class _ModelCard(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_ModelCard]


class _ErrorText(msgspec.Struct):
    message: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorText | None = None
    message: str = ""


class VllmEngine:
    """One engine behind a URL. The HTTP session is shared by all engines and not owned."""

    def __init__(self, spec: EngineSpec, session: aiohttp.ClientSession, *, silence_timeout_s: float) -> None:
        self._spec = spec
        self._session = session
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=silence_timeout_s
        )

    @property
    def spec(self) -> EngineSpec:
        return self._spec

    async def prefill(self, path: str, body: bytes, headers: Mapping[str, str]) -> PrefillAnswer:
        async with self.send(path, body, headers) as answer:
            content = b"".join([chunk async for chunk in answer.chunks()])
            if answer.status >= 400:
                self._refused(answer.status, content)
        return self._prefilled(content)

    @asynccontextmanager
    async def send(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[Answer]:
        request = self._session.post(
            self._spec.url + path,
            data=body,
            headers={"content-type": "application/json", **headers},
            timeout=self._timeout,
            allow_redirects=False,
        )
        try:
            response = await request
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _lost(self._spec.name, error) from error
        try:
            yield _HttpAnswer(self._spec.name, response)
        finally:
            # Closes the connection unless the body was read to its end: vLLM aborts the
            # request of a client that hangs up.
            response.release() if response.content.at_eof() else response.close()

    async def look(self) -> EngineStatus:
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                await self._get("/health")
                models, _ = await self._get("/v1/models")
                metrics, headers = await self._get("/metrics")
        except TimeoutError as error:
            raise _lost(self._spec.name, error) from error
        try:
            cards = msgspec.json.decode(models, type=_Models).data
        except msgspec.MsgspecError as error:
            raise self._failed(
                f"answers /v1/models with something else: {error}", "engine_protocol"
            ) from error
        seen = read_metrics(metrics.decode(errors="replace"))
        return EngineStatus(
            models=tuple(card.id for card in cards),
            generation=seen.generation,
            kv_capacity_tokens=seen.kv_capacity_tokens,
            kv_usage=seen.kv_usage,
            running=seen.running,
            waiting=seen.waiting,
            emulated=headers.get(RECEIPT_EMULATED) == "true",
            max_model_len=min((c.max_model_len for c in cards if c.max_model_len), default=None),
        )

    async def _get(self, path: str) -> tuple[bytes, Mapping[str, str]]:
        try:
            async with self._session.get(self._spec.url + path, timeout=self._timeout) as response:
                if response.status != 200:
                    raise self._failed(f"answers {path} with status {response.status}", "engine_unhealthy")
                return await response.read(), response.headers
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _lost(self._spec.name, error) from error

    def _prefilled(self, content: bytes) -> PrefillAnswer:
        try:
            answer = msgspec.json.decode(content, type=PrefillUsage)
        except msgspec.MsgspecError as error:
            raise self._failed(
                f"answered the prefill leg with something else: {error}", "engine_protocol"
            ) from error
        if bytes(answer.kv_transfer_params) == b"null":
            raise self._failed(
                "answered the prefill leg without kv_transfer_params: start it with a KV connector "
                "(--kv-transfer-config with NixlConnector and kv_role kv_producer)",
                "engine_without_kv_transfer",
            )
        if answer.usage is None:
            raise self._failed("answered the prefill leg without usage", "engine_protocol")
        return PrefillAnswer(
            bytes(answer.kv_transfer_params), answer.usage.prompt_tokens, answer.usage.cached_tokens
        )

    def _refused(self, status: int, content: bytes) -> NoReturn:
        message = error_message(content) or f"status {status}"
        if status in (400, 404, 413, 422):
            raise InvalidRequest(message, code="engine_rejected_request", status=status)
        raise self._failed(f"answered with status {status}: {message}", "engine_error")

    def _failed(self, what: str, code: str) -> EngineFailed:
        return _failed(self._spec.name, what, code)


class _HttpAnswer:
    def __init__(self, engine: str, response: aiohttp.ClientResponse) -> None:
        self._engine = engine
        self._response = response

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _lost(self._engine, error) from error


def _failed(engine: str, what: str, code: str) -> EngineFailed:
    return EngineFailed(f"engine {engine} {what}", code=code, engine=engine)


def _lost(engine: str, error: Exception) -> EngineFailed:
    if isinstance(error, TimeoutError):
        message = f"engine {engine} was silent for too long"
        return EngineFailed(message, code="engine_timeout", engine=engine, status=504)
    return _failed(engine, f"can't be reached or broke off: {error or type(error).__name__}", "engine_lost")


def error_message(content: bytes) -> str:
    """The message of an OpenAI-shaped error body, or the body's beginning where it has another shape."""
    try:
        body = msgspec.json.decode(content, type=_ErrorBody)
    except msgspec.MsgspecError:
        return content[:300].decode(errors="replace")
    return body.error.message if body.error is not None else body.message
