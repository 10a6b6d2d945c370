"""The callback that tells a consolidation when a task ends."""

from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from keras_psp.datasets import TaskSequence


class EndTask(keras.callbacks.Callback):
    """Calls the optimizer's `end_task()` with the task's data at the end of each.

    For a `fit()` in which an epoch is a visit to a task, by a model whose optimizer is
    a `keras_psp.consolidation.Consolidation`.

    Args:
        tasks: The `TaskSequence` that is learned.

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
        self.tasks = tasks

    def on_epoch_end(self, epoch, logs=None):
        data = self.tasks.train(epoch % self.tasks.num_tasks, batch_size=128)
        self.model.optimizer.end_task(self.model, data)
