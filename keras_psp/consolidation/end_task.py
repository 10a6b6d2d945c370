"""The callback that tells a consolidation when a task ends."""

from typing import TYPE_CHECKING
from typing import Any

import keras

from keras_psp.optimizers._around import find_in_chain

if TYPE_CHECKING:
    from keras_psp.datasets import TaskSequence


class EndTask(keras.callbacks.Callback):
    """Calls the optimizer's `end_task()` with a task's data when the task ends.

    Use it in a `fit()` in which an epoch is a visit to a task. The model's optimizer
    must have a method `end_task()`: a `keras_psp.consolidation.Consolidation`, an
    optimizer of your own, or either of them inside another optimizer, such as a
    `keras.optimizers.LossScaleOptimizer`.

    Args:
        tasks: The `TaskSequence` that is learned.

    Raises:
        TypeError: `tasks` is no `TaskSequence`.
        ValueError: When `fit()` begins, if no optimizer has `end_task()`.

    Example:

    >>> import keras, keras_psp
    >>> from keras_psp import consolidation, datasets
    >>> from keras_psp.consolidation import EndTask
    >>> tasks = datasets.permuted("digits", num_tasks=2)
    >>> model = keras_psp.models.mlp((8, 8, 1), 10, num_tasks=2, units=16, depth=1)
    >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> model.compile(consolidation.EWC("adam"), loss)
    >>> history = model.fit(
    ...     tasks.stream(steps_per_task=3, batch_size=32),
    ...     epochs=2,
    ...     steps_per_epoch=3,
    ...     callbacks=[EndTask(tasks)],
    ...     shuffle=False,
    ...     verbose=0,
    ... )
    """

    def __init__(self, tasks: "TaskSequence"):
        super().__init__()
        if not hasattr(tasks, "train"):
            raise TypeError(
                "`tasks` must be a `keras_psp.datasets.TaskSequence`. "
                f"Received: tasks={tasks!r}"
            )
        self.tasks = tasks

    def on_train_begin(self, logs: dict | None = None) -> None:
        if find_consolidation(self.model.optimizer) is None:
            raise ValueError(
                "`EndTask` needs an optimizer that has `end_task()`. Received: "
                f"{self.model.optimizer!r}"
            )

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        data = self.tasks.train(epoch % self.tasks.num_tasks, batch_size=128)
        find_consolidation(self.model.optimizer).end_task(self.model, data)


def find_consolidation(optimizer: Any) -> Any:
    """Returns the optimizer, or the one inside it, that has `end_task()`, or `None`."""
    return find_in_chain(optimizer, lambda each: hasattr(each, "end_task"))
