"""A policy that another package brings: chosen by its name, and made with its options."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.core.policy_config import SchedulerConfig
from conserve_server.scheduling.policies import policy_of
from tests.scheduling.views import first, pools

MODULE = '''
from conserve_sdk.protocol import Path
from conserve_server.core.turn import Placement


class Last:
    """Every turn on the last decoder with room."""

    def __init__(self, *, margin_tokens: int = 0) -> None:
        self._margin_tokens = margin_tokens

    def place(self, turn, cluster):
        need = turn.own_tokens + self._margin_tokens
        roomy = [e for e in cluster.engines if e.takes_conversations and e.free_tokens >= need]
        return Placement(Path.LOCAL_PREFILL, roomy[-1].name) if roomy else None


def broken():
    raise RuntimeError("no licence")


def nothing():
    return object()
'''
ENTRY_POINTS = """[conserve.policies]
last = brought.policy:Last
broken = brought.policy:broken
nothing = brought.policy:nothing
missing = brought.absent:Policy
"""


@pytest.fixture(autouse=True)
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with policies, where Python looks for packages."""
    package, about = tmp_path / "brought", tmp_path / "brought-1.0.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "policy.py").write_text(MODULE)
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("brought", "brought.policy"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def chosen(name: str, **options: object) -> SchedulerConfig:
    return SchedulerConfig.model_validate({"policy": name, "options": options})


def test_it_is_chosen_by_its_name_and_made_with_its_options() -> None:
    policy = policy_of(chosen("last", margin_tokens=30))
    placement = policy.place(first(10), pools(free=(50, 50, 20)))
    assert placement is not None
    assert placement.decoder == "d1"


@pytest.mark.parametrize(
    ("name", "options", "why"),
    [
        ("missing", {}, r"'missing' \(brought\.absent:Policy, of brought\) can't be loaded: ModuleNotFound"),
        ("broken", {}, "RuntimeError: no licence"),
        ("last", {"margin": 3}, r"can't be made of scheduler\.options \(margin\): TypeError: .*margin"),
        ("nothing", {}, r"gives a object, which has no place\(turn, cluster\)"),
        ("other", {}, r"must be one of ampd, .*, broken, .*, last, .* got 'other'"),
        ("conserve", {"x": 1}, r"'conserve' has its own part, \[scheduler\.conserve\]"),
    ],
)
def test_one_that_cannot_be_had_says_why(name: str, options: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        policy_of(chosen(name, **options))
