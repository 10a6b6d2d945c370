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
        self._handler: Any = None
        self._interrupted = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        # Only the main thread gets signals. Their handler may not be Python's.
        if threading.current_thread() is threading.main_thread():
            self._handler = signal.getsignal(signal.SIGINT)
            if self._handler is not None:
                signal.signal(signal.SIGINT, self._interrupt)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._restore()
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def on_train_end(self, logs: Any = None) -> None:
        self._restore()

    def _interrupt(self, number: int, frame: Any) -> None:
        self._interrupted = True
        self._restore()

    def _restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None
