"""The callback that lets an interrupted `fit()` finish its step."""

import signal
import threading
from typing import Any

import keras


class WholeSteps(keras.callbacks.Callback):
    """Holds an interrupt (`Ctrl-C`) back until the training step under way is done.

    A step that is cut short leaves some weights trained and others not; on JAX it
    leaves none at all. A second interrupt comes through at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handler: Any = None  # Of the interrupts that are held back.
        self._interrupted: Any = None  # The handler of the one that came.

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Only the main thread gets signals. A handler that is not Python's, or none
        # (a process in the background ignores them), stays as it is.
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.restore()
        handler, self._interrupted = self._interrupted, None
        if handler is not None:
            handler(signal.SIGINT, None)

    def on_train_end(self, logs: Any = None) -> None:
        self.restore()

    def restore(self) -> None:
        """Lets interrupts through again: a step that fails has no end."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _interrupt(self, number: int, frame: Any) -> None:
        self._interrupted = self._handler
        self.restore()
