"""The life of a turn: arrive, be placed, prefill elsewhere if so placed, decode, end exactly once."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from opentelemetry.trace import Span, SpanKind

from conserve_server.core.clock import Clock
from conserve_server.core.errors import EngineFailed, TurnError, internal_error
from conserve_server.engines.engine import PrefillAnswer
from conserve_server.scheduling.actions import StartDecode
from conserve_server.serving.answers.passing_on import PassingOn
from conserve_server.serving.answers.stream_heads import StreamHeads
from conserve_server.serving.asked.identity import Identity
from conserve_server.serving.asked.request import TurnRequest
from conserve_server.serving.client import REQUEST_ID, Client, ClientStalled
from conserve_server.serving.cluster.cluster import Cluster
from conserve_server.serving.driving.coordinator import Coordinator
from conserve_server.serving.recognition.recognition import Watch
from conserve_server.serving.turns.draining import Draining
from conserve_server.serving.turns.life import TurnLives
from conserve_server.serving.turns.live import LiveTurn
from conserve_server.serving.turns.retries import Retries
from conserve_server.telemetry import names

log = logging.getLogger(__name__)


class Turns:
    """Serves turns. Cancelling `serve` cancels the request in whichever engine runs it."""

    def __init__(
        self,
        *,
        lives: TurnLives,
        coordinator: Coordinator,
        cluster: Cluster,
        passing_on: PassingOn,
        stream_heads: StreamHeads,
        clock: Clock,
        draining: Draining,
        retries: Retries,
    ) -> None:
        self._lives = lives
        self._books = lives.books
        self._coordinator = coordinator
        self._cluster = cluster
        self._passing_on = passing_on
        self._stream_heads = stream_heads
        self._clock = clock
        self._draining = draining
        self._retries = retries

    async def serve(
        self,
        request: TurnRequest,
        identity: Identity,
        headers: Mapping[str, str],
        client: Client,
        watch: Watch | None = None,
    ) -> None:
        """Run one turn to its end and answer the client, errors included.

        Raises LimitReached (429) or NoCapacity (503) before anything has begun. `watch`: the answer of a
        conversation that no client named is gathered for it.
        """
        with self._lives.turn(request, identity, headers, watch) as live:
            try:
                with self._draining.turn(), self._stream_heads.waiting(live, client):
                    await self._run(live, client)
            except ClientStalled as problem:
                live.is_abandoned, live.error = True, problem
                raise
            except TurnError as problem:
                await _fail(live, problem, client)
            except Exception as bug:
                log.exception("request %s: the gateway failed", request.request_id)
                await _fail(live, internal_error(bug), client)

    # -- the legs ------------------------------------------------------------------------------

    async def _run(self, live: LiveTurn, client: Client) -> None:
        """Place the turn and decode it; again where an engine fails it before its first byte."""
        self._retries.check(live)
        while True:
            params = await self._until_prefilled(live)
            try:
                await self._decode(live, params, client)
            except EngineFailed as error:
                self._decode_failed(live, error)
                await self._retries.failed(live, error, "decode")
            else:
                return

    async def _until_prefilled(self, live: LiveTurn) -> bytes | None:
        """Wait for a place and prefill elsewhere if so told; the parameters for the decode leg."""
        with live.trace.step(names.SPAN_ADMISSION, {}):
            action = await self._coordinator.next_action(live.turn)
        live.wait_s = self._clock.now_s() - live.arrived_s if live.wait_s is None else live.wait_s
        prefilled: PrefillAnswer | None = None
        while not isinstance(action, StartDecode):
            live.is_placed(action.placement, action.rebind)
            prefilled = await self._prefill(live)
            action = await self._coordinator.next_action(live.turn)
        live.is_placed(action.placement, action.rebind)
        return prefilled.kv_transfer_params if prefilled and live.moved_kv else None

    def _decode_failed(self, live: LiveTurn, error: EngineFailed) -> None:
        _log_failure("decode", live, error)
        self._coordinator.decode_failed(live.turn, is_lost=live.is_lost_by(error))
        self._cluster.doubt(error.engine)

    async def _prefill(self, live: LiveTurn) -> PrefillAnswer | None:
        """The prefill leg; None if the engine failed, which the scheduler then knows."""
        if live.placement is None or live.placement.prefiller is None:
            raise RuntimeError("a prefill leg needs a prefiller")
        if live.request.needs_its_decoder:
            self._coordinator.prefill_failed(live.turn)
            return None
        prefiller = live.placement.prefiller
        attributes = {names.PREFILLER: prefiller}
        try:
            async with self._retries.apart(live, prefiller):
                started_s = self._clock.now_s()
                self._books.prefill_starts(live, started_s)
                with (
                    self._cluster.leg(prefiller) as engine,
                    live.trace.step(names.SPAN_PREFILL, attributes, SpanKind.CLIENT) as span,
                ):
                    answer = await engine.prefill(
                        live.request.path,
                        live.request.prefill_body(live.priority),
                        _leg_headers(live, span),
                    )
                    span.set_attribute(names.TURN_INPUT_TOKENS, answer.prompt_tokens)
        except EngineFailed as error:
            _log_failure("prefill", live, error)
            self._books.prefill_ends(live, self._clock.now_s(), None)
            self._coordinator.prefill_failed(live.turn, is_lost=live.is_lost_by(error))
            self._cluster.doubt(prefiller)
            await self._retries.failed(live, error, "prefill")
            return None
        now_s = self._clock.now_s()
        live.prefill_s = now_s - started_s
        self._books.prefill_ends(live, now_s, answer)
        self._coordinator.estimate.learn(live.kind, live.request.size, answer.prompt_tokens)
        self._coordinator.prefilled(live.turn, answer.prompt_tokens, answer.cached_tokens)
        return answer

    async def _decode(self, live: LiveTurn, params: bytes | None, client: Client) -> None:
        if live.placement is None:
            raise RuntimeError("a decode leg needs a decoder")
        decoder = live.placement.decoder
        body = live.request.decode_body(params, live.priority)
        async with self._retries.apart(live, decoder):
            with live.trace.step(names.SPAN_DECODE, {names.DECODER: decoder}, SpanKind.CLIENT) as span:
                now_s = self._clock.now_s()
                live.decode_starts(now_s)
                self._books.decode_starts(live, now_s, params is not None)
                with self._cluster.leg(decoder) as engine:
                    async with engine.send(live.request.path, body, _leg_headers(live, span)) as answer:
                        await self._passing_on.pass_on(live, answer, client)


async def _fail(live: LiveTurn, error: TurnError, client: Client) -> None:
    """Tell the client, unless it has its whole answer already."""
    if not client.has_finished:
        live.error = error
        await client.fail(error, live.receipt())


def _leg_headers(live: LiveTurn, span: Span) -> dict[str, str]:
    """What an engine is told besides the body: the conversation (vLLM reads it), the request, the trace."""
    return {
        "x-session-id": live.identity.engine_session,
        REQUEST_ID: live.request.request_id,
        **live.trace.headers(span),
    }


def _log_failure(leg: str, live: LiveTurn, error: EngineFailed) -> None:
    log.warning(
        "request %s: the %s leg of conversation %r failed: %s",
        live.request.request_id,
        leg,
        live.identity.conversation_id,
        error,
    )
