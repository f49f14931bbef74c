"""Why an engine can't be used, in words that name the fix."""

from __future__ import annotations

import socket
import ssl
from typing import Final

_KEY_FIX: Final = "put the key into a file and name it as api_key_file of its pool"


def why_unreachable(error: OSError, *, is_tls: bool) -> str:
    """Why no connection came to be."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if "ostname mismatch" in error.verify_message or "IP address mismatch" in error.verify_message:
            return f"its certificate is for another name ({error.verify_message})"
        return f"its certificate is not trusted ({error.verify_message}): name its CA as ca_file of its pool"
    if isinstance(error, ssl.SSLError) or (is_tls and isinstance(error, ConnectionResetError)):
        return f"it does not speak TLS as expected ({error.args[-1]}): is its URL http://, not https://?"
    if isinstance(error, socket.gaierror):
        return f"its name does not resolve ({error.strerror})"
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused: nothing listens there"
    return error.strerror or str(error)


def why_not_http(problem: str, sent: bytes) -> str:
    """Why what an engine sends is no answer; `sent` is its beginning."""
    if sent.startswith(b"\x15\x03"):  # a TLS alert
        return "it speaks TLS: its URL is https://, not http://"
    return f"what it sends is not HTTP/1.1: {problem}"


def why_hung_up(error: Exception | None, *, has_spoken: bool) -> str:
    """Why a connection ended; one that never had a word may be of another kind."""
    if error is not None:
        return str(error)
    return "it hung up" if has_spoken else "it hung up without a word (if it speaks TLS, its URL is https://)"


def why_refused(status: int, path: str, *, has_key: bool) -> str:
    """Why a look at `path` was answered with this status."""
    if status in (401, 403) and has_key:
        return f"it does not take the key that it was given ({status} on {path}): check its api_key_file"
    if status in (401, 403):
        return f"it wants an API key ({status} on {path}): {_KEY_FIX}"
    if status == 404:
        return f"it has no {path} (404): is this vLLM, and its URL the base URL?"
    return f"it answers {path} with status {status}"
