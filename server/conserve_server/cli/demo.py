"""`conserve demo`: a local cluster, a real agent's conversations, and what became of them."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conserve_server.core.errors import ConfigError, ConserveError

if TYPE_CHECKING:
    from conserve_server.cli.dashboard import Phoenix
    from conserve_server.cli.demo_agent import Result
    from conserve_server.core.config import Config

EXAMPLES: Final = Path("examples")
CONFIGS: Final = {"vllm": EXAMPLES / "config" / "cpu.toml", "emulated": EXAMPLES / "config" / "emulated.toml"}
HEARTBEAT_S: Final = 5.0
LOOK_TIMEOUT_S: Final = 10.0
_ANSWER_CELLS: Final = 60


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "demo",
        help="run an example agent's conversations on a local cluster, from a checkout",
        description="Start 1 prefill and 2 decode engines on this machine, the gateway, and several "
        "concurrent conversations of the LangGraph example; print each conversation's timeline, check "
        "what the engines counted, and write a report. Runs in a checkout of the project.",
    )
    parser.add_argument(
        "--engine", choices=sorted(CONFIGS), default="vllm", help="real vLLM, or a quick look"
    )
    parser.add_argument("--config", type=Path, help="another configuration than the engine's example")
    parser.add_argument("--conversations", type=int, default=3, help="how many run at once (default 3)")
    parser.add_argument(
        "--agent", type=Path, default=EXAMPLES / "langgraph_agent.py", help="the agent to run"
    )
    parser.add_argument(
        "--dashboard",
        choices=("phoenix",),
        help="also send the spans to a dashboard, started here and kept until Ctrl-C",
    )
    parser.add_argument("--report", type=Path, default=Path("build/demo-report.json"))
    parser.add_argument(
        "--timeout", type=float, default=1200.0, metavar="SECONDS", help="longest run of the agent"
    )


def run(args: argparse.Namespace) -> int:
    """0 if every check holds, 1 if one does not or the agent fails."""
    from conserve_server.cli.dashboard import phoenix_python
    from conserve_server.core.config import load_config

    if not args.agent.is_file():
        raise ConfigError(
            f"no agent at {args.agent}: run conserve demo in a checkout, or name one with --agent"
        )
    if args.conversations < 1:
        raise ConfigError(f"--conversations must be at least 1, got {args.conversations}")
    config_path = args.config or CONFIGS[args.engine]
    config = load_config(config_path)
    if not config.is_local:
        raise ConfigError(f"{config_path} starts no engines: pools.decode.count must be at least 1")
    python = phoenix_python() if args.dashboard else None
    try:
        return asyncio.run(_demo(args, config_path, config, python))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM


async def _demo(
    args: argparse.Namespace, config_path: Path, config: Config, phoenix_python: Path | None
) -> int:
    _cancel_on_sigterm()
    async with _dashboard(phoenix_python, config) as phoenix:
        holds = await _run_and_show(args, config_path, config, phoenix)
        if phoenix is not None:
            print(f"dashboard: {await phoenix.sessions_url()} (until Ctrl-C)", flush=True)
            await phoenix.process.wait()
    return 0 if holds else 1


@asynccontextmanager
async def _dashboard(python: Path | None, config: Config) -> AsyncIterator[Phoenix | None]:
    """Phoenix, starting while the engines do; None where none was asked for."""
    if python is None:
        yield None
        return
    from conserve_server.cli.dashboard import running_phoenix

    run_dir = Path(config.launcher.run_dir)
    async with running_phoenix(python, run_dir / "phoenix", run_dir / "logs" / "phoenix.log") as phoenix:
        yield phoenix


async def _run_and_show(
    args: argparse.Namespace, config_path: Path, config: Config, phoenix: Phoenix | None
) -> bool:
    """The demo itself: whether every check holds."""
    from rich.console import Console

    from conserve_server.cli.demo_report import print_summary, print_timelines, write_report

    traces = args.report.parent / "demo-traces"
    shutil.rmtree(traces, ignore_errors=True)
    report = await _observe(args, config_path, config, traces, phoenix)
    write_report(report, args.report)
    console = Console()
    # Every process has ended, and with it every span has been written.
    print_timelines(report, traces, console)
    print_summary(report, console)
    print(f"report: {args.report}")
    print(f"see one again: CONSERVE_TRACE_DIR={traces} conserve trace CONVERSATION")
    return all(check["holds"] for check in report["checks"].values())


def _cancel_on_sigterm() -> None:
    """SIGTERM ends the demo as Ctrl-C does: what is running is stopped first."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def _observe(
    args: argparse.Namespace, config_path: Path, config: Config, traces: Path, phoenix: Phoenix | None
) -> dict[str, Any]:
    """Run the cluster, and the agent on it: the report."""
    import aiohttp

    from conserve_server.cli.demo_report import Observer, build_report
    from conserve_server.cli.gateway_process import running_gateway
    from conserve_server.cli.local_pool import started_pool

    env = {**_environment(traces), **(phoenix.environment if phoenix else {})}
    logs = Path(config.launcher.run_dir) / "logs"
    timeout = aiohttp.ClientTimeout(total=LOOK_TIMEOUT_S)
    async with (
        heartbeat() as doing,
        started_pool(config) as pool,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        if phoenix is not None:
            doing("waiting for the dashboard")
            await phoenix.ready()
        doing("starting the gateway")
        async with running_gateway(config_path, env, logs / "gateway.log") as base_url:
            observer = Observer(base_url, pool.specs, session)
            doing("the agent runs", observer.progress)
            before = await observer.counted()
            results = await _converse(args, config, base_url, env, logs / "agent.log")
            reports = [await observer.settled(result.conversation_id) for result in results]
            counted, version = await observer.counted() - before, await observer.version()
            doing("stopping the gateway and the engines")
    return build_report(reports, counted, engine=config.launcher.engine, version=version, model=config.model)


def _environment(traces: Path) -> dict[str, str]:
    """What the gateway and the agent run with: spans in our files, whatever the user has set."""
    return {
        "CONSERVE_TRACE_DIR": str(traces.absolute()),
        "OTEL_TRACES_EXPORTER": "otlp_json_file",
        "OTEL_TRACES_SAMPLER": "parentbased_always_on",
        "OTEL_SDK_DISABLED": "false",
        "CONSERVE_DISABLED": "",
    }


async def _converse(
    args: argparse.Namespace, config: Config, base_url: str, env: dict[str, str], log: Path
) -> list[Result]:
    from conserve_server.cli.demo_agent import run_agent

    print(f"running {args.conversations} conversations of {args.agent}; its log is {log}", flush=True)
    arguments = ("--base-url", f"{base_url}/v1", "--model", config.model)
    count = ("--conversations", str(args.conversations))
    results = await run_agent(args.agent, (*arguments, *count), env, log, timeout_s=args.timeout)
    for result in results:
        answer = textwrap.shorten(result.answer, _ANSWER_CELLS, placeholder=" …")
        print(f"  {result.conversation_id[:12]} answered: {answer}", flush=True)
    if len(results) != args.conversations:
        raise ConserveError(
            f"{args.agent} printed the results of {len(results)} conversations, not of {args.conversations}: "
            'it must print one line {"conversation": …, "answer": …} for each'
        )
    return results


Look = Callable[[], Awaitable[str]]


@asynccontextmanager
async def heartbeat(interval_s: float = HEARTBEAT_S) -> AsyncIterator[Callable[..., None]]:
    """Nothing sits silent: a line every `interval_s` seconds with what is under way.

    Call what it gives with a few words, and a look at the details if there is one; it is
    quiet before the first call.
    """
    words, look = "", None

    def doing(what: str, details: Look | None = None) -> None:
        nonlocal words, look
        words, look = what, details

    async def beat() -> None:
        started_s = time.monotonic()
        while True:
            await asyncio.sleep(interval_s)
            if words:
                details = f": {await _looked(look)}" if look else ""
                print(f"[{time.monotonic() - started_s:4.0f} s] {words}{details}", flush=True)

    task = asyncio.create_task(beat())
    try:
        yield doing
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _looked(look: Look) -> str:
    try:
        async with asyncio.timeout(HEARTBEAT_S):
            return await look()
    except (ConserveError, TimeoutError) as error:
        return str(error) or "the gateway does not answer"
