"""The cluster that chaos.py breaks: a gateway process over emulated engines, each a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

MODEL = "chaos"
START_S = 60.0
TURN_TIMEOUT_S = 6.0
WRITE_TIMEOUT_S = 3.0
_LOOK = aiohttp.ClientTimeout(total=5.0)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; the sockets that found them are closed together."""
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]


class Program:
    """A process at an address, started again at the same one."""

    def __init__(self, name: str, port: int, argv: list[str], log: Path) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._argv = argv
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        if self._process is not None and self.runs:
            self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash ends it: nothing is said to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()


class Cluster:
    """2 prefillers, 3 decoders and the gateway over them."""

    def __init__(self, folder: Path, session: aiohttp.ClientSession) -> None:
        self._session = session
        ports = free_ports(6)
        roles = ["prefill"] * 2 + ["decode"] * 3
        self.engines = [
            Program(f"{role}-{i}", port, _engine(role, i, port), folder / f"{role}-{i}.log")
            for i, (role, port) in enumerate(zip(roles, ports, strict=False))
        ]
        self.prefillers, self.decoders = self.engines[:2], self.engines[2:]
        config = folder / "conserve.toml"
        config.write_text(self.configuration())
        self.config = config
        serve = ["-m", "bench.chaos_gateway", "serve", str(config), "--port", str(ports[5])]
        self.gateway = Program("gateway", ports[5], [sys.executable, *serve], folder / "gateway.log")
        self.life = 0
        """How often the gateway was started again."""
        self.serves = asyncio.Event()
        """Set while the gateway is meant to be up."""
        self.rebinds: Counter[str] = Counter()

    def configuration(self, *, backwards: bool = False) -> str:
        """The gateway's configuration, the engines in one order or in the other."""
        step = -1 if backwards else 1
        pools = {"prefill": self.prefillers[::step], "decode": self.decoders[::step]}
        lines = [f"[pools.{n}]\nengines = {json.dumps([e.url for e in pool])}\n" for n, pool in pools.items()]
        limits = {
            "turn_timeout_s": TURN_TIMEOUT_S,
            "write_timeout_s": WRITE_TIMEOUT_S,
            "max_wait_s": 15.0,
            "probe_interval_s": 0.5,
        }
        return "".join(lines) + "[gateway]\n" + "".join(f"{k} = {v}\n" for k, v in limits.items())

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        programs = [*self.engines, self.gateway]
        try:
            for each in programs:
                each.start()
            yield
        finally:
            for each in programs:
                each.send(signal.SIGCONT)
                each.kill()

    async def ready(self) -> None:
        """Until every engine is up."""
        async with asyncio.timeout(START_S):
            while not await self._all_up():  # noqa: ASYNC110 - processes are polled
                await asyncio.sleep(0.1)
        self.serves.set()

    async def _all_up(self) -> bool:
        try:
            async with self._session.get(f"{self.gateway.url}/health", timeout=_LOOK) as answer:
                document = await answer.json()
        except (aiohttp.ClientError, TimeoutError):
            return False
        return all(engine["up"] for engine in document["engines"])

    async def revive(self) -> None:
        """Start what has died, and wait until all of it serves."""
        for each in self.engines:
            each.send(signal.SIGCONT)
            if not each.runs:
                each.start()
        await self.ready()

    async def restart_gateway(self) -> None:
        self.rebinds += await self.rebinds_now()
        self.serves.clear()
        self.life += 1
        self.gateway.restart()
        await self.ready()

    # -- what it says ------------------------------------------------------------------------------

    async def fault(self, engine: Program, **fault: object) -> None:
        """Have an engine do something wrong for its next requests."""
        async with self._session.post(f"{engine.url}/emulated/faults", json=fault, timeout=_LOOK) as answer:
            if answer.status != 204:
                raise RuntimeError(f"{engine.name} takes no fault {fault}: {await answer.text()}")

    async def page(self, engine: Program, path: str, content: bytes | None) -> None:
        """Put these bytes in the place of one of an engine's pages; None: the engine's own again."""
        url = f"{engine.url}/emulated/pages/{path}"
        method = "DELETE" if content is None else "PUT"
        async with self._session.request(method, url, data=content, timeout=_LOOK) as answer:
            if answer.status != 204:
                raise RuntimeError(f"{engine.name} takes no page {path}: {await answer.text()}")

    async def forget_faults(self) -> None:
        """Faults that no request has met are taken back."""
        for engine in self.engines:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with self._session.delete(f"{engine.url}/emulated/faults", timeout=_LOOK):
                    pass

    async def metric(self, url: str, name: str) -> Counter[str]:
        """A metric's samples by the value of their first label."""
        async with self._session.get(f"{url}/metrics", timeout=_LOOK) as answer:
            page = await answer.text()
        found: Counter[str] = Counter()
        lines = "\n".join(line for line in page.splitlines() if line.startswith(name))
        for family in text_string_to_metric_families(lines + "\n"):
            for sample in family.samples:
                if sample.name == name:
                    found[next(iter(sample.labels.values()), "")] += int(sample.value)
        return found

    async def rebinds_now(self) -> Counter[str]:
        """Rebinds by cause since the gateway's last start."""
        return await self.metric(self.gateway.url, "conserve_rebinds_total")

    async def reserved(self) -> int:
        """KV tokens that the scheduler holds for anybody."""
        return sum((await self.metric(self.gateway.url, "conserve_reserved_kv_tokens")).values())

    async def running_requests(self) -> int:
        """Requests that any engine still works on."""
        running = [await self.metric(e.url, "vllm:num_requests_running") for e in self.engines]
        return sum(sum(each.values()) for each in running)


def _engine(role: str, index: int, port: int) -> list[str]:
    flags = [
        "--role",
        role,
        "--model",
        MODEL,
        "--name",
        f"{role}-{index}",
        "--port",
        str(port),
        "--speed",
        "2",
    ]
    return [sys.executable, "-m", "conserve_server.engines.emulated", *flags]
