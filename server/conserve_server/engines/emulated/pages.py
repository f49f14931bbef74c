"""Pages on command: what the engine answers instead of its own page, however wrong that is."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


class Pages:
    """The bytes that are answered with status 200, by path."""

    def __init__(self) -> None:
        self._by_path: dict[str, bytes] = {}

    def route(self) -> Route:
        """`PUT` a page's bytes, `DELETE` them: then the engine answers for itself again."""
        return Route("/emulated/pages/{page:path}", self._change, methods=["PUT", "DELETE"])

    def before(self, app: ASGIApp) -> ASGIApp:
        """`app`, where no page stands in its place."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            page = self._by_path.get(scope["path"]) if scope["type"] == "http" else None
            await (app if page is None else Response(page))(scope, receive, send)

        return answer

    async def _change(self, request: Request) -> Response:
        path = "/" + request.path_params["page"]
        if request.method == "PUT":
            self._by_path[path] = await request.body()
        else:
            self._by_path.pop(path, None)
        return Response(status_code=204)
