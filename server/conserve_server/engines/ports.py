"""Ports on this machine that stay an engine's own while it starts, runs and restarts."""

from __future__ import annotations

import socket
from contextlib import ExitStack

from conserve_server.core.errors import EngineStartError


def hold_port(held: ExitStack, host: str, port: int | None = None) -> int:
    """A port that nobody else is given until `held` closes; `port` itself where one is named.

    The socket is bound and never listens. It allows reuse, so that the engine, whose server
    sets SO_REUSEADDR as servers do, can bind and listen on it, again after each restart.
    Raises EngineStartError if something listens on the named port.
    """
    holder = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    if port is None:
        holder.bind((host, 0))  # without reuse as yet: what others hold is not given out twice
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found: int = holder.getsockname()[1]
        return found
    # With reuse at once: connections that an earlier engine left closing are no obstacle.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind((host, port))
    except OSError as error:
        raise EngineStartError(
            f"port {port} on {host} can't be used ({error.strerror}): stop what listens there, "
            "or let conserve up pick the ports"
        ) from error
    return port
