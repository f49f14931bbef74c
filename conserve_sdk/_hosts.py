"""Which servers may see conversation identifiers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

_PUBLIC_SUFFIXES: Final = (
    "anthropic.com",
    "cognitiveservices.azure.com",
    "cohere.com",
    "deepseek.com",
    "fireworks.ai",
    "generativelanguage.googleapis.com",
    "groq.com",
    "mistral.ai",
    "openai.azure.com",
    "openai.com",
    "openrouter.ai",
    "perplexity.ai",
    "services.ai.azure.com",
    "together.xyz",
    "x.ai",
)
"""Model vendors: a client that points at one is no client of a ConServe gateway."""


@dataclass(frozen=True, slots=True)
class Origin:
    """A server as a request names it; an absent part of an allow-list entry matches every value."""

    host: str
    scheme: str | None = None
    port: int | None = None

    @classmethod
    def of_url(cls, url: str) -> Origin:
        """The origin of an absolute URL, its default port filled in. Raises ValueError without a host."""
        parts = urlsplit(url)
        if not parts.hostname:
            raise ValueError(f"{url!r} names no host; give an absolute URL such as http://localhost:8000/v1")
        return cls(parts.hostname, parts.scheme, parts.port or _DEFAULT_PORTS.get(parts.scheme))

    @classmethod
    def of_entry(cls, entry: str) -> Origin:
        """What an entry of the allow-list stands for: `host`, `host:port` or `scheme://host:port`."""
        if "://" in entry:
            return cls.of_url(entry)
        parts = urlsplit(f"//{entry}")
        if not parts.hostname:
            raise ValueError(f"{entry!r} names no host; write host, host:port or scheme://host:port")
        return cls(parts.hostname, None, parts.port)

    def is_public(self) -> bool:
        """Whether this is a model vendor's own server, which never gets an identifier by default."""
        host = self.host.rstrip(".")
        return any(host == suffix or host.endswith(f".{suffix}") for suffix in _PUBLIC_SUFFIXES)

    def covers(self, other: Origin) -> bool:
        """Whether `other`, a full origin, is what this entry stands for."""
        return (
            self.host == other.host
            and self.scheme in (None, other.scheme)
            and self.port in (None, other.port)
        )


@dataclass(frozen=True, slots=True)
class AllowList:
    """The servers that may see identifiers; everything else sees none."""

    entries: frozenset[Origin] = frozenset()

    @classmethod
    def of(cls, entries: Iterable[str]) -> AllowList:
        """The list that a user wrote. Raises ValueError naming an entry that has no host."""
        return cls(frozenset(Origin.of_entry(entry) for entry in entries))

    def with_origin(self, origin: Origin) -> AllowList:
        """This list and one more server."""
        return AllowList(self.entries | {origin})

    def allows(self, origin: Origin) -> bool:
        """Whether identifiers may be sent there: scheme, host and port all count."""
        return any(entry.covers(origin) for entry in self.entries)
