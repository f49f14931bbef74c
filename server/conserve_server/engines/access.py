"""How an engine lets us in: the key or password that it asks for, and the CA that its certificate is of."""

from __future__ import annotations

import base64
import ssl
from dataclasses import dataclass
from pathlib import Path

from conserve_server.core.errors import ConfigError
from conserve_server.core.key_file import is_key, keys_in
from conserve_server.core.pool_config import EngineRecord


@dataclass(slots=True)
class Access:
    """What goes with every call to one engine; a reload may put others in their place.

    `authorization`: a header's value, never shown. `tls`: None for `http`.
    """

    authorization: str | None = None
    tls: ssl.SSLContext | None = None

    def take(self, other: Access) -> None:
        """Be as the other one from now on."""
        self.authorization, self.tls = other.authorization, other.tls

    def __repr__(self) -> str:
        return f"Access(has_key={self.authorization is not None}, is_tls={self.tls is not None})"


def access_of(record: EngineRecord) -> Access:
    """The access that a record describes, its files read now. Raises ConfigError naming the file."""
    return Access(_authorization(record), _tls(record))


def _authorization(record: EngineRecord) -> str | None:
    if record.api_key_file is not None:
        return f"Bearer {_key_in(Path(record.api_key_file), record.url)}"
    if record.basic_auth is not None:
        given = record.basic_auth.get_secret_value().encode()
        return f"Basic {base64.b64encode(given).decode()}"
    return None


def _key_in(path: Path, url: str) -> str:
    setting = f"api_key_file of {url}"
    keys = keys_in(path, setting)
    if len(keys) != 1 or not is_key(keys[0]):
        raise ConfigError(
            f"{setting}: {path} must have one line with the key, printable ASCII without spaces"
        )
    return keys[0]


def _tls(record: EngineRecord) -> ssl.SSLContext | None:
    if not record.url.startswith("https:"):
        if record.ca_file is not None:
            raise ConfigError(f"ca_file of {record.url}: the engine is listed with http, not https")
        return None
    try:
        return ssl.create_default_context(cafile=record.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file of {record.url}: {record.ca_file} can't be used: {error}") from None
