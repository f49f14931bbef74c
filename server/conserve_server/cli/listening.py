"""The gateway's sockets, bound before anything else: a port that is taken is known at once."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from conserve_server.core.errors import ConserveError


@contextmanager
def listening(host: str, port: int) -> Iterator[Sequence[socket.socket]]:
    """Sockets on every address of `host`, bound and not yet listening; the same port on each.

    `port` 0 takes a free one. Raises ConserveError naming the address and the fix.
    """
    with ExitStack() as stack:
        bound: list[socket.socket] = []
        for family, address in _addresses(host, port):
            taken = bound[0].getsockname()[1] if bound else port
            found = _bind(family, address, taken)
            if found is not None:
                bound.append(stack.enter_context(found))
        if not bound:
            raise ConserveError(f"this machine has no address {host}: set gateway.host to one that it has")
        yield bound


def listen(sockets: Sequence[socket.socket], *, write_timeout_s: float) -> None:
    """Take connections from now on. Raises ConserveError where another program was faster.

    A connection whose client takes nothing for `write_timeout_s` is closed by the kernel, where it can.
    """
    for each in sockets:
        try:
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                limit_ms = min(round(write_timeout_s * 1000), 2**31 - 1)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
            each.listen()
        except OSError as error:
            host, port = each.getsockname()[:2]
            raise _unusable(host, port, error) from error


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConserveError(
            f"gateway.host {host!r} is no address of this machine: {error.strerror}"
        ) from error
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _bind(family: socket.AddressFamily, host: str, port: int) -> socket.socket | None:
    """A bound socket; None for an address that the machine does not have, such as IPv6 where that is off."""
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        # Connections that an earlier gateway left closing are no obstacle.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Taken over by each connection: or headers wait 40 ms for the acknowledgement before the body.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise _unusable(host, port, error) from error
    return bound


def _unusable(host: str, port: int, error: OSError) -> ConserveError:
    if error.errno == errno.EADDRINUSE:
        return ConserveError(
            f"port {port} on {host} is taken: stop what listens there, or choose another with --port"
        )
    return ConserveError(
        f"port {port} on {host} can't be used ({error.strerror}): choose another with --host and --port"
    )
