"""Why an engine can't be used: found out on real sockets, in words that name the fix."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from conserve_server.core.config import parse_config
from conserve_server.core.errors import ConfigError, EngineFailed
from conserve_server.engines.engine import EngineSpec, listed_engines
from conserve_server.engines.vllm import VllmEngine

METRICS = (
    b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
    b'vllm:cache_config_info{block_size="32",num_gpu_blocks="100"} 1\nprocess_start_time_seconds 1\n'
)
MODELS = b'{"data":[{"id":"m"}]}'
KEY = "the-engines-key"
WAIT_S = 10.0


@asynccontextmanager
async def server(
    tls: ssl.SSLContext | None = None,
    *,
    key: str | None = None,
    pages: Mapping[str, bytes | int] | None = None,
) -> AsyncIterator[int]:
    """Something like an engine, on a free port; a page that is a number is that status."""
    found: dict[str, bytes | int] = {"/health": b"", "/v1/models": MODELS, "/metrics": METRICS}
    found |= pages or {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled it is only when its loop ends, and asyncio's server takes a cancelled task for a fault.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                path = head.split(" ")[1]
                is_known = key is None or f"authorization: Bearer {key}\r\n" in head or path == "/health"
                page = found.get(path, 404) if is_known else 401
                status, body = (page, b"") if isinstance(page, int) else (200, page)
                writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
                await writer.drain()
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()


async def reason(url: str, **record: str) -> str:
    """What a look at this engine says; empty where it is fine."""
    (spec,) = listed_engines(parse_config({"pools": {"decode": {"engines": [{"url": url, **record}]}}}))
    return await reason_of(spec)


async def reason_of(spec: EngineSpec) -> str:
    engine = VllmEngine(spec, silence_timeout_s=WAIT_S)
    try:
        await engine.look()
    except EngineFailed as error:
        return str(error)
    finally:
        engine.close()
    return ""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and one for another name, each its own CA."""
    folder = tmp_path_factory.mktemp("certificates")
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    for name, alternative in (("good", "IP:127.0.0.1"), ("other", "DNS:engine.example")):
        command = [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=engine",
        ]
        files = ["-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem"]
        subprocess.run(
            [*command, *files, "-addext", f"subjectAltName={alternative}"], check=True, capture_output=True
        )
    return folder


def tls_of(folder: Path, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    return context


async def test_an_engine_that_wants_a_key_says_so_and_serves_with_it(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("right", "wrong")}
    files["right"].write_text(f"# for decode-0\n{KEY}\n")
    files["wrong"].write_text("another")
    async with server(key=KEY) as port:
        url = f"http://127.0.0.1:{port}"
        assert "wants an API key (401 on /v1/models)" in await reason(url)
        assert "does not take the key" in await reason(url, api_key_file=str(files["wrong"]))
        assert await reason(url, api_key_file=str(files["right"])) == ""


async def test_certificates_are_checked_with_the_ca_that_is_named(certificates: Path) -> None:
    async with server(tls_of(certificates, "good")) as port:
        url = f"https://127.0.0.1:{port}"
        assert "its certificate is not trusted" in await reason(url)
        assert await reason(url, ca_file=str(certificates / "good.pem")) == ""
        assert "its URL is https://" in await reason(url.replace("https", "http"))
    async with server(tls_of(certificates, "other")) as port:
        found = await reason(f"https://127.0.0.1:{port}", ca_file=str(certificates / "other.pem"))
        assert "its certificate is for another name" in found


async def test_a_plain_engine_that_is_listed_with_https_is_told_apart() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        assert "is its URL http://" in await reason(f"https://127.0.0.1:{port}")


async def test_nobody_there_is_told_from_no_such_name() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    assert "refused: nothing listens there" in await reason(f"http://127.0.0.1:{port}")
    assert "its name does not resolve" in await reason("http://engine.invalid:8000")


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ({"/health": 404}, "it has no /health (404): is this vLLM"),
        ({"/health": 503}, "it answers /health with status 503"),
        ({"/v1/models": 404}, "it has no /v1/models (404)"),
        ({"/v1/models": b"<html>"}, "answers /v1/models with something else"),
        ({"/v1/models": b'{"data":[]}'}, "names no model"),
        ({"/metrics": 404}, "it has no /metrics (404)"),
    ],
)
async def test_what_is_no_engine_is_told_by_its_pages(pages: dict[str, bytes | int], why: str) -> None:
    async with server(pages=pages) as port:
        assert why in await reason(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("content", [None, "", "a\nb\n", "two words", "ключ"])
async def test_a_file_that_holds_no_key_is_named_and_not_shown(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="api_key_file of http://a") as raised:
        await reason("http://a", api_key_file=str(file))
    assert not content or content not in str(raised.value)


async def test_a_ca_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(ConfigError, match="ca_file of https://a"):
        await reason("https://a", ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match="listed with http"):
        await reason("http://a", ca_file=str(tmp_path / "ca.pem"))
