"""Files of keys: one a line, with comments; of the keys themselves nothing is ever shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from conserve_server.core.errors import ConfigError

_COMMENT: Final = re.compile(r"(?:^|\s)#.*")
"""A `#` within a key is the key's."""


def is_key(text: str) -> bool:
    """Whether a header can carry the text as a key: printable ASCII without spaces, at least one."""
    return bool(text) and all("!" <= character <= "~" for character in text)


def keys_in(path: Path, setting: str) -> list[str]:
    """The file's lines without comments and empty ones. Raises ConfigError naming the setting."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path} can't be read: {type(error).__name__}") from None
    return [key for line in lines if (key := _COMMENT.sub("", line).strip())]
