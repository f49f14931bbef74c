"""`conserve demo`: a local cluster, a real agent's conversations, and what became of them."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from conserve_server.core.errors import ConfigError, ConserveError

if TYPE_CHECKING:
    import aiohttp

    from conserve_server.core.config import Config

EXAMPLES: Final = Path("examples")
CONFIGS: Final = {"vllm": EXAMPLES / "config" / "cpu.toml", "emulated": EXAMPLES / "config" / "emulated.toml"}
AGENT_TIMEOUT_S: Final = 1200.0
HEARTBEAT_S: Final = 5.0


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
    parser.add_argument("--report", type=Path, default=Path("build/demo-report.json"))


def run(args: argparse.Namespace) -> int:
    """0 if every check holds, 1 if one does not."""
    from conserve_server.core.config import load_config

    if not args.agent.is_file():
        raise ConfigError(
            f"no agent at {args.agent}: run conserve demo in a checkout, or name one with --agent"
        )
    if args.conversations < 1:
        raise ConfigError(f"--conversations must be at least 1, got {args.conversations}")
    config_path = args.config or CONFIGS[args.engine]
    return asyncio.run(_demo(args, config_path, load_config(config_path)))


async def _demo(args: argparse.Namespace, config_path: Path, config: Config) -> int:
    import aiohttp

    from conserve_server.cli.demo_report import Demo, print_summary, write_report
    from conserve_server.cli.gateway_process import running_gateway
    from conserve_server.cli.local_pool import started_pool

    traces = args.report.parent / "demo-traces"
    shutil.rmtree(traces, ignore_errors=True)
    env = {**os.environ, "CONSERVE_TRACE_DIR": str(traces.absolute())}
    async with started_pool(config) as pool, aiohttp.ClientSession() as session:
        log = Path(config.launcher.run_dir) / "logs" / "gateway.log"
        async with running_gateway(config_path, env, log) as base_url:
            demo = Demo(base_url, pool.specs, session, config.launcher.engine, config.model)
            await demo.look_before()
            ids = await _converse(args, config, base_url, env, session)
            report = await demo.collect(ids)
        # The gateway has stopped and with it every span has been written.
        print_summary(report, traces)
    write_report(report, args.report)
    return 0 if all(check["holds"] for check in report["checks"].values()) else 1


async def _converse(
    args: argparse.Namespace,
    config: Config,
    base_url: str,
    env: dict[str, str],
    session: aiohttp.ClientSession,
) -> list[str]:
    """Run the agent in a process of its own, as a user would; the ids of its conversations."""
    print(f"running {args.conversations} conversations of {args.agent}", flush=True)
    command = [str(args.agent), "--base-url", f"{base_url}/v1", "--model", config.model]
    agent = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--conversations", str(args.conversations), env=env,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    heartbeat = asyncio.create_task(_heartbeat(base_url, session))
    try:
        async with asyncio.timeout(AGENT_TIMEOUT_S):
            output, _ = await agent.communicate()
    except TimeoutError as error:
        raise ConserveError(f"{args.agent} was not done within {AGENT_TIMEOUT_S:g} s") from error
    finally:
        heartbeat.cancel()
        if agent.returncode is None:
            agent.kill()
            await agent.wait()
    if agent.returncode != 0:
        raise ConserveError(f"{args.agent} failed with exit status {agent.returncode}; its error is above")
    return _conversation_ids(output.decode())


def _conversation_ids(output: str) -> list[str]:
    ids = []
    for line in output.splitlines():
        if line.startswith('{"conversation"'):
            result = json.loads(line)
            ids.append(str(result["conversation"]))
            print(f"  {result['conversation'][:12]} answered: {result['answer']}")
    return ids


async def _heartbeat(base_url: str, session: aiohttp.ClientSession) -> None:
    """A line every few seconds: nothing sits silent."""
    from conserve_server.cli.demo_report import turns_done

    elapsed_s = 0.0
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        elapsed_s += HEARTBEAT_S
        async with session.get(f"{base_url}/health") as response:
            engines = (await response.json())["engines"]
        busy = ", ".join(f"{e['name']} runs {e.get('running', 0)}" for e in engines if e["up"])
        print(f"[{elapsed_s:4.0f} s] {await turns_done(base_url, session)} turns done; {busy}", flush=True)
