"""Coroutine tests without a plugin: `async def test_...` simply works.

Here live the hooks that run them. Theory: each test gets an event loop of its own, made by the `loop_factory` fixture
if the test has one (`@pytest.mark.both_loops` gives it asyncio's and uvloop's in turn). A task that outlives its test
is a leak; it has a while to end by itself, because a cancelled task needs a few turns of the loop.
"""

import asyncio
import functools
import importlib.util
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from pgconcert.testing import Snapshot, eventually_async

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

_GRACE: Final = 10.0


def _uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


_LOOPS: Final[dict[str, LoopFactory]] = {"asyncio": asyncio.SelectorEventLoop, "uvloop": _uvloop}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: runs on asyncio's event loop and on uvloop's")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.definition.get_closest_marker("both_loops"):
        if "loop_factory" not in metafunc.fixturenames:
            metafunc.fixturenames.append("loop_factory")
        metafunc.parametrize("loop_factory", list(_LOOPS), indirect=True)


@pytest.fixture
def loop_factory(request: pytest.FixtureRequest) -> LoopFactory:
    """What makes the event loop of this test: asyncio's, or what `both_loops` says."""
    name = getattr(request, "param", "asyncio")
    if name == "uvloop" and not importlib.util.find_spec("uvloop"):
        message = "needs uvloop: pip install uvloop"
        pytest.fail(message) if request.config.getoption("--require-all") else pytest.skip(message)
    return _LOOPS[name]


def run(main: Coroutine[Any, Any, None], factory: LoopFactory = asyncio.SelectorEventLoop) -> None:
    """Run a coroutine to its end on a new loop; AssertionError if it leaves tasks behind."""

    async def watched() -> None:
        before = Snapshot.take()
        await main
        left: list[str] = []

        def no_task_left() -> bool:
            left[:] = [line for line in before.leaks() if line.startswith("task ")]
            return not left

        try:
            await eventually_async(no_task_left, _GRACE)
        except AssertionError:
            raise AssertionError(f"tasks left behind {_GRACE:g} s after the test:\n  " + "\n  ".join(left)) from None

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(watched())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    factory: Any = pyfuncitem.funcargs.get("loop_factory", asyncio.SelectorEventLoop)
    test = pyfuncitem.obj
    if hasattr(test, "hypothesis"):
        # Hypothesis calls the inner function once for every example; each of them gets its own loop.
        inner = test.hypothesis.inner_test
        if inspect.iscoroutinefunction(inner):
            test.hypothesis.inner_test = functools.wraps(inner)(
                lambda *args, **kwargs: run(inner(*args, **kwargs), factory)
            )
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    run(test(**{name: pyfuncitem.funcargs[name] for name in names}), factory)
    return True
