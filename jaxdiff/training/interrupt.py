"""Stopping a run politely."""

import signal
from types import FrameType


class Interrupt:
    """While entered, SIGTERM and SIGINT set `signal` instead of ending the program; a second one ends it at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> "Interrupt":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, self._before[number])
