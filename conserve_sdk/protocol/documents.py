"""Reading JSON documents that a newer gateway may have added fields to."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def known_fields(cls: type[Any], document: dict[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}
    return {k: v for k, v in document.items() if k in names}
