"""Ports on this machine that stay an engine's own while it starts, runs and restarts."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from conserve_server.core.errors import EngineStartError


def hold_port(held: ExitStack, host: str, port: int | None = None) -> int:
    """A port that nobody else is given until `held` closes; `port` itself where one is named.

    The socket is bound and never listens. It allows reuse only once it is bound: so a port
    that another process has bound is refused here, while the engine, whose server sets
    SO_REUSEADDR as servers do, can still bind and listen on it, again after each restart.
    Raises EngineStartError if the named port is taken.
    """
    holder = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    try:
        holder.bind((host, port or 0))
    except OSError as error:
        raise EngineStartError(
            f"port {port} on {host} can't be used ({error.strerror}): stop what listens there, "
            "or let conserve up pick the ports"
        ) from error
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found: int = holder.getsockname()[1]
    return found
