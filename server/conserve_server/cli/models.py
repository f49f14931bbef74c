"""`conserve models`: the models that ConServe prepares itself, and preparing one ahead of time."""

from __future__ import annotations

import argparse
import asyncio
import sys


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "models",
        help="list the small models that need no hub, or prepare one",
        description="List the models that ConServe prepares itself and where they lie. With --prepare, "
        "prepare one now; otherwise `conserve up` does it when it first needs it.",
    )
    parser.add_argument("--prepare", metavar="NAME", help="the model to prepare now")
    parser.add_argument(
        "--python",
        default=sys.executable,
        help="the Python of the environment that holds vLLM (default: the running one)",
    )


def run(args: argparse.Namespace) -> int:
    """List the known models, or prepare the one that was named."""
    from conserve_server.engines.models import KNOWN, is_prepared, model_folder

    if args.prepare is None:
        for name in KNOWN:
            state = "ready" if is_prepared(name) else "prepared at first use"
            print(f"{name:<14} {state:<22} {model_folder(name)}")
        return 0
    print(asyncio.run(_prepare(args.prepare, args.python)))
    return 0


async def _prepare(name: str, python: str) -> str:
    from conserve_server.cli.local_pool import show
    from conserve_server.engines.models import prepare_model
    from conserve_server.engines.vllm_environment import find_vllm

    found = await find_vllm(python, needs_transfer=False)
    return (await prepare_model(name, python=found.python, report=show)).source
