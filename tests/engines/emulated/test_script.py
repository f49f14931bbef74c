"""Scripts: the first rule that matches speaks, and mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.engines.emulated import Rule, ScriptedCall, load_script
from conserve_server.engines.emulated.script import first_match


def test_the_first_matching_rule_speaks() -> None:
    rules = (Rule(match=2, reply="second"), Rule(match="weather", reply="rain"), Rule(reply="else"))
    assert first_match(rules, "the weather?", 2, has_tools=False) == rules[0]
    assert first_match(rules, "the weather?", 1, has_tools=False) == rules[1]
    assert first_match(rules, "hello", 1, has_tools=False) == rules[2]


def test_a_rule_with_tool_calls_is_passed_over_without_tools() -> None:
    rule = Rule(tool_calls=(ScriptedCall("search", {}),))
    assert first_match((rule,), "", 1, has_tools=False) is None
    assert first_match((rule,), "", 1, has_tools=True) == rule


def test_toml_and_json_scripts_read_alike(tmp_path: Path) -> None:
    toml, json = tmp_path / "script.toml", tmp_path / "script.json"
    toml.write_text('[[rules]]\nmatch = "x"\n[[rules.tool_calls]]\nname = "search"\narguments = {q = 1}\n')
    json.write_text('{"rules": [{"match": "x", "tool_calls": [{"name": "search", "arguments": {"q": 1}}]}]}')
    assert load_script(toml) == load_script(json) == (Rule("x", None, (ScriptedCall("search", {"q": 1}),)),)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rules = 1", "rules"),
        ('[[rules]]\nreplay = "x"', "replay"),
        ("[[rules]]\nmatch = 1", "reply"),
        ('[[rules]]\nmatch = "("\nreply = "x"', "regular expression"),
        ('[[rules]]\nreply = "x"\noutput_tokens = 0', "output_tokens"),
        ("rules =", "can't be read"),
    ],
)
def test_a_mistake_in_a_script_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "script.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=named):
        load_script(path)
