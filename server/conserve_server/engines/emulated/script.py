"""Answers by script: an ordered list of rules, of which the first that matches speaks."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from conserve_server.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScriptedCall:
    """A tool call that a rule makes."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """What to answer when it matches.

    `match` is a regular expression searched in the last message's text, or a turn's number
    (the first is 1); None matches everything. A rule with tool calls is passed over where
    the request offers no tools. `output_tokens` is the whole answer's length, its end token
    included: `reply` is cut or filled up to it.
    """

    match: str | int | None = None
    reply: str | None = None
    tool_calls: tuple[ScriptedCall, ...] = ()
    output_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.reply is None and not self.tool_calls and self.output_tokens is None:
            raise ConfigError("a script rule must have at least one of reply, tool_calls and output_tokens")
        if self.output_tokens is not None and self.output_tokens < 1:
            raise ConfigError(f"a script rule's output_tokens must be at least 1, got {self.output_tokens}")
        if isinstance(self.match, str):
            try:
                re.compile(self.match)
            except re.error as error:
                raise ConfigError(
                    f"a script rule's match {self.match!r} is not a regular expression: {error}"
                ) from error

    def applies(self, text: str, turn: int, *, has_tools: bool) -> bool:
        if self.tool_calls and not has_tools:
            return False
        if isinstance(self.match, int):
            return self.match == turn
        return self.match is None or re.search(self.match, text) is not None


def first_match(rules: Sequence[Rule], text: str, turn: int, *, has_tools: bool) -> Rule | None:
    """The rule that speaks, None when none matches."""
    return next((rule for rule in rules if rule.applies(text, turn, has_tools=has_tools)), None)


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    arguments: dict[str, Any] = {}


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid")
    match: str | int | None = None
    reply: str | None = None
    tool_calls: list[_Call] = []
    output_tokens: int | None = None

    def rule(self) -> Rule:
        calls = tuple(ScriptedCall(call.name, call.arguments) for call in self.tool_calls)
        return Rule(self.match, self.reply, calls, self.output_tokens)


class _Script(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rules: list[_Rule]


def load_script(path: Path) -> tuple[Rule, ...]:
    """The rules of a TOML or JSON file (`rules`, a list). Raises ConfigError naming what is wrong."""
    try:
        text = path.read_text()
        document = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the script {path} can't be read: {error}") from error
    try:
        return tuple(each.rule() for each in _Script.model_validate(document).rules)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"the script {path} can't be used: {problems}") from error
