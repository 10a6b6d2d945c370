"""What the builders of models have in common: layers drawn from one seed."""

from typing import Any

import keras
import numpy as np

from keras_psp.contexts.families import series
from keras_psp.layers import PSPComplexDense
from keras_psp.layers import PSPDense
from keras_psp.layers import TaskDense

HEADS = ("superposed", "multi", "shared")


class SeededLayers:
    """Contexts and initial kernels of one model, equal for equal seeds everywhere.

    Args:
        context: Name of a context family, or a `Context` that shows what each layer's
            own is to be, but for its seed; or `None`, if none will be asked for.
        num_tasks: Positive integer, the number of tasks.
        num_contexts: Positive integer, at most how many contexts will be asked for.
        learnable: Boolean, with a family's name: whether the contexts are trained.
        seed: Non-negative integer.
    """

    def __init__(
        self,
        context: Any,
        num_tasks: int,
        num_contexts: int,
        learnable: bool,
        seed: int,
    ) -> None:
        self.num_tasks = num_tasks
        self._contexts = []
        if context is not None:
            self._contexts = series(context, num_tasks, num_contexts, learnable, seed)
        self._rng = np.random.default_rng(seed)

    def context(self) -> Any:
        """Returns a context of its own for one more layer."""
        return self._contexts.pop()

    def dense(
        self,
        x: Any,
        task: Any,
        units: int,
        name: str,
        kind: str = "superposed",
        use_bias: bool = False,
        rank: int | None = None,
    ) -> Any:
        """Adds a dense layer with kernels from N(0, 2 / (in + out)).

        Args:
            x: Symbolic inputs.
            task: Symbolic task.
            units: Positive integer, the number of outputs.
            name: Name of the layer.
            kind: One of `HEADS`, or `"complex"` for a superposed layer of complex
                numbers.
            use_bias: Boolean.
            rank: Positive integer, of the kernel that each task has of its own in a
                superposed layer; or `None`.

        Returns:
            Symbolic outputs.
        """
        options: dict[str, Any] = {"use_bias": use_bias, "name": name}
        if kind == "shared":
            layer = keras.layers.Dense(units, **options)
            outputs = layer(x)
        elif kind == "multi":
            layer = TaskDense(units, self.num_tasks, **options)
            outputs = layer(x, task)
        else:
            superposed = PSPComplexDense if kind == "complex" else PSPDense
            if rank is not None:
                options["rank"] = rank
            layer = superposed(units, context=self.context(), **options)
            outputs = layer(x, task)
        if kind == "complex":
            shape = layer.kernel_real.shape
            size = self._rng.normal(scale=(2 / sum(shape)) ** 0.5, size=shape)
            angle = self._rng.uniform(-np.pi, np.pi, size=shape)
            layer.kernel_real.assign(size * np.cos(angle))
            layer.kernel_imaginary.assign(size * np.sin(angle))
        else:
            shape = (x.shape[-1], units)
            self.draw(layer.kernel, shape, variance=2 / sum(shape))
        return outputs

    def draw(self, kernel: Any, shape: Any, variance: float) -> Any:
        """Assigns normal numbers of NumPy's to a kernel, or alike to each task's."""
        values = self._rng.normal(scale=variance**0.5, size=shape)
        kernel.assign(np.broadcast_to(values, kernel.shape))
