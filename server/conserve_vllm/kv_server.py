"""The two ways in which vLLM's API server gets the routes. Either is enough; both do no harm.

`--middleware conserve_vllm.ConversationRoutes` needs nothing else. The endpoint plugin is
vLLM's own way, but is only loaded when `VLLM_PLUGINS` names it, and that variable then
shuts out every plugin, of any group, that it does not name.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from conserve_vllm.kv_guard import installed_vllm
from conserve_vllm.kv_metrics import KvMetrics
from conserve_vllm.kv_routes import KvRoutes, not_installed

_ATTACHED: Final = "conserve_kv_routes"
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def attach_routes(app: Any) -> None:
    """Add the routes to vLLM's application, once."""
    if getattr(app.state, _ATTACHED, False):
        return
    setattr(app.state, _ATTACHED, True)
    routes = KvRoutes(reason=not_installed(), vllm=installed_vllm(), metrics=KvMetrics())
    app.router.routes.extend(routes.table())


class ConversationRoutes:
    """An ASGI middleware that only adds the routes to the application inside it.

    So requests to them pass whatever else guards the application, its API keys among it.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = scope.get("app")
        if app is not None:
            attach_routes(app)
        await self._app(scope, receive, send)


class ConversationEndpoints:
    """The entry point of `vllm.endpoint_plugins`."""

    name = "conserve"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        attach_routes(app)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Nothing: the routes find the engine client in the application's state."""
