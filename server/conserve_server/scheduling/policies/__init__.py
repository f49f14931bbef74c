"""The policies by name. A new one is one new file and one line here; other packages' are in `plugins.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from conserve_server.core.errors import ConfigError
from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.scheduling.policies import plugins
from conserve_server.scheduling.policies.ampd import AMPD
from conserve_server.scheduling.policies.ampd_emulated import AMPDEmulated
from conserve_server.scheduling.policies.collocated import Collocated
from conserve_server.scheduling.policies.collocated_sticky import CollocatedSticky
from conserve_server.scheduling.policies.conditional import Conditional
from conserve_server.scheduling.policies.conserve import ConServe
from conserve_server.scheduling.policies.conserve_plus import ConServePlus
from conserve_server.scheduling.policies.full_disaggregation import FullDisaggregation
from conserve_server.scheduling.policies.ppd import PPD
from conserve_server.scheduling.policy import Policy

POLICIES: Final[Mapping[str, Callable[[SchedulerConfig], Policy]]] = {
    "ampd": lambda c: AMPD(c.ampd),
    "ampd_emulated": lambda c: AMPDEmulated(c.ampd_emulated),
    "collocated": lambda _: Collocated(),
    "collocated_sticky": lambda c: CollocatedSticky(c.collocated_sticky),
    "conditional": lambda c: Conditional(c.conditional),
    "conserve": lambda c: ConServe(c.conserve),
    "conserve_plus": lambda c: ConServePlus(c.conserve_plus, c.estimates),
    "full_disaggregation": lambda c: FullDisaggregation(c.full_disaggregation),
    "ppd": lambda c: PPD(c.ppd, c.estimates),
}


FIRST_TURN_PRIORITY: Final = 10
"""ConServe+'s vLLM priority of first turns on engines that are known to schedule by priority."""


def policy_of(
    config: SchedulerConfig, *, serves_own_engines: bool = False, is_replay: bool = False
) -> Policy:
    """The configured policy.

    `serves_own_engines`: `conserve up` started the engines, with the flags that the policy
    needs. `is_replay`: turns come from a trace, which knows their conversations' totals.
    Raises ConfigError for a name that is none, listing the known ones, for a policy of another
    package that can't be made, and for a mode that only a replay can serve.
    """
    if config.policy not in POLICIES:
        return _of_another_package(config)
    if config.options:
        raise ConfigError(
            f"scheduler.options are for policies of other packages: {config.policy!r} has its own part, "
            f"[scheduler.{config.policy}]"
        )
    if config.policy == "conserve" and config.conserve.mode == "oracle" and not is_replay:
        raise ConfigError(
            'scheduler.conserve.mode must be "grow" to serve: "oracle" reads what a conversation will '
            "hold at its end, which only the replay of a trace knows"
        )
    return POLICIES[config.policy](_with_priority(config) if serves_own_engines else config)


def _of_another_package(config: SchedulerConfig) -> Policy:
    found = plugins.installed()
    if config.policy not in found:
        known = ", ".join(sorted({*POLICIES, *found}))
        raise ConfigError(
            f"scheduler.policy must be one of {known}, got {config.policy!r} "
            f"(another package brings one by an entry point of {plugins.GROUP!r})"
        )
    return plugins.load(found[config.policy], config.options)


def _with_priority(config: SchedulerConfig) -> SchedulerConfig:
    if config.conserve_plus.first_turn_priority is not None:
        return config
    plus = config.conserve_plus.model_copy(update={"first_turn_priority": FIRST_TURN_PRIORITY})
    return config.model_copy(update={"conserve_plus": plus})
