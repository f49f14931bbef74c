"""The decorator that makes a function a tool of whatever conversation calls it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast, overload

from conserve_sdk._conversation import current_conversation

P = ParamSpec("P")
R = TypeVar("R")


@overload
def tool(target: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def tool(target: str, /) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def tool(target: Callable[P, R] | str, /) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """`@tool` or `@tool("name")`: the function, each call of it a tool call of the conversation.

    For functions and coroutine functions; the name is the function's unless given. Outside
    of a conversation it is just the function. Raises TypeError for a generator function,
    whose body runs after the call has returned: use `with conversation.tool(...)` in it.
    """
    if isinstance(target, str):
        return functools.partial(_decorate, name=target)
    return _decorate(target, name=target.__name__)


def _decorate(function: Callable[P, R], *, name: str) -> Callable[P, R]:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"@tool cannot time the generator function {name}: use conversation.tool() inside it")
    if inspect.iscoroutinefunction(function):
        return cast("Callable[P, R]", _around_coroutine(function, name))
    return _around_function(function, name)


def _around_function(function: Callable[P, R], name: str) -> Callable[P, R]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        conversation = current_conversation()
        if conversation is None:
            return function(*args, **kwargs)
        with conversation.tool(name):
            return function(*args, **kwargs)

    return call


def _around_coroutine(
    function: Callable[P, Coroutine[Any, Any, R]], name: str
) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        conversation = current_conversation()
        if conversation is None:
            return await function(*args, **kwargs)
        async with conversation.tool(name):
            return await function(*args, **kwargs)

    return call
