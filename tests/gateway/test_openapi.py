"""The OpenAPI document tells of every route, and what a fuzzer makes of it finds no failure of ours."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from conserve_sdk.protocol import LIVE_PATH
from conserve_server.gateway.routes.openapi import openapi_document

from .conftest import MODEL, Serve, Served

LIMIT_S = 240.0
CHECKS = "not_a_server_error,content_type_conformance,status_code_conformance,response_schema_conformance"


def referred(document: Any) -> set[str]:
    """The names of all schemas that anything in the document refers to."""
    if isinstance(document, list):
        return {name for item in document for name in referred(item)}
    if not isinstance(document, dict):
        return set()
    own = {document["$ref"].rpartition("/")[2]} if "$ref" in document else set()
    return own | {name for value in document.values() for name in referred(value)}


async def test_the_document_describes_exactly_the_routes_that_are_served(gateway: Served) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == gateway.routes
    assert referred(document["paths"]) <= document["components"]["schemas"].keys()


@pytest.mark.slow
async def test_a_fuzzer_finds_no_failure_of_ours_and_no_hang(serve: Serve, tmp_path: Path) -> None:
    document = openapi_document()
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("required", ()):
            schema["properties"]["model"] = {"const": MODEL}  # else nearly all is a 404
    del document["paths"][LIVE_PATH]  # a stream that goes on is no hang
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                if parameter["name"] == "conversation_id":
                    parameter["schema"] = {"enum": ["known", "unknown", "a/b?c"]}
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    async with serve(max_wait_s=2.0) as gateway:
        await gateway.ask("known", "hello")
        status, output = await _fuzz(path, gateway.url)
        assert status == 0, output
        assert (await gateway.client.get("/health")).status_code == 200
        assert await gateway.metric("conserve_waiting_turns") == 0


async def _fuzz(document: Path, url: str) -> tuple[int | None, str]:
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", url, "--seed", "1"]
    command += ["--checks", CHECKS, "--max-examples", "15", "--request-timeout", "10", "--phases"]
    command += ["examples,coverage,fuzzing", "--workers", "2", "--continue-on-failure", "--no-color"]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=document.parent, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(LIMIT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode, output.decode()
