"""Views made by hand: prefillers p0, p1, … and decoders d0, d1, … with what a test says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conserve_server.scheduling.policy import ClusterView, EngineView, TurnView

CAPACITY = 1000


def prefiller(name: str, *, queued: int = 0, **more: object) -> EngineView:
    return EngineView(name=name, takes_prefills=True, queued_tokens=queued, **more)  # type: ignore[arg-type]


def decoder(name: str, *, free: int = CAPACITY, turns: int = 0, **more: object) -> EngineView:
    given: dict[str, object] = {
        "kv_capacity_tokens": CAPACITY,
        "budget_tokens": CAPACITY,
        "reserved_tokens": CAPACITY - free,
        "running_turns": turns,
        "takes_conversations": True,
    }
    return EngineView(name=name, **(given | more))  # type: ignore[arg-type]


def cluster(*engines: EngineView, **more: float) -> ClusterView:
    return ClusterView(engines=engines, **more)


def pools(*, queued: Sequence[int] = (), free: Sequence[int] = (), **more: float) -> ClusterView:
    """A prefiller for each queue length, a decoder for each free room."""
    prefillers = [prefiller(f"p{i}", queued=tokens) for i, tokens in enumerate(queued)]
    decoders = [decoder(f"d{i}", free=tokens) for i, tokens in enumerate(free)]
    return cluster(*prefillers, *decoders, **more)


def first(prompt_tokens: int, **more: object) -> TurnView:
    return TurnView(conversation_id="c", prompt_tokens=prompt_tokens, **more)  # type: ignore[arg-type]


def later(
    prompt_tokens: int, bound: str, context: Mapping[str, int] | int | None = None, **more: object
) -> TurnView:
    """A turn of a bound conversation; its decoder has seen `context`, all but one token if not given."""
    if not isinstance(context, Mapping):
        context = {bound: prompt_tokens - 1 if context is None else context}
    given: dict[str, object] = {"index": 1, "bound_decoder": bound, "context_tokens": context}
    return TurnView(conversation_id="c", prompt_tokens=prompt_tokens, **(given | more))  # type: ignore[arg-type]
