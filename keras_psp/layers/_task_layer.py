"""What every layer that takes a task beside its inputs has in common."""

from keras_psp._core.task import check_task


class TaskLayer:
    """Mixin of the layers that are called with a task beside their inputs.

    It stands before a Keras layer among the bases, and knows `num_tasks`.
    """

    def __call__(self, inputs, task, **kwargs):
        task = check_task(task, self.num_tasks)
        return super().__call__(inputs, task=task, **kwargs)
