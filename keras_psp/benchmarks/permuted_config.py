"""The config of the permuting experiment."""

import dataclasses
from collections import ChainMap
from typing import Any
from typing import ClassVar

from keras_psp.benchmarks._parts import MODELS
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.config import option
from keras_psp.datasets import SOURCES
from keras_psp.datasets import TaskSequence
from keras_psp.datasets import permuted
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.models._seeded_layers import HEADS


@dataclasses.dataclass(frozen=True)
class PermutedConfig(Config):
    """One run of the permuting experiment: a perceptron learns permuted images.

    Every field is an option of `keras-psp run permuted`.

    Raises:
        TypeError, ValueError: A field is not what its help says.

    Example:

    >>> from keras_psp.benchmarks import PermutedConfig
    >>> PermutedConfig(source="digits", tasks=5).experiment
    'permuted'
    """

    experiment: ClassVar[str] = "permuted"
    published: ClassVar[dict] = {
        **{"source": "mnist", "tasks": 50, "steps": 1000, "batch_size": 128},
        **{"units": 256, "depth": 3, "optimizer": "rmsprop", "learning_rate": 1e-4},
    }
    protocols: ClassVar[tuple[str, ...]] = ("gpm", "ritter", "dendrites")

    source: str = option("digits", "the images", SOURCES)
    model: str = option("mlp", "the network", ChainMap[str, Any]({"mlp": mlp}, MODELS))
    units: int = option(256, "width of the hidden layers")
    depth: int = option(3, "number of hidden layers")
    head: str = option("superposed", "last layer of the network", HEADS)
    complex_valued: bool = option(
        False, "use a network of complex numbers, as in the paper; twice the weights"
    )

    def build_tasks(self) -> TaskSequence:
        """Returns the tasks to learn."""
        return permuted(self.source, self.tasks, seed=self.seed)

    def build_model(self, tasks: TaskSequence) -> TaskModel:
        """Returns the model that learns them, not yet compiled."""
        if self.model in MODELS:
            return MODELS[self.model](tasks, self)
        return mlp(
            tasks.image_shape,
            tasks.num_classes,
            tasks.num_contexts,
            units=self.units,
            depth=self.depth,
            context=self.context,
            learnable=self.learnable,
            head=self.head,
            complex_valued=self.complex_valued,
            soft=tasks.soft,
            seed=self.seed,
            rank=self.rank or None,
        )

    @property
    def has_own_weights(self) -> bool:
        """Whether each task has weights of its own that are trained."""
        return super().has_own_weights or self.head == "multi"
