"""The base of the families made of signs, and how signs are stored."""

from typing import Any

import numpy as np
from keras import ops

from keras_psp._core.backend import take_rows
from keras_psp._core.task import align
from keras_psp._core.task_index import is_soft
from keras_psp.contexts._sign_hash import hash_words
from keras_psp.contexts._sign_hash import unpack
from keras_psp.contexts.context import Context

STORAGE = ("bytes", "bits", "seed")


class SignContext(Context):
    """Base class of the contexts that are made of signs.

    Args:
        num_tasks: Positive integer, the number of tasks.
        seed: Non-negative integer. Equal seeds give equal signs, on every backend and
            in every storage.
        learnable: Boolean. If `True` the signs are the initial values of real numbers
            that are trained.
        storage: `"bytes"`, a byte for each sign; `"bits"`, a bit; or `"seed"`,
            nothing: the signs are computed anew, where they are needed, by an
            integer hash of the seed, the task and the position.
        **kwargs: `keras.layers.Layer` arguments.
    """

    can_learn = True

    def __init__(
        self,
        num_tasks: int,
        seed: int = 0,
        learnable: bool = False,
        storage: str = "bytes",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_tasks, seed=seed, learnable=learnable, **kwargs)
        if storage not in STORAGE:
            raise ValueError(
                f"`storage` must be one of {STORAGE}. Received: storage={storage!r}"
            )
        if learnable and storage != "bytes":
            raise ValueError(
                "Learned signs are real numbers, and cannot be stored as "
                f"{storage}. Received: learnable=True, storage={storage!r}"
            )
        self.storage = storage

    def draw(self, tasks: Any, width: int) -> Any:
        self.num_signs = self.count_signs(width)
        if self.storage == "seed":
            return None
        bits = self.draw_bits(tasks, width)
        if self.storage == "bits":
            return np.packbits(bits.astype("uint8"), axis=-1, bitorder="little")
        return (2 * bits - 1).astype("int8")

    def _take_seed(self, seed):
        if self.storage == "seed" and seed != self.seed:
            raise ValueError(
                "The file's signs are computed from another seed: build the model with "
                f"it. Received: a file of seed={seed} for a context of "
                f"seed={self.seed}"
            )
        super()._take_seed(seed)

    def count_signs(self, width: int) -> int:
        """Returns how many signs a task has for `width` inputs."""
        return width

    def draw_bits(self, tasks: Any, width: int) -> np.ndarray:
        """Draws an array of 0 and 1, of shape `(len(tasks), count_signs(width))`."""
        tasks = np.array(tasks, dtype="int32")[:, np.newaxis]
        return self._hash(np, tasks)

    def signs(self, index: Any, inputs: Any) -> Any:
        """Looks up signs to multiply `inputs` with.

        Args:
            index: Integer, int32 tensor of shape `()` or `(batch,)`, or float weights
                of shape `(batch, num_tasks)` to mix the signs with.
            inputs: Tensor of shape `(batch, ..., M)`.

        Returns:
            Tensor of the inputs' dtype that broadcasts against them, but for the last
            dimension, of `count_signs(M)`.
        """
        # The batch's size may be unknown, or a symbol (when JAX exports).
        batch = inputs.shape[0] if isinstance(inputs.shape[0], int) else 128
        if is_soft(index):
            weights = ops.cast(index, inputs.dtype)
            signs = ops.matmul(weights, self._look_up(None, inputs.dtype))
        elif len(getattr(index, "shape", ())) == 1 and self.num_tasks <= batch:
            # To unpack each task's signs once is less than each example's.
            signs = take_rows(self._look_up(None, inputs.dtype), index)
        else:
            signs = self._look_up(index, inputs.dtype)
        return align(signs, inputs)

    @property
    def numbers_per_task(self) -> int:
        self._check_built()
        return 0 if self.storage == "seed" else self.num_signs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "storage": self.storage}

    def _look_up(self, index, dtype):
        """The signs of tasks, or of all tasks if `index` is `None`."""
        if self.storage == "seed":
            bits = self._hash(ops, ops.expand_dims(self.numbers_of(index), -1))
            return ops.cast(2 * bits - 1, dtype)
        rows = self.contexts if index is None else self.rows_of(index)
        if self.storage == "bytes":
            return ops.cast(rows, dtype)
        bits = unpack(ops, ops.cast(rows, "int32"), 8, self.num_signs)
        return ops.cast(2 * bits - 1, dtype)

    def _hash(self, xp, tasks):
        words = hash_words(xp, self.seed, tasks, -(-self.num_signs // 32))
        return unpack(xp, words, 32, self.num_signs)
