"""An exception at every instant at which a signal handler could raise one.

Here lives the injector. Theory: CPython looks for signals at few places: when a Python function begins or resumes,
after a call of something written in C, and when a loop jumps back. The injector walks through a piece of work opcode by
opcode, counts those places in the code of the library, and raises at the n-th; so all of them can be tried in turn.
Calls of Python functions do not look for signals at their return, so those are left out.
"""

from __future__ import annotations

import contextlib
import dis
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

import pgconcert

_HOME: Final = str(Path(pgconcert.__file__).parent)
_BEGIN: Final = "RESUME"
_LOOKS: Final = {_BEGIN, "CALL", "CALL_FUNCTION_EX", "CALL_KW", "JUMP_BACKWARD"}

_opcodes: dict[CodeType, dict[int, str]] = {}


class Injector:
    """Raises KeyboardInterrupt at the n-th place of a thread that looks for signals, if it is reached."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._last: dict[FrameType, str] = {}
        self.where: str | None = None
        """The function in which it was raised, and how it had got there: the opcode that looked."""

    def _called(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        caller = frame.f_back
        if caller in self._last:
            self._last[caller] = "a call of a Python function"
        if not frame.f_code.co_filename.startswith(_HOME):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
        if event == "opcode":
            code = frame.f_code
            last = self._last.get(frame, _BEGIN)
            if code not in _opcodes:
                _opcodes[code] = {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}
            self._last[frame] = _opcodes[code][frame.f_lasti]
            if last in _LOOKS:
                self._left -= 1
                if not self._left:
                    self.where = f"{code.co_qualname}, {last}"
                    raise KeyboardInterrupt
        return self._stepped

    def run(self, work: Callable[[], object]) -> None:
        """Do it; the interrupt ends it.

        Nothing is collected meanwhile: the interpreter cannot bear that a finaliser which the collector calls is
        interrupted in this way (a real signal waits until it has ended)."""
        before, collects = sys.gettrace(), gc.isenabled()
        gc.disable()
        try:
            with contextlib.suppress(KeyboardInterrupt):
                sys.settrace(self._called)
                try:
                    work()
                finally:
                    sys.settrace(before)
        finally:
            if collects:
                gc.enable()
        self._last.clear()  # it keeps frames, and they keep what was dropped


def everywhere(work: Callable[[], object]) -> Iterator[str]:
    """Do it again and again, interrupted at the first place, the second, and so on; tell each time where that was.

    It ends with the first time that nothing was left to interrupt.
    """
    for at in range(1, 10_000):
        injector = Injector(at)
        injector.run(work)
        if injector.where is None:
            return
        yield injector.where
    raise AssertionError("this work has no end")
