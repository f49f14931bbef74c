"""What the SDK raises, and only where it is asked for something: never into a model call.

ConserveSdkError
├── UnsupportedClient (also a TypeError)   wrap() was given something that it cannot hook
└── ReportUnavailable                      report() has nothing to give; the message says why
    ├── NoGatewaySeen                      no request of the conversation went to a gateway
    ├── GatewayUnreachable                 the gateway did not answer
    └── GatewayRefused                     it answered, but not with a report; carries `status`
"""

from __future__ import annotations


class ConserveSdkError(Exception):
    """The root of everything that the SDK raises itself."""


class UnsupportedClient(ConserveSdkError, TypeError):
    """The object given to `wrap` is not a client whose requests can be tagged."""


class ReportUnavailable(ConserveSdkError):
    """There is no report of this conversation to be had now."""


class NoGatewaySeen(ReportUnavailable):
    """No request of this conversation has gone to a gateway, so nobody observed it."""


class GatewayUnreachable(ReportUnavailable):
    """The gateway that served this conversation did not answer."""


class GatewayRefused(ReportUnavailable):
    """The gateway answered with something else than a report."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
