"""Conversations on emulated engines, their spans sent to a collector; and a look at a web API."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from conserve_server.cli.demo_agent import Result, run_agent
from conserve_server.cli.gateway_process import running_gateway
from conserve_server.cli.local_pool import started_pool
from conserve_server.core.config import load_config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
START_S = 180.0
"""Dashboards import half the world; on two busy cores that takes a while."""


async def converse(
    agent: Path, folder: Path, environment: Mapping[str, str], *, conversations: int = 2
) -> list[Result]:
    """What the example agent printed of its conversations; all of their spans have been sent."""
    path = folder / "conserve.toml"
    text = (EXAMPLES / "config" / "emulated.toml").read_text()
    path.write_text(f'{text}run_dir = "{folder}/run"\n')
    config = load_config(path)
    shared = {"OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_SDK_DISABLED": "false", **environment}
    async with (
        started_pool(config),
        running_gateway(path, shared, folder / "gateway.log", start_timeout_s=START_S) as base_url,
    ):
        arguments = ("--base-url", f"{base_url}/v1", "--model", config.model)
        count = ("--conversations", str(conversations))
        return await run_agent(agent, (*arguments, *count), shared, folder / "agent.log", timeout_s=START_S)


def fetched(url: str, document: object | None = None) -> Any:
    """The JSON at `url`: by GET, or by POST of `document`. Raises OSError where there is none."""
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def awaited(look: Callable[[], Any], what: str, limit_s: float = 60.0) -> Any:
    """What `look` gives once that is true; dashboards store what they got a moment later."""
    until_s = time.monotonic() + limit_s
    while True:
        try:
            if found := look():
                return found
        except (urllib.error.URLError, KeyError):
            pass
        if time.monotonic() >= until_s:
            pytest.fail(f"waited {limit_s:.0f} s for {what}")
        time.sleep(0.5)
