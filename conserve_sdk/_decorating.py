"""A conversation around each call of a function, of whatever kind the function is.

A generator's conversation is current only while the generator's body runs, never in the code
that it yields to. No context token is kept across a `yield`: it could not be given back where a
generator is closed from another task.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from conserve_sdk._current import innermost

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")
S = TypeVar("S")


class Block(Protocol):
    """A conversation, as far as a function that it is put around needs it."""

    def __enter__(self) -> object: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...


def around(make: Callable[[], Block], function: Callable[P, R]) -> Callable[P, R]:
    """`function`, each call of it in a conversation that `make` gives."""
    if inspect.isasyncgenfunction(function):
        wrapped: Callable[..., Any] = _around_async_generator(make, function)
    elif inspect.isgeneratorfunction(function):
        wrapped = _around_generator(make, function)
    elif inspect.iscoroutinefunction(function):
        wrapped = _around_coroutine(make, function)
    else:
        wrapped = _around_function(make, function)
    return cast("Callable[P, R]", functools.wraps(function)(wrapped))


def _around_function(make: Callable[[], Block], function: Callable[P, R]) -> Callable[P, R]:
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with make():
            return function(*args, **kwargs)

    return call


def _around_coroutine(
    make: Callable[[], Block], function: Callable[P, Coroutine[Any, Any, R]]
) -> Callable[P, Coroutine[Any, Any, R]]:
    async def call(*args: P.args, **kwargs: P.kwargs) -> R:
        async with make():
            return await function(*args, **kwargs)

    return call


class _Stay:
    """A generator's stay in a conversation: left behind at each `yield`, and found again after it."""

    def __init__(self, conversation: Block) -> None:
        self._conversation = conversation
        self._inside = innermost.get()
        with self.running():
            conversation.__enter__()
            self._entry = innermost.get()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the generator's body runs; blocks that it opened itself are found again too."""
        outside = innermost.get()
        innermost.set(self._inside)
        try:
            yield
        finally:
            self._inside = innermost.get()
            innermost.set(outside)

    def end(self) -> None:
        self._inside = self._entry
        with self.running():
            self._conversation.__exit__(None, None, None)

    async def end_async(self) -> None:
        self._inside = self._entry
        with self.running():
            await self._conversation.__aexit__(None, None, None)


def _around_generator(
    make: Callable[[], Block], function: Callable[P, Generator[Y, S, R]]
) -> Callable[P, Generator[Y, S, R]]:
    def call(*args: P.args, **kwargs: P.kwargs) -> Generator[Y, S, R]:
        stay = _Stay(make())
        try:
            return (yield from _steps(stay, function(*args, **kwargs)))
        finally:
            stay.end()

    return call


def _steps(stay: _Stay, generator: Generator[Y, S, R]) -> Generator[Y, S, R]:
    resume: Callable[[], Y] = partial(next, generator)
    while True:
        with stay.running():
            try:
                item = resume()
            except StopIteration as stop:
                return cast(R, stop.value)
        try:
            sent = yield item
        except GeneratorExit:
            with stay.running():
                generator.close()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever is thrown in is the generator's
            resume = partial(generator.throw, error)
        else:
            resume = partial(generator.send, sent)


def _around_async_generator(
    make: Callable[[], Block], function: Callable[P, AsyncGenerator[Y, S]]
) -> Callable[P, AsyncGenerator[Y, S]]:
    async def call(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Y, S]:
        stay = _Stay(make())
        generator = function(*args, **kwargs)
        resume: Callable[[], Awaitable[Y]] = generator.__anext__
        try:
            while True:
                with stay.running():
                    try:
                        item = await resume()
                    except StopAsyncIteration:
                        return
                try:
                    sent = yield item
                except GeneratorExit:
                    with stay.running():
                        await generator.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - whatever is thrown in is the generator's
                    resume = partial(generator.athrow, error)
                else:
                    resume = partial(generator.asend, sent)
        finally:
            await stay.end_async()

    return call
