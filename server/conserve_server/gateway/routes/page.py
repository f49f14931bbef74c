"""The live page at `/ui`: three files of the package, which hold no data and need no key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PAGE_PATH: Final = "/ui"
_FILES: Final = {
    PAGE_PATH: ("index.html", "text/html"),
    PAGE_PATH + "/page.css": ("page.css", "text/css"),
    PAGE_PATH + "/page.js": ("page.js", "text/javascript"),
}
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """The page's files as routes, read once."""
    folder = resources.files("conserve_server.gateway") / "page"
    return [
        Route(path, _file((folder / name).read_bytes(), media_type), methods=["GET"])
        for path, (name, media_type) in _FILES.items()
    ]


def _file(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return answer
