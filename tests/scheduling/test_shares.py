"""Several tenants in one queue: the one that holds least is first, and within one who came first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conserve_server.core.turn import Turn
from conserve_server.scheduling.admission_queue import AdmissionQueue
from conserve_server.scheduling.conversation import Conversation, TurnState
from conserve_server.scheduling.shares import Shares

TENANTS = ("a", "b", "c")


def waiting(order: int, tenant: str) -> TurnState:
    turn = Turn(order, f"{tenant}-{order}", 10, tenant=tenant)
    return TurnState(turn, Conversation(turn.conversation_id), order, 0, 0.0, 10)


@given(st.lists(st.sampled_from(TENANTS), max_size=20), st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_whoever_holds_least_is_first_and_a_tenants_own_turns_keep_their_order(
    arrivals: list[str], held: list[int]
) -> None:
    shares = Shares()
    for tenant, tokens in zip(TENANTS, held, strict=True):
        shares.belongs(tenant, tenant)
        shares.changed(tenant, tokens)
    queue = AdmissionQueue(shares)
    for order, tenant in enumerate(arrivals):
        queue.add(waiting(order, tenant))
    assert [state.order for state in queue] == list(range(len(arrivals)))
    taken: list[TurnState] = []
    while heads := queue.heads:
        head = heads[0]
        assert shares.load(head.turn.tenant) == min(shares.load(name) for name in queue.tenants)
        queue.remove(head.id)
        taken.append(head)
        shares.changed(head.turn.tenant, 1)
    assert len(taken) == len(arrivals)
    for tenant in TENANTS:
        own = [state.order for state in taken if state.turn.tenant == tenant]
        assert own == sorted(own)


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    queue = AdmissionQueue()
    for order in (3, 1, 2):
        queue.add(waiting(order, ""))
    assert [head.order for head in queue.heads] == [1]


def test_a_weight_is_what_a_tenant_may_hold() -> None:
    shares = Shares()
    shares.weights = {"a": 3.0}
    for tenant in ("a", "b"):
        shares.belongs(tenant, tenant)
        shares.changed(tenant, 60)
    assert shares.above(100, frozenset("ab")) == {"b"}


def test_a_tenant_alone_is_above_its_share_only_beyond_the_budget() -> None:
    shares = Shares()
    shares.belongs("x", "a")
    shares.changed("x", 90)
    assert shares.above(100, frozenset()) == frozenset()
    assert shares.above(100, frozenset("b")) == {"a"}
