"""The config of the rotating experiment."""

import dataclasses
from typing import ClassVar

from keras_psp.benchmarks.config import option
from keras_psp.benchmarks.permuted_config import PermutedConfig
from keras_psp.datasets import TaskSequence
from keras_psp.datasets import rotating
from keras_psp.datasets.rotating import ASSIGNMENTS


@dataclasses.dataclass(frozen=True)
class RotatingConfig(PermutedConfig):
    """One run of the rotating experiment: a perceptron learns images that turn.

    A task is an arc of the circle. Images turn by `360 / (tasks * steps)` degrees per
    training step, so a task has as many angles as steps. Every field is an option of
    `keras-psp run rotating`.

    Raises:
        TypeError, ValueError: A field is not what its help says.

    Example:

    >>> from keras_psp.benchmarks import RotatingConfig
    >>> RotatingConfig(cycles=3).num_visits
    30
    """

    experiment: ClassVar[str] = "rotating"
    published: ClassVar[dict] = {
        **PermutedConfig.published,
        **{"tasks": 10, "steps": 100, "cycles": 50},
    }
    length: ClassVar[str] = "cycles"
    protocols: ClassVar[tuple[str, ...]] = ()

    tasks: int = option(10, "number of arcs that make up the circle")
    steps: int = option(100, "training steps per arc, each at its own angle")
    cycles: int = option(10, "number of full turns of the images")
    assignment: str = option("window", "which contexts angles have", ASSIGNMENTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cycles > 1 and self.separate:
            raise ValueError(
                "With `separate`, each task is learned once: `cycles` must be 1. "
                f"Received: separate=True, cycles={self.cycles}"
            )

    @property
    def num_contexts(self) -> int:
        """Number of tasks that the model holds."""
        by_step = self.assignment in ("step", "random")
        return self.tasks * self.steps if by_step else self.tasks

    @property
    def num_visits(self) -> int:
        """Number of visits to tasks in a run, over all cycles."""
        return self.tasks * self.cycles

    def build_tasks(self) -> TaskSequence:
        """Returns the tasks to learn."""
        return rotating(
            self.source,
            period=self.tasks * self.steps,
            context_every=self.steps,
            cycles=self.cycles,
            assignment=self.assignment,
            seed=self.seed,
        )
