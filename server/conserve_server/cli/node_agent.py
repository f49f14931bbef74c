"""`conserve node-agent`: a node's energy meter over HTTP, for gateways on other machines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from conserve_server.energy.meter import Meter

WRITE_TIMEOUT_S: Final = 30.0
"""A reader that takes nothing for so long is gone: an answer is a few lines."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand's arguments."""
    parser = subparsers.add_parser(
        "node-agent",
        help="serve this node's energy counters to gateways elsewhere",
        description="Serve the energy counters of this machine's GPUs (or CPU packages) over HTTP, for "
        "gateways on other machines that name it in energy.nodes. Needs no rights beyond nvidia-smi's, "
        "changes nothing and knows no conversations; it asks for no key, so keep it on a private network.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=9401, help="the port (default 9401; 0: any free one)")
    parser.add_argument("--meter", choices=("nvml", "rapl"), default="nvml", help="what is read")
    parser.add_argument(
        "--sample-s",
        type=float,
        default=0.1,
        metavar="SECONDS",
        help="how often power is read on a GPU without an energy counter (default 0.1)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    import uvicorn

    from conserve_server.cli.listening import listen, listening
    from conserve_server.core.clock import SystemClock
    from conserve_server.core.logs import log_to_stderr
    from conserve_server.energy.node_agent import device_names, node_app

    log_to_stderr()
    with listening(args.host, args.port) as sockets:
        meter = _meter(args.meter, args.sample_s)
        app = node_app(meter, SystemClock().now_s)
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, lifespan="on")
        )
        listen(sockets, write_timeout_s=WRITE_TIMEOUT_S)
        host, port = args.host, sockets[0].getsockname()[1]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"conserve node-agent on http://{address}\n{device_names(meter.devices)}", flush=True)
        server.run(sockets=list(sockets))
    return 0


def _meter(kind: str, sample_s: float) -> Meter:
    from conserve_server.energy.nvml import NvmlMeter
    from conserve_server.energy.rapl import RaplMeter

    return NvmlMeter(sample_s) if kind == "nvml" else RaplMeter()
