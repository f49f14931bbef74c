"""A plan as the configuration that `conserve up` and `conserve serve` take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from conserve_server.simulation.plans import Candidate, Offer


def plan_config(candidate: Candidate, model: str) -> str:
    """The TOML document. Its engines are local; where they run elsewhere, list their addresses instead."""
    return "\n".join(_lines(candidate, model)) + "\n"


def _lines(candidate: Candidate, model: str) -> Iterator[str]:
    yield f"# {candidate.label}, {candidate.price_per_h:g} an hour"
    yield '# Engines on other machines: write `engines = ["http://…", …]` in place of `count`, and give them'
    yield "# the flags yourself."
    yield f"model = {json.dumps(model)}"
    yield ""
    yield "[scheduler]"
    yield f"policy = {json.dumps(candidate.policy)}"
    if candidate.is_plus:
        yield f"kv_budget_fraction = {candidate.scheduler.budget_fraction:g}"
        yield ""
        yield "[scheduler.conserve_plus]"
        yield f"first_turn_priority = {candidate.scheduler.conserve_plus.first_turn_priority}"
        yield f"smallest_chunk_tokens = {candidate.smallest_chunk_tokens}"
    decoders = (candidate.decode,) * candidate.decoders
    if candidate.is_plus:  # it sets the steps of the engines that it starts itself
        yield from _pool("decode", (*candidate.prefill_offers, *decoders), None, is_both=True)
    else:
        if candidate.prefillers:
            yield from _pool("prefill", candidate.prefill_offers, 8192)
        yield from _pool("decode", decoders, 512)
    for offer in dict.fromkeys(filter(None, (candidate.prefill, candidate.decode))):
        yield from _tier(offer, model)


def _pool(
    role: str, offers: Sequence[Offer], step_tokens: int | None, *, is_both: bool = False
) -> Iterator[str]:
    yield ""
    yield f"[pools.{role}]"
    yield f"count = {len(offers)}"
    yield f"tiers = {json.dumps([tier_name(offer) for offer in offers])}"
    if step_tokens is not None:
        yield f"flags = {json.dumps(['--max-num-batched-tokens', str(step_tokens)])}"
    if is_both:
        yield "has_both_roles = true"


def _tier(offer: Offer, model: str) -> Iterator[str]:
    yield ""
    if offer.cap_w is not None:
        yield f"# nvidia-smi --power-limit {offer.cap_w:g}"
    yield f"[tiers.{tier_name(offer)}]"
    yield f"prefill_tokens_per_s = {offer.prefill_tokens_per_s(model):.0f}"
    yield f"decode_step_s = {offer.decode_step_s(model):.4f}"


def tier_name(offer: Offer) -> str:
    """The offer's tier: its GPU and its cap, in the letters that a configuration's key takes."""
    return re.sub(r"[^a-z0-9]+", "-", offer.label.lower()).strip("-")
