"""Files of keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from conserve_server.core.errors import ConfigError
from conserve_server.core.key_file import is_key, keys_in


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("one\ntwo\n", ["one", "two"]),
        ("# all of them\n\n  one  # the first\r\n\ttwo\t# the second", ["one", "two"]),
        ("a#key\n#none\nkey#", ["a#key", "key#"]),
        ("", []),
    ],
)
def test_a_key_is_a_line_without_its_comment(tmp_path: Path, text: str, keys: list[str]) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    assert keys_in(file, "setting") == keys


def test_what_is_no_text_is_refused_by_its_setting_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"secret\xff")
    with pytest.raises(ConfigError, match="setting: ") as refused:
        keys_in(file, "setting")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "fits"), [("sk-1#", True), ("", False), ("two words", False), ("kä", False)]
)
def test_a_key_fits_into_a_header(text: str, *, fits: bool) -> None:
    assert is_key(text) is fits
