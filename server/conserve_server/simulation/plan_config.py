"""A plan as the configuration that `conserve up` and `conserve serve` take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from conserve_server.simulation.plans import Candidate, Offer
from conserve_server.simulation.timing import Step

_PROMPT_TOKENS = 2048
_DECODES, _CONTEXT_TOKENS = 16, 8192
"""The batch whose step is told as a tier's: policies want one figure."""


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
    if candidate.policy == "conserve_plus":
        yield f"kv_budget_fraction = {candidate.scheduler.budget_fraction:g}"
        yield ""
        yield "[scheduler.conserve_plus]"
        yield f"first_turn_priority = {candidate.scheduler.conserve_plus.first_turn_priority}"
    if candidate.prefill is not None:
        yield from _pool("prefill", candidate.prefill, candidate.prefillers, 8192)
    # ConServe+ sets the steps of the engines that it starts itself.
    step_tokens = None if candidate.policy == "conserve_plus" else 512
    is_both = candidate.policy == "conserve_plus"
    yield from _pool("decode", candidate.decode, candidate.decoders, step_tokens, is_both=is_both)
    for offer in dict.fromkeys(filter(None, (candidate.prefill, candidate.decode))):
        yield from _tier(offer, model)


def _pool(
    role: str, offer: Offer, count: int, step_tokens: int | None, *, is_both: bool = False
) -> Iterator[str]:
    yield ""
    yield f"[pools.{role}]"
    yield f"count = {count}"
    yield f"tiers = {json.dumps([tier_name(offer)] * count)}"
    if step_tokens is not None:
        yield f"flags = {json.dumps(['--max-num-batched-tokens', str(step_tokens)])}"
    if is_both:
        yield "has_both_roles = true"


def _tier(offer: Offer, model: str) -> Iterator[str]:
    timing = offer.timing(model)
    prefill_s = timing.step_s(Step(1, _PROMPT_TOKENS))
    decode_s = timing.step_s(Step(0, 0, 0, _DECODES, _DECODES * _CONTEXT_TOKENS))
    yield ""
    if offer.cap_w is not None:
        yield f"# nvidia-smi --power-limit {offer.cap_w:g}"
    yield f"[tiers.{tier_name(offer)}]"
    yield f"prefill_tokens_per_s = {_PROMPT_TOKENS / prefill_s:.0f}"
    yield f"decode_step_s = {decode_s:.4f}"


def tier_name(offer: Offer) -> str:
    """The offer's tier: its GPU and its cap, in the letters that a configuration's key takes."""
    return re.sub(r"[^a-z0-9]+", "-", offer.label.lower()).strip("-")
