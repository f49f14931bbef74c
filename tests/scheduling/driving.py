"""Driving a scheduler by hand, report by report: prefillers p0, …, and the decoders d0 and d1."""

from itertools import count

from conserve_sdk.protocol import Path
from conserve_server.core.turn import Placement, Turn
from conserve_server.scheduling.actions import Action, PlacementFailed, Start
from conserve_server.scheduling.engine_state import EngineProfile
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policy import ClusterView, Policy, TurnView
from conserve_server.scheduling.scheduler import Scheduler

turn_ids = count(1)


def scheduler_of(
    *, capacity: int = 1000, prefillers: tuple[str, ...] = ("p0",), policy: Policy | None = None
) -> Scheduler:
    engines = [
        *(EngineProfile(name, takes_prefills=True) for name in prefillers),
        *(EngineProfile(name, takes_conversations=True) for name in ("d0", "d1")),
    ]
    scheduler = Scheduler(policy or ConServe(), engines=engines, kv_budget_fraction=1.0)
    for engine in engines:
        scheduler.on_engine_up(engine.name, capacity, 0.0)
    return scheduler


def turn_of(conversation: str, prompt_tokens: int = 100, tenant: str = "") -> Turn:
    return Turn(next(turn_ids), conversation, prompt_tokens, tenant=tenant)


def started(actions: list[Action]) -> list[tuple[type[Action], int]]:
    return [(type(action), action.turn_id) for action in actions]


def sent(actions: list[Action]) -> list[Start]:
    """The actions, of which none says that a turn could not be placed."""
    starts = [action for action in actions if not isinstance(action, PlacementFailed)]
    assert len(starts) == len(actions)
    return starts


def bind(
    scheduler: Scheduler,
    conversation: str,
    prompt_tokens: int = 100,
    kv_tokens: int = 120,
    cached_tokens: int | None = None,
) -> str:
    """A first turn from arrival to end; the decoder it was bound to."""
    turn = turn_of(conversation, prompt_tokens)
    scheduler.on_turn(turn, 0.0)
    scheduler.on_prefilled(turn.id, prompt_tokens, 0.0, cached_tokens)
    scheduler.on_first_token(turn.id, 0.0)
    scheduler.on_turn_ended(turn.id, kv_tokens, now_s=0.0)
    found = scheduler.find(conversation)
    assert found is not None
    assert found.decoder is not None
    return found.decoder


class Always:
    """Places first turns on d0 and later ones as it is told."""

    def __init__(self, later: Placement) -> None:
        self.later = later

    def place(self, turn: TurnView, _cluster: ClusterView) -> Placement | None:
        return Placement(Path.LOCAL_PREFILL, "d0") if turn.bound_decoder is None else self.later


APPEND = Placement(Path.REMOTE_APPEND, "d0", "p0")
MOVE = Placement(Path.LOCAL_PREFILL, "d1")


def bind_locally(scheduler: Scheduler, conversation: str, kv_tokens: int = 120) -> None:
    turn = turn_of(conversation)
    scheduler.on_turn(turn, 0.0)
    scheduler.on_first_token(turn.id, 0.0)
    scheduler.on_turn_ended(turn.id, kv_tokens, 0.0)


def decoder_of(scheduler: Scheduler, conversation: str) -> str | None:
    found = scheduler.find(conversation)
    assert found is not None
    return found.decoder
