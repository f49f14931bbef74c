"""What the environment says: the off switch and the extra hosts that may see identifiers."""

from __future__ import annotations

import os
from typing import Final

DISABLED_VARIABLE: Final = "CONSERVE_DISABLED"
"""`1`, `true`, `yes` or `on` turns the whole SDK off."""
ALLOWED_HOSTS_VARIABLE: Final = "CONSERVE_ALLOWED_HOSTS"
"""Comma-separated `host`, `host:port` or `scheme://host:port`: gateways beside the wrapped client's own."""


def is_set(variable: str) -> bool:
    """Whether an environment variable says yes; unset, empty and everything else say no."""
    return os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


def is_disabled() -> bool:
    """Whether the SDK is switched off; read anew at every call, so that a test can switch it."""
    return is_set(DISABLED_VARIABLE)


def extra_allowed_hosts() -> tuple[str, ...]:
    """The entries of `CONSERVE_ALLOWED_HOSTS`, in order."""
    entries = os.environ.get(ALLOWED_HOSTS_VARIABLE, "").split(",")
    return tuple(entry.strip() for entry in entries if entry.strip())
