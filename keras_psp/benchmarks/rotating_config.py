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
    """One run on images that turn round and round: a perceptron learns arc after arc.

    A task is an arc of the circle, of as many angles as it has steps: images turn by
    `360 / (tasks * steps)` degrees a step. Every field is an option of `keras-psp run
    rotating`.

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

    tasks: int = option(10, "how many arcs the circle is cut into")
    steps: int = option(100, "training steps of each arc, which are its angles")
    cycles: int = option(10, "how often the images turn all the way round")
    assignment: str = option("window", "which contexts the arcs have", ASSIGNMENTS)

    def __post_init__(self):
        super().__post_init__()
        if self.cycles > 1 and self.separate:
            raise ValueError(
                "Fresh networks learn each task once. Received: separate and "
                f"cycles={self.cycles}"
            )

    @property
    def num_contexts(self) -> int:
        """How many tasks the model holds."""
        by_step = self.assignment in ("step", "random")
        return self.tasks * self.steps if by_step else self.tasks

    @property
    def num_visits(self) -> int:
        """How many times a task is trained, all tasks and cycles together."""
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
