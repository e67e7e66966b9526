"""Stopping a run politely."""

import os
import signal
from types import FrameType

from jax.experimental.multihost_utils import reached_preemption_sync_point

from jaxdiff.training import hosts


class Interrupt:
    """While entered, SIGTERM and SIGINT are noted instead of ending the program; a second one ends it at once.

    Of many processes, a signal to one is told to all: JAX's preemption service, which hears SIGTERM, finds a step that
    none of them has begun. Every process must ask at every step.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> "Interrupt":
        # Of many processes, SIGTERM already is the service's.
        numbers = (signal.SIGINT,) if hosts.is_many() else (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reached(self, step: int) -> signal.Signals | None:
        """The signal, where this is the step to stop at: the same on all processes. Waits for nobody."""
        if hosts.is_many():
            return signal.SIGTERM if reached_preemption_sync_point(step) else None
        return self._signal

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        signal.signal(number, self._before[number])
        if hosts.is_many():
            os.kill(os.getpid(), signal.SIGTERM)
