"""The console script `conserve`: one module for each subcommand, loaded when it is needed.

`conserve --help` and `conserve SUBCOMMAND --help` work with the SDK's dependencies alone;
only a subcommand's `run` imports what it runs on.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from conserve_sdk._version import __version__
from conserve_server.core.errors import ConfigError, ConserveError

SUBCOMMANDS = (
    "demo",
    "serve",
    "up",
    "models",
    "trace",
    "record",
    "simulate",
    "calibrate",
    "bench",
    "plan",
    "node-agent",
)
"""Each is a module of this package with `add_parser(subparsers)` and `run(args) -> exit status`."""

_SERVER_EXTRA = frozenset(
    ("aiohttp", "httptools", "msgspec", "prometheus_client", "psutil", "pydantic", "starlette", "uvicorn")
)
_SIMULATION_EXTRA = frozenset(("numpy",))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. Exit status: 0, 1 failed, 2 can't be used as asked, 130 interrupted."""
    args = _parser().parse_args(arguments)
    try:
        status: int = _module(args.subcommand).run(args)
    except ConserveError as error:
        print(f"conserve {args.subcommand}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except ModuleNotFoundError as error:
        extra = _extra_of(error.name or "")
        if extra is None:
            raise
        print(
            f"conserve {args.subcommand} needs the {extra} extra: pip install 'conserve-sdk[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:
        return 1  # whoever read our output, such as `head`, has enough
    except KeyboardInterrupt:
        return 130
    return status


def _extra_of(module: str) -> str | None:
    """The extra that brings a module which is not installed; None if none does."""
    package = module.partition(".")[0]
    if package in _SIMULATION_EXTRA:
        return "server,simulation"
    return "server" if package in _SERVER_EXTRA else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conserve", description="Serve LLM agents by the conversation, over vLLM engines."
    )
    parser.add_argument("--version", action="version", version=f"conserve {__version__}")
    subparsers = parser.add_subparsers(dest="subcommand", metavar="SUBCOMMAND", required=True)
    for name in SUBCOMMANDS:
        _module(name).add_parser(subparsers)
    return parser


def _module(name: str):  # type: ignore[no-untyped-def]  # a module, whose functions mypy can't see
    return importlib.import_module(f"conserve_server.cli.{name.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
