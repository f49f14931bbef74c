"""A page by which another machine tells what its devices drew: read whole, up to a size, within a time."""

from __future__ import annotations

import time
from typing import Final

import httpx2

MAX_BYTES: Final = 8 * 1024 * 1024
"""A DCGM exporter writes some 20 KB a GPU."""
LIMIT_S: Final = 2.0


class PageUnreadable(Exception):
    """It does not answer in time, answers with an error, or with more than such a page holds."""


class MeterPage:
    """One address and the connection to it. It may be another program's: nothing that comes is trusted."""

    def __init__(self, url: str, *, limit_s: float = LIMIT_S) -> None:
        self.url = url
        self._limit_s = limit_s
        self._client = httpx2.Client(timeout=limit_s)

    def read(self) -> bytes:
        """The page now. Raises PageUnreadable."""
        until_s = time.monotonic() + self._limit_s
        page = bytearray()
        try:
            with self._client.stream("GET", self.url) as response:
                response.raise_for_status()
                for piece in response.iter_bytes():
                    page += piece
                    if len(page) > MAX_BYTES:
                        raise PageUnreadable(f"it is longer than {MAX_BYTES} bytes")
                    if time.monotonic() > until_s:
                        raise PageUnreadable(f"it takes longer than {self._limit_s:g} s")
        except httpx2.HTTPError as error:
            raise PageUnreadable(str(error) or repr(error)) from error
        return bytes(page)

    def close(self) -> None:
        self._client.close()
