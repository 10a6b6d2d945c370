"""What a compiled model measures, task by task."""

import sys
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_integer
from keras_psp._core.data import read_examples
from keras_psp._core.figures import COLORS
from keras_psp._core.figures import new_figure
from keras_psp._core.table import Table
from keras_psp._reading.text import as_arrays
from keras_psp._reading.text import is_text
from keras_psp.models._takes_tasks import TakesTasks


@dataclass(frozen=True)
class Evaluation(Table):
    """A loss and metrics for each task; as text, and in a notebook, a table.

    Attributes:
        rows: Tuple of a dictionary for each task: `"task"`, its name or index;
            `"examples"`, their number; `"loss"`, and each compiled metric.
    """

    _labels = ("task",)

    def plot(self, path: Any = None) -> Any:
        """Draws each metric over the tasks.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        names = [name for name in self.rows[0] if name not in ("task", "examples")]
        tasks = [str(row["task"]) for row in self.rows]
        width = max(4.0, 1.5 + 0.35 * len(tasks))
        figure = new_figure(width, 2.2 * len(names))
        axes = figure.subplots(len(names), squeeze=False, sharex=True)[:, 0]
        for i, (axis, name) in enumerate(zip(axes, names, strict=True)):
            values = [row[name] for row in self.rows]
            axis.bar(tasks, values, color=COLORS[i % len(COLORS)])
            axis.set_ylabel(name)
            axis.grid(alpha=0.3, axis="y")
        axes[-1].set_xlabel("task")
        axes[-1].tick_params("x", rotation=90 if len(tasks) > 12 else 0)
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


def evaluate(
    model: Any,
    data: Mapping[int | str, Any] | Sequence[Any],
    batch_size: int = 32,
    verbose: bool = False,
) -> Evaluation:
    """Evaluates a compiled model on the examples of each task.

    Args:
        model: `keras_psp.models.TaskModel`, or a converted model of a class of its own,
            compiled.
        data: Dictionary of labelled examples by task, index or name: a tuple `(x, y)`
            or `(x, y, sample_weight)` of arrays, or batches of these, as `fit()` takes
            them. `x` needs no task. Or a list of these, in the order of the tasks.
        batch_size: Positive integer.
        verbose: Boolean, whether to show a progress bar.

    Returns:
        An `Evaluation`, with a row for each task that there are data of.

    Raises:
        TypeError: `model` takes no task; `data` is neither a dictionary nor a list.
        ValueError: The model is not compiled; there are no data, or none of a task;
            there is no such task; examples have no labels, or do not fit the model.

    Example:

    >>> import keras, keras_psp
    >>> model = keras_psp.models.mlp((4,), 3, num_tasks=["paris", "tokyo"])
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(loss=loss, metrics=["accuracy"])
    >>> x, y = keras.ops.ones((6, 4)), keras.ops.zeros(6)
    >>> found = keras_psp.evaluation.evaluate(model, {"paris": (x, y), "tokyo": (x, y)})
    >>> [(row["task"], row["examples"]) for row in found.rows]
    [('paris', 6), ('tokyo', 6)]
    >>> sorted(found.rows[0])
    ['accuracy', 'examples', 'loss', 'task']
    """
    if not isinstance(model, TakesTasks):
        raise TypeError(
            "`model` must be a `TaskModel`, which takes a task. Received: "
            f"model={model!r} (of type {type(model).__name__})"
        )
    if not model.compiled:
        raise ValueError(
            "`model` must be compiled, with the loss and the metrics to measure. "
            f"Received: {model.name!r}, which is not"
        )
    batch_size = check_integer("batch_size", batch_size)
    if isinstance(data, (list, tuple)):
        data = dict(enumerate(data))
    if not isinstance(data, Mapping):
        raise TypeError(
            "`data` must be a dictionary of examples by task, or a list of them. "
            f"Received: data of type {type(data).__name__}"
        )
    if not data:
        raise ValueError(f"`data` must hold a task's examples. Received: data={data!r}")
    tasks = [model.task_index(task) for task in data]
    names = model.task_names
    examples = [read_task(task, each) for task, each in data.items()]
    bar = keras.utils.Progbar(len(tasks), verbose=int(verbose))
    rows = []
    for i, (task, (x, y, weight)) in enumerate(zip(tasks, examples, strict=True)):
        number = len(keras.tree.flatten(y)[0])
        found = model.evaluate(
            _with_task(model, x, np.full(number, task, "int32")),
            y,
            sample_weight=weight,
            batch_size=batch_size,
            return_dict=True,
            verbose=0,
        )
        what = {"task": task if names is None else names[task], "examples": number}
        rows.append(what | {name: float(value) for name, value in found.items()})
        bar.update(i + 1)
    return Evaluation(tuple(rows))


def read_task(task: int | str, data: Any) -> tuple[Any, Any, Any]:
    """Returns a task's `(x, y, sample_weight)` as arrays; weights may be `None`."""
    if isinstance(data, tuple) and is_text(data[:1]):
        data = (as_arrays(data[0]), *data[1:])
    x, y, weight = read_examples(data, sys.maxsize, name=f"data[{task!r}]")
    if y is None:
        raise ValueError(
            f"The examples of each task must have labels. Received: {task!r}"
        )
    return x, y, weight


def _with_task(model, x, task):
    """Returns inputs by name, with the task beside them."""
    if isinstance(x, dict):
        return {**x, "task": task}
    inputs = getattr(model, "input", None)
    is_raw = getattr(model, "preprocessor", None) is not None
    if is_raw or not isinstance(inputs, dict):  # Of a model of a class of its own.
        return {"inputs": x, "task": task}
    names = [name for name in inputs if name != "task"]
    values = x if isinstance(x, (list, tuple)) else [x]
    if len(values) != len(names):
        raise ValueError(
            f"The examples must hold the inputs {names}. Received: {len(values)} arrays"
        )
    return {**dict(zip(names, values, strict=True)), "task": task}
