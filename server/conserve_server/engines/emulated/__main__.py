"""`python -m conserve_server.engines.emulated`: one emulated engine as a process."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conserve_server.core.errors import ConfigError, EngineStartError
from conserve_server.engines.emulated.config import EmulatedConfig
from conserve_server.engines.emulated.script import load_script
from conserve_server.engines.emulated.server import run_emulated
from conserve_server.engines.emulated.timing import EmulatedTiming
from conserve_server.engines.engine import Role


def parse_arguments(arguments: Sequence[str]) -> EmulatedConfig:
    """The engine that the command line asks for. Raises ConfigError."""
    defaults = EmulatedConfig()
    parser = argparse.ArgumentParser(
        prog="python -m conserve_server.engines.emulated",
        description="Serve an emulated engine: vLLM's wire, modelled timing, no model behind it.",
    )
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port", type=int, default=8100, help="0 takes a free port")
    parser.add_argument("--role", type=Role, choices=tuple(Role), default=defaults.role)
    parser.add_argument("--model", default=defaults.model, help="the model name that it answers to")
    parser.add_argument("--name", default=defaults.name)
    parser.add_argument("--script", type=Path, help="answers by script, a TOML or JSON file")
    parser.add_argument("--kv-blocks", type=int, default=defaults.kv_blocks, help="size of the KV cache")
    parser.add_argument("--block-size", type=int, default=defaults.block_size, help="tokens of a block")
    parser.add_argument("--max-model-len", type=int, default=defaults.max_model_len)
    parser.add_argument("--speed", type=float, default=1.0, help="2 halves every modelled time")
    given = parser.parse_args(arguments)
    return EmulatedConfig(
        model=given.model,
        name=given.name,
        role=given.role,
        host=given.host,
        port=given.port,
        kv_blocks=given.kv_blocks,
        block_size=given.block_size,
        max_model_len=given.max_model_len,
        timing=EmulatedTiming().faster(given.speed),
        script=load_script(given.script) if given.script else (),
    )


def _announce(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """The process's exit status."""
    try:
        run_emulated(parse_arguments(sys.argv[1:]), _announce)
    except (ConfigError, EngineStartError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
