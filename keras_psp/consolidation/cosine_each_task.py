"""A learning rate that begins anew with each task."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_number


@keras.saving.register_keras_serializable(package="keras_psp")
class CosineEachTask(keras.optimizers.schedules.LearningRateSchedule):
    """Warms up and falls to 0 along a cosine, once for each task.

    ```
    rate(i) = learning_rate * (1 + (w - 1) * i / w) / w                 i < w
    rate(i) = learning_rate * (1 + cos(pi (i - w) / (steps - w))) / 2   else
    ```

    in step `i` of a task, where `w` is a tenth of its steps, and at least one. At the
    end of a task the gradients are small, and so are the averages that optimizers
    divide by. The first gradients of the next task are many times larger. Without a
    warm-up the first steps would be too, in directions that no consolidation protects.

    Args:
        learning_rate: Number, at least 0, the largest learning rate.
        steps: Positive integer, the training steps of each task.
        name: Name of the schedule.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> from keras_psp.consolidation import CosineEachTask
    >>> schedule = CosineEachTask(0.1, steps=20)
    >>> [round(float(schedule(step)), 3) for step in (0, 1, 2, 11, 20, 21)]
    [0.05, 0.075, 0.1, 0.05, 0.05, 0.075]

    Reference:
        [Loshchilov and Hutter, 2017](https://arxiv.org/abs/1608.03983), equation 5,
        and a warm-up before each restart.
    """

    def __init__(
        self, learning_rate: float, steps: int, name: str = "cosine_each_task"
    ) -> None:
        super().__init__()
        self.learning_rate = check_number("learning_rate", learning_rate)
        self.steps = check_integer("steps", steps)
        self.name = name
        warmup = max(1, self.steps // 10)
        self._of_task = keras.optimizers.schedules.CosineDecay(
            self.learning_rate / warmup,
            max(1, self.steps - warmup),
            warmup_target=self.learning_rate,
            warmup_steps=warmup,
        )

    def __call__(self, step: Any) -> Any:
        return self._of_task(ops.mod(step, self.steps))

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "steps": self.steps,
            "name": self.name,
        }
