"""The ledger of one decoder."""

from conserve_server.scheduling.ledger import UNBOUNDED, DecoderLedger


def test_the_budget_is_a_share_of_the_capacity() -> None:
    assert DecoderLedger(1000, 0.9).budget_tokens == 900


def test_a_decoder_that_reports_no_capacity_is_never_full() -> None:
    assert DecoderLedger(None, 0.9).budget_tokens == UNBOUNDED


def test_growth_beyond_the_budget_is_counted() -> None:
    ledger = DecoderLedger(1000, 0.9)
    ledger.settle("a", 800)
    ledger.grow("a", 950)
    assert ledger.overcommitted_tokens == 50


def test_growth_never_lowers_a_reservation() -> None:
    ledger = DecoderLedger(1000, 0.9)
    ledger.settle("a", 300)
    ledger.grow("a", 200)
    assert ledger.held("a") == 300


def test_settling_replaces_an_estimate() -> None:
    ledger = DecoderLedger(1000, 0.9)
    ledger.settle("a", 300)
    ledger.settle("a", 120)
    assert (ledger.held("a"), ledger.reserved_tokens) == (120, 120)


def test_release_frees_what_was_held_once() -> None:
    ledger = DecoderLedger(1000, 0.9)
    ledger.settle("a", 300)
    assert (ledger.release("a"), ledger.release("a"), ledger.reserved_tokens) == (300, 0, 0)


def test_what_the_engine_uses_beyond_its_running_conversations_is_unaccounted() -> None:
    ledger = DecoderLedger(1000, 0.9)
    ledger.settle("running", 300)
    ledger.settle("in a tool gap", 500)
    ledger.reconcile(350, {"running"})
    assert ledger.unaccounted_tokens == 50
    ledger.reconcile(200, {"running"})
    assert ledger.unaccounted_tokens == 0


def test_the_conversations_that_came_last_are_beyond_the_budget() -> None:
    ledger = DecoderLedger(1000, 0.9)
    for name in "abc":
        ledger.settle(name, 300)
    assert ledger.beyond_budget == frozenset()
    ledger.grow("a", 500)
    assert ledger.beyond_budget == {"c"}


def test_beyond_the_decoders_kv_is_beyond_a_larger_budget_too() -> None:
    ledger = DecoderLedger(1000, 2.0)
    for name in "abc":
        ledger.settle(name, 400)
    assert ledger.beyond_budget == {"c"}
    assert ledger.overcommitted_tokens == 0


def test_a_decoder_of_unknown_kv_has_no_conversation_beyond_it() -> None:
    ledger = DecoderLedger(None, 2.0)
    ledger.settle("a", 10**9)
    assert ledger.beyond_budget == frozenset()
