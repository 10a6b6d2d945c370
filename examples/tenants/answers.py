"""Answers for many tenants, which are the tasks of one model.

It needs Keras and keras-psp alone; `app.py` puts it behind HTTP.
"""

import threading
import unicodedata
from typing import Any

import keras
import numpy as np

import keras_psp


class TenantError(Exception):
    """A request that cannot be answered; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class FixedTenants:
    """The tasks of a model as tenants, by their names, which cannot be changed.

    It is for a model that holds all tenants in little memory, as `superpose()` makes
    it. `Tenants` are those that come and go.

    Args:
        model: Keras model with one input beside the task, one output and named tasks.
        max_batch: Positive integer, how many examples are computed at once. Smaller
            batches are padded to a quarter of it, a sixteenth, and so on; the model is
            compiled for these sizes beforehand.
        max_bytes: Positive integer, the largest body of an upload.
    """

    def __init__(
        self, model: keras.Model, max_batch: int = 64, max_bytes: int = 16 << 20
    ) -> None:
        if not getattr(model, "task_names", None):
            raise ValueError(
                "The model must have tasks with names, or a folder of tenants must be "
                f"given. Received: {model.name!r}"
            )
        names = model.task_names
        self._set_model(model, max_batch, max_bytes)
        self._slots = {check_name(names[k]): k for k in model.present_tasks}
        self._compile()

    def _set_model(self, model: Any, max_batch: int, max_bytes: int) -> None:
        self._model, self.max_batch, self.max_bytes = model, max_batch, max_bytes
        self._sizes = [max_batch >> i for i in range(0, max_batch.bit_length(), 2)]
        self._sizes = sorted({1, *self._sizes})
        self._slots: dict[str, int] = {}
        self._lock = threading.Lock()
        (self._input,) = (name for name in model.input if name != "task")
        self._shape = tuple(model.input[self._input].shape[1:])

    @property
    def card(self) -> dict:
        """What a client must know: shapes, numbers and versions."""
        return {
            "input": list(self._shape),
            "output": list(self._model.output_shape[1:]),
            "tenants": len(self._slots),
            "room": self._model.num_tasks,
            "keras": keras.__version__,
            "keras_psp": keras_psp.__version__,
        }

    @property
    def names(self) -> list[str]:
        """The names of the tenants that there are."""
        with self._lock:
            self._refresh()
            return sorted(self._slots)

    def predict(self, name: str, x: np.ndarray) -> np.ndarray:
        """Returns a tenant's answers to examples, or raises a `TenantError`."""
        (answer,) = self.predict_many([(name, x)])
        if isinstance(answer, TenantError):
            raise answer
        return answer

    def predict_many(self, requests: list[tuple[str, np.ndarray]]) -> list:
        """Answers requests of many tenants as one batch.

        Args:
            requests: List of a name, and examples of shape `(n, *input)`.

        Returns:
            List of an array, or a `TenantError`, for each request.
        """
        checked = [self._check(name, x) for name, x in requests]
        with self._lock:
            self._refresh()
            answers: list = []
            for each in checked:
                if not isinstance(each, TenantError) and each[0] not in self._slots:
                    each = TenantError(404, f"there is no tenant {each[0]!r}")
                answers.append(each)
            there = [each for each in answers if not isinstance(each, TenantError)]
            if not there:
                return answers
            x = np.concatenate([x for _, x in there])
            slots = [self._slots[name] for name, _ in there]
            task = np.repeat(slots, [len(x) for _, x in there]).astype("int32")
            outputs = self._compute(x, task)
        shares = iter(np.split(outputs, np.cumsum([len(x) for _, x in there])[:-1]))
        for i, each in enumerate(answers):
            if not isinstance(each, TenantError):
                answers[i] = next(shares)
                if not np.isfinite(answers[i]).all():
                    message = "the model's answers to these inputs are not finite"
                    answers[i] = TenantError(422, message)
        return answers

    def put(self, name: str, body: bytes, architecture: str | None = None) -> int:
        """Raises a `TenantError` 405, as what else would change a tenant."""
        raise TenantError(405, "the tenants of this model cannot be changed")

    def delete(self, name: str) -> int:
        """Raises a `TenantError` 405; see `put()`."""
        return self.put(name, b"")

    def rollback(self, name: str) -> int:
        """Raises a `TenantError` 405; see `put()`."""
        return self.put(name, b"")

    def _refresh(self) -> None:
        """Takes over what has changed; the lock is held."""

    def _compile(self) -> None:
        """Compiles the model for every size of a batch."""
        some = next(iter(self._slots.values()), 0)
        for size in self._sizes:
            x = np.zeros((size, *self._shape), "float32")
            self._compute(x, np.full(size, some))

    def _compute(self, x: np.ndarray, task: np.ndarray) -> np.ndarray:
        outputs = []
        for i in range(0, len(x), self.max_batch):
            share = slice(i, i + self.max_batch)
            number = len(task[share])
            rest = min(each for each in self._sizes if each >= number) - number
            pads = [(0, rest)] + [(0, 0)] * len(self._shape)
            given = {
                self._input: np.pad(x[share], pads),
                # Of the last one: there need not be a task 0.
                "task": np.pad(task[share], (0, rest), mode="edge").astype("int32"),
            }
            outputs.append(self._model.predict_on_batch(given)[:number])
        return np.concatenate(outputs)

    def _check(self, name, x):
        try:
            name = check_name(name)
        except TenantError as error:
            return error
        x = np.asarray(x)
        if x.dtype.kind not in "iuf" or x.shape[1:] != self._shape or not len(x):
            return TenantError(
                422,
                f"the inputs must be numbers of shape (n, {self._shape}), at least one "
                f"example; received shape {x.shape} of dtype {x.dtype}",
            )
        with np.errstate(over="ignore"):
            x = x.astype("float32")
        if not np.isfinite(x).all():
            return TenantError(422, "the inputs must be finite")
        return name, x


def check_name(name: str) -> str:
    """Returns a tenant's name in one form, or raises a `TenantError`."""
    name = unicodedata.normalize("NFC", name)
    fits = 0 < len(name.encode("utf-8", "replace")) <= 200 and name.isprintable()
    if not fits or set(name) & set("/\\\ufffd"):  # The last: it was no UTF-8.
        raise TenantError(
            422, "a name must have 1 to 200 bytes that can be printed, without slashes"
        )
    return name
