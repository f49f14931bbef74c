"""`conserve serve` as a process: what it refuses, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from pathlib import Path

import httpx2
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conserve_server.cli.listening import listening
from conserve_server.cli.main import main
from conserve_server.core.clock import SystemClock
from conserve_server.core.errors import ConserveError
from conserve_server.engines.emulated import (
    EmulatedConfig,
    Fault,
    create_emulated_engine,
)
from conserve_server.engines.engine import Role
from tests.cli.serving import (
    MODEL,
    NOBODY,
    engine,
    listed,
    local,
    ready,
    serving,
    turn,
    write_config,
)
from tests.gateway.conftest import serve_app
from tests.processes import LIMIT_S, eventually, is_running

# -- what it refuses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pools.decode]\ncount = 1\n[gateway]\nprot = 8000\n", "gateway.prot: no such key"),
        ("[gateway]\nport = 8000\n", "pools: missing"),
        ("[pools.decode]\n", "decode has no engines: list their URLs in pools.decode.engines"),
        (f'[pools.decode]\nengines = ["{NOBODY}"]\n[scheduler]\npolicy = "best"\n', "one of ampd, "),
    ],
)
def test_a_wrong_configuration_is_exit_status_2_and_names_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    assert main(["serve", str(write_config(tmp_path, text))]) == 2
    assert message in capsys.readouterr().err


def test_listed_engines_are_nothing_to_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(listed(tmp_path, NOBODY)), "--up"]) == 2
    assert "leave out --up, or set pools.decode.count" in capsys.readouterr().err


def test_local_engines_that_do_not_run_are_named_with_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert main(["serve", str(local(tmp_path)), "--port", "0"]) == 2
    assert "start them with conserve up and the same configuration" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("--up",)], ids=["listed", "up"])
def test_a_port_that_is_taken_is_known_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    config = local(tmp_path) if arguments else listed(tmp_path, NOBODY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(config), "--port", str(port), *arguments]) == 1
    expected = f"conserve serve: port {port} on 127.0.0.1 is taken: stop what listens there, or choose"
    assert capsys.readouterr().err.startswith(expected)
    assert not (tmp_path / "run").exists()


def test_a_host_of_another_machine_is_named() -> None:
    with pytest.raises(ConserveError, match=r"no address 192\.0\.2\.1"), listening("192.0.2.1", 0):
        pass
    with pytest.raises(ConserveError, match="'no such host' is no address"), listening("no such host", 0):
        pass


def test_every_address_of_a_name_gets_the_same_port() -> None:
    with listening("localhost", 0) as sockets:
        assert len({bound.getsockname()[1] for bound in sockets}) == 1


# -- a process of its own ----------------------------------------------------------------


@pytest.mark.slow
async def test_sigterm_lets_a_running_stream_end_and_writes_its_spans(tmp_path: Path) -> None:
    async with engine(Fault("slow", delay_s=0.1)) as slow, serving(listed(tmp_path, slow.url)) as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
            await ready(client)
            headers = {"x-conserve-conversation-id": "c-1"}
            request = client.stream("POST", "/v1/chat/completions", json=turn(stream=True), headers=headers)
            async with request as response:
                lines = response.aiter_lines()
                first = await anext(lines)
                gateway.process.terminate()
                rest = [line async for line in lines]
        errors = await gateway.ended()
    assert first.startswith("data: ")
    assert [line for line in rest if line][-1] == "data: [DONE]"
    assert gateway.process.returncode == 0
    assert "Traceback" not in errors
    (span,) = [span for span in gateway.spans if span.name == "conserve.turn"]
    assert (span.conversation_id, span.text("conserve.turn.outcome")) == ("c-1", "completed")


@pytest.mark.slow
async def test_a_stream_that_outlasts_the_drain_is_cut_and_its_client_told_so(tmp_path: Path) -> None:
    async with engine(Fault("hang", after_tokens=2)) as hangs:
        config = listed(tmp_path, hangs.url, gateway="drain_timeout_s = 1.0")
        async with serving(config) as gateway, httpx2.AsyncClient(base_url=gateway.url) as client:
            await ready(client)
            async with client.stream("POST", "/v1/chat/completions", json=turn(stream=True)) as response:
                lines = response.aiter_lines()
                await anext(lines)
                gateway.process.terminate()
                rest = [line async for line in lines if line]
            errors = await gateway.ended()
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "gateway_stopped"
    assert gateway.process.returncode == 0
    assert "Traceback" not in errors
    (span,) = [span for span in gateway.spans if span.name == "conserve.turn"]
    assert (span.text("conserve.turn.outcome"), span.text("error.type")) == ("failed", "gateway_stopped")


@pytest.mark.slow
async def test_while_it_drains_live_conversations_go_on_and_new_ones_are_refused(tmp_path: Path) -> None:
    known, new = ({"x-conserve-conversation-id": name} for name in ("known", "new"))
    hang = Fault("hang", after_tokens=2, delay_s=8.0)
    async with (
        engine(hang) as hangs,
        serving(listed(tmp_path, hangs.url)) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client,
    ):
        await ready(client)
        path, body = "/v1/chat/completions", turn(stream=True)
        async with client.stream("POST", path, json=body, headers=known) as response:
            lines = response.aiter_lines()
            await anext(lines)
            gateway.process.terminate()
            await eventually_draining(client)
            refused = await client.post(path, json=turn(), headers=new)
            served = await client.post(path, json=turn(), headers=known)
            rest = [line async for line in lines if line]
        await gateway.ended()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway_draining")
    assert int(refused.headers["retry-after"]) >= 1
    assert served.status_code == 200
    assert rest[-1] == "data: [DONE]"
    assert gateway.process.returncode == 0


async def eventually_draining(client: httpx2.AsyncClient) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await client.get("/health")).json()["status"] != "draining":  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with (
        engine(Fault("hang", after_tokens=2)) as hangs,
        serving(listed(tmp_path, hangs.url)) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client,
    ):
        await ready(client)
        async with client.stream("POST", "/v1/chat/completions", json=turn(stream=True)) as response:
            await anext(response.aiter_lines())
            gateway.process.terminate()
            await eventually_draining(client)
            async with asyncio.timeout(10):  # the drain alone would take 30 s
                await gateway.stop(signal.SIGTERM)
    assert gateway.process.returncode == 0


@pytest.mark.slow
async def test_sighup_takes_engines_in_and_refuses_what_it_cannot_change(tmp_path: Path) -> None:
    async with engine() as first, engine() as second:
        config = listed(tmp_path, first.url)
        async with serving(config) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
                await ready(client)
                listed(tmp_path, first.url, second.url)
                gateway.process.send_signal(signal.SIGHUP)
                await ready(client, engines=2)
                listed(tmp_path, first.url, gateway="max_wait_s = 1.0")
                gateway.process.send_signal(signal.SIGHUP)
                engines = (await client.get("/health")).json()["engines"]
            errors = await gateway.stop(signal.SIGTERM)
    assert len(engines) == 2
    assert "gateway.max_wait_s can't change while the gateway runs" in errors


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_told_to_stop_it_ends_quietly(tmp_path: Path, number: signal.Signals, status: int) -> None:
    async with serving(listed(tmp_path, NOBODY)) as gateway, httpx2.AsyncClient() as client:
        assert (await client.get(gateway.url + "/health")).status_code == 503
        errors = await gateway.stop(number)
    assert gateway.process.returncode == status
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_engines_that_it_started_stop_with_it(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    async with serving(local(tmp_path), "--up") as gateway:
        pids = [e["pid"] for e in json.loads((tmp_path / "run" / "pool.json").read_text())["engines"]]
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
            await ready(client)
            answer = await client.post("/v1/chat/completions", json=turn())
        errors = await gateway.stop(number)
    assert answer.status_code == 200
    assert gateway.process.returncode == status
    assert errors.endswith("engines stopped\n")
    assert "Traceback" not in errors
    assert len(pids) == 2
    await eventually(lambda: not any(map(is_running, pids)), "the engines to end")


LOSES_A_LOOP = """
import asyncio, signal, sys
from conserve_server.cli.main import main

def lose(_number, _frame):
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "expiry"]
    task.cancel()

signal.signal(signal.SIGUSR1, lose)
sys.exit(main(sys.argv[1:]))
"""
"""`conserve serve` in which a loop of the gateway ends on SIGUSR1, which none ever should."""


@pytest.mark.slow
async def test_a_gateway_whose_background_work_has_ended_ends_with_status_1_and_says_why(
    tmp_path: Path,
) -> None:
    async with engine(Fault("hang", after_tokens=2)) as hangs:
        program = ("-c", LOSES_A_LOOP)
        async with (
            serving(listed(tmp_path, hangs.url), program=program) as gateway,
            httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client,
        ):
            await ready(client)
            async with client.stream("POST", "/v1/chat/completions", json=turn(stream=True)) as response:
                lines = response.aiter_lines()
                await anext(lines)
                gateway.process.send_signal(signal.SIGUSR1)
                rest = [line async for line in lines if line]
            errors = await gateway.ended()
    assert gateway.process.returncode == 1
    assert "a loop has ended: expiry: the gateway ends" in errors
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "gateway_stopped"
    assert [span.name for span in gateway.spans if span.name == "conserve.turn"]


@pytest.mark.slow
async def test_where_no_engine_listens_a_turn_gets_503_in_bounded_time(tmp_path: Path) -> None:
    config = listed(tmp_path, NOBODY, gateway="max_wait_s = 0.3")
    async with (
        serving(config) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client,
    ):
        health = await client.get("/health")
        answer = await client.post("/v1/chat/completions", json=turn())
    assert (health.status_code, health.json()["status"]) == (503, "no decode engine is up")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_decode_engine"
    assert "retry-after" in answer.headers


@pytest.mark.slow
async def test_the_port_that_was_chosen_is_announced(tmp_path: Path) -> None:
    async with serving(listed(tmp_path, NOBODY)) as gateway:
        assert not gateway.url.endswith(":0")
        assert f"decode  decode-0     {NOBODY}" in gateway.announced


class WithoutConnector:
    """A vLLM that was started without a KV connector: it reads no `kv_transfer_params` and gives none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            message = await receive()
            if not message.get("body"):
                return message
            body = json.loads(message["body"])
            body.pop("kv_transfer_params", None)
            return {**message, "body": json.dumps(body).encode()}

        await self._app(scope, received, send)


@pytest.mark.slow
async def test_a_prefill_engine_without_a_connector_is_a_warning_with_the_fix_and_the_turn_is_served(
    tmp_path: Path,
) -> None:
    config = EmulatedConfig(model=MODEL, name="prefill-0", role=Role.PREFILL)
    app = create_emulated_engine(config, SystemClock())
    app.add_middleware(WithoutConnector)
    async with serve_app(app) as prefill, engine() as decode:
        text = f'[pools.prefill]\nengines = ["{prefill}"]\n[pools.decode]\nengines = ["{decode.url}"]\n'
        async with serving(write_config(tmp_path, text)) as gateway:
            async with httpx2.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
                await ready(client, engines=2)
                answer = await client.post("/v1/chat/completions", json=turn())
            errors = await gateway.stop(signal.SIGTERM)
    assert answer.status_code == 200
    assert answer.headers["x-conserve-path"] == "local-prefill"
    assert "engine prefill-0 answered the prefill leg without kv_transfer_params" in errors
    assert "start it with a KV connector (--kv-transfer-config" in errors
