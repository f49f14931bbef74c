"""The ground that attacks are made on: a real gateway process over engines, started anew where it fell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from bench.attack.raw import RawAnswer, ask, request
from bench.attack.rogue import MODEL, Rogue
from bench.chaos_cluster import Program, free_ports

ADMIN = "attack-admin-key"
KEYS = {"alpha": "alpha-key", "beta": "beta-key"}
START_S = 60.0
REAL_START_S = 300.0
REAL_MODEL = "tiny-random"
_LOOK = aiohttp.ClientTimeout(total=10.0)


@dataclass(frozen=True, slots=True)
class Setup:
    """What is started: how many engines of each kind, and what the gateway is told."""

    prefill: int = 1
    decode: int = 2
    rogues: int = 0
    """Decoders that answer what a case tells them to; listed first, and larger than the others."""
    is_local: bool = False
    """Whether the gateway starts its engines itself."""
    vllm_python: str | None = None
    """The Python that has vLLM: local engines are real ones then."""
    has_tenants: bool = False
    kv_blocks: int = 4000
    gateway: Mapping[str, object] = field(default_factory=dict)
    extra: str = ""
    """More lines of the configuration."""

    def but(self, **changes: Any) -> Setup:
        """The same with some of it changed."""
        return replace(self, **changes)


class Ground:
    """A gateway over engines, and what an attacker and an honest client need to reach it."""

    def __init__(self, setup: Setup, folder: Path, session: aiohttp.ClientSession) -> None:
        self.setup = setup
        self.session = session
        self.model = REAL_MODEL if setup.vllm_python else MODEL
        self.rogues = [Rogue() for _ in range(setup.rogues)]
        self._folder = folder
        self._ports = free_ports(setup.prefill + setup.decode + 1)
        self.port = self._ports[-1]
        self.url = f"http://127.0.0.1:{self.port}"
        roles = ["prefill"] * setup.prefill + ["decode"] * setup.decode
        self.engines = [] if setup.is_local else [self._engine(i, role) for i, role in enumerate(roles)]
        self.config = folder / "conserve.toml"
        self.log = folder / "gateway.log"
        serve = ["-m", "conserve_server.cli.main", "serve", str(self.config), "--port", str(self.port)]
        argv = [sys.executable, *serve, *(["--up"] if setup.is_local else [])]
        self.gateway = Started("gateway", self.port, argv, self.log, folder)

    def _engine(self, index: int, role: str) -> Program:
        port, name = self._ports[index], f"{role}-{index}"
        flags = ["--role", role, "--model", MODEL, "--name", name, "--port", str(port), "--speed", "4"]
        flags += ["--kv-blocks", str(self.setup.kv_blocks)]
        argv = [sys.executable, "-m", "conserve_server.engines.emulated", *flags]
        return Program(name, port, argv, self._folder / f"{name}.log")

    # -- running ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Ground]:
        async with contextlib.AsyncExitStack() as stack:
            for rogue in self.rogues:
                await stack.enter_async_context(rogue.running())
            stack.callback(self._kill)
            self.write_config()
            for each in (*self.engines, self.gateway):
                each.start()
            await self.ready()
            yield self

    def _kill(self) -> None:
        for each in (self.gateway, *self.engines):
            each.kill()

    async def ready(self) -> None:
        """Until every engine is up."""
        async with asyncio.timeout(REAL_START_S if self.setup.vllm_python else START_S):
            while not await self._all_up():
                if not self.gateway.runs:
                    raise RuntimeError(f"the gateway ended: {self.log.read_text()[-2000:]}")
                await asyncio.sleep(0.1)

    async def _all_up(self) -> bool:
        try:
            document = await self.get("/health", admin=True)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return False
        return bool(document.get("engines")) and all(engine["up"] for engine in document["engines"])

    def write_config(self, **changes: object) -> None:
        """The configuration that the gateway reads; `changes` are settings of `[gateway]`."""
        self.config.write_text(self._configuration({**self.setup.gateway, **changes}))

    def _configuration(self, gateway: Mapping[str, object]) -> str:
        settings = {"probe_interval_s": 0.3, "max_wait_s": 8.0, "turn_timeout_s": 5.0, **gateway}
        if self.setup.vllm_python:
            settings["turn_timeout_s"] = 60.0
        lines = [f'model = "{self.model}"', *self._pools(), "[gateway]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        if self.setup.has_tenants:
            lines += [f'[gateway.tenants.{name}]\napi_keys = ["{key}"]' for name, key in KEYS.items()]
        return "\n".join([*lines, self.setup.extra]) + "\n"

    def _pools(self) -> list[str]:
        if self.setup.is_local:
            engine = "vllm" if self.setup.vllm_python else "emulated"
            launcher = f'[launcher]\nengine = "{engine}"\nrun_dir = "{self._folder / "run"}"'
            if self.setup.vllm_python:
                launcher += (
                    f'\npython = "{self.setup.vllm_python}"\nkv_cache_gib = 0.25\nmax_model_len = 2048'
                )
            counts = {"prefill": self.setup.prefill, "decode": self.setup.decode}
            return [launcher, *(f"[pools.{role}]\ncount = {count}" for role, count in counts.items())]
        urls = {
            "prefill": [e.url for e in self.engines[: self.setup.prefill]],
            "decode": [f"http://127.0.0.1:{rogue.port}" for rogue in self.rogues]
            + [e.url for e in self.engines[self.setup.prefill :]],
        }
        return [f"[pools.{role}]\nengines = {json.dumps(found)}" for role, found in urls.items() if found]

    @property
    def rss_bytes(self) -> int:
        """The gateway's resident memory."""
        pages = Path(f"/proc/{self.gateway.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    # -- an honest client ----------------------------------------------------------------------------

    async def get(self, path: str, *, admin: bool = False, tenant: str | None = None) -> dict[str, Any]:
        """A JSON document of the gateway's."""
        headers = self.auth(tenant, admin=admin)
        async with self.session.get(self.url + path, headers=headers, timeout=_LOOK) as answer:
            found: dict[str, Any] = await answer.json(content_type=None)
            return found

    async def page(self, path: str) -> str:
        headers = self.auth(admin=True)
        async with self.session.get(self.url + path, headers=headers, timeout=_LOOK) as answer:
            return await answer.text()

    def auth(self, tenant: str | None = None, *, admin: bool = False) -> dict[str, str]:
        if admin:
            return {"authorization": f"Bearer {ADMIN}"}
        if not self.setup.has_tenants:
            return {}
        return {"authorization": f"Bearer {KEYS[tenant or 'alpha']}"}

    def turn(
        self,
        conversation: str | None,
        text: str = "When does the ferry sail?",
        *,
        path: str = "/v1/chat/completions",
        tenant: str | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: object,
    ) -> bytes:
        """The bytes of an honest turn, with whatever is added to it."""
        content: dict[str, object] = {"messages": [{"role": "user", "content": text}]}
        if path == "/v1/responses":
            content = {"input": text}
        elif path == "/v1/completions":
            content = {"prompt": text}
        limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
        body = {"model": self.model, **content, limit: 8, **fields}
        named = {} if conversation is None else {"x-conserve-conversation-id": conversation}
        return request(
            path, json.dumps(body).encode(), headers={**self.auth(tenant), **named, **(headers or {})}
        )

    async def ask(self, conversation: str | None, text: str = "When?", **changes: Any) -> RawAnswer:
        """An honest turn's response."""
        return await ask(self.port, self.turn(conversation, text, **changes))

    async def report(self, conversation: str, *, tenant: str | None = None) -> dict[str, Any]:
        return await self.get(f"/v1/conversations/{conversation}", tenant=tenant)

    async def release(self, conversation: str, *, tenant: str | None = None) -> int:
        url = f"{self.url}/v1/conversations/{conversation}"
        async with self.session.delete(url, headers=self.auth(tenant), timeout=_LOOK) as answer:
            return answer.status

    async def post(self, path: str, document: object, **auth: Any) -> tuple[int, str]:
        url, headers = self.url + path, self.auth(**auth)
        async with self.session.post(url, json=document, headers=headers, timeout=_LOOK) as answer:
            return answer.status, await answer.text()

    async def fault(self, engine: Program, **fault: object) -> None:
        """Have an emulated engine do something wrong for its next requests."""
        async with self.session.post(f"{engine.url}/emulated/faults", json=fault, timeout=_LOOK) as answer:
            if answer.status != 204:
                raise RuntimeError(f"{engine.name} takes no fault {fault}: {await answer.text()}")


class Started(Program):
    """The gateway's process: in its own folder, with the administrator's key in its environment."""

    def __init__(self, name: str, port: int, argv: list[str], log: Path, folder: Path) -> None:
        super().__init__(name, port, argv, log)
        self._folder = folder

    def start(self) -> None:
        traces = str(self._folder / "traces")
        environment = {**os.environ, "CONSERVE_ADMIN_KEY": ADMIN, "CONSERVE_TRACE_DIR": traces}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, stdout=log, stderr=log, cwd=self._folder, env=environment
            )

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the gateway was never started")
        return self._process.pid
