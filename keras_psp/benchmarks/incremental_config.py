"""The config of the incremental experiment."""

import dataclasses
from collections import ChainMap
from typing import Any
from typing import ClassVar

from keras_psp.benchmarks._parts import MODELS
from keras_psp.benchmarks.config import OPTIMIZERS
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.config import option
from keras_psp.datasets import SOURCES
from keras_psp.datasets import TaskSequence
from keras_psp.datasets import incremental
from keras_psp.layers._superposed_conv import CONTEXT_OVER
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.models import resnet18
from keras_psp.models._seeded_layers import HEADS
from keras_psp.models.resnet18 import NORMS
from keras_psp.models.resnet18 import STEMS


@dataclasses.dataclass(frozen=True)
class IncrementalConfig(Config):
    """One run of the incremental experiment: a network learns new classes per task.

    Every field is an option of `keras-psp run incremental`.

    Raises:
        TypeError, ValueError: A field is not what its help says.

    Example:

    >>> from keras_psp.benchmarks import IncrementalConfig
    >>> IncrementalConfig(source="digits", classes_per_task=2).experiment
    'incremental'
    """

    experiment: ClassVar[str] = "incremental"
    published: ClassVar[dict] = {
        **{"source": "cifar10+cifar100", "tasks": 5, "classes_per_task": 10},
        **{"model": "resnet18", "width": 1.0, "norm": "batch"},
    }
    protocols: ClassVar[tuple[str, ...]] = ("split-mnist",)

    source: str = option(
        "cifar10+cifar100",
        "the images; of several sources, one follows the other",
        ChainMap[str, Any]({"cifar10+cifar100": None}, SOURCES),
    )
    tasks: int = option(5, "number of tasks, which are learned one after the other")
    optimizer: str = option("adam", "a Keras optimizer", tuple(OPTIMIZERS))
    learning_rate: float = option(1e-3, "learning rate of the optimizer")
    classes_per_task: int = option(10, "number of classes per task")
    augment: bool = option(False, "flip and shift training images at random")
    model: str = option(
        "resnet18",
        "the network",
        ChainMap[str, Any]({"resnet18": resnet18, "mlp": mlp}, MODELS),
    )
    width: float = option(
        1.0,
        "width of the network; 1 means 64 filters at first in a ResNet18, and two "
        "layers of 256 units in an MLP",
    )
    stem: str = option("cifar", "first layers of the ResNet18", STEMS)
    head: str = option("superposed", "last layer of the network", HEADS)
    norm: str = option("task", "normalization of the ResNet18", NORMS)
    context_over: str = option(
        "kernel", "what contexts of the ResNet18 act on", CONTEXT_OVER
    )

    def build_tasks(self) -> TaskSequence:
        """Returns the tasks to learn."""
        return incremental(
            *self.source.split("+"),
            classes_per_task=self.classes_per_task,
            num_tasks=self.tasks,
            augment=self.augment,
            seed=self.seed,
        )

    def build_model(self, tasks: TaskSequence) -> TaskModel:
        """Returns the model that learns them, not yet compiled."""
        if self.model in MODELS:
            return MODELS[self.model](tasks, self)
        options: dict[str, Any] = {
            "context": self.context,
            "learnable": self.learnable,
            "head": self.head,
            "seed": self.seed,
            "rank": self.rank or None,
        }
        shape, classes = tasks.image_shape, tasks.num_classes
        if self.model == "mlp":
            units = max(1, round(256 * self.width))
            return mlp(shape, classes, self.tasks, units=units, depth=2, **options)
        options |= {"norm": self.norm, "context_over": self.context_over}
        options |= {"stem": self.stem, "width": self.width}
        return resnet18(shape, classes, self.tasks, **options)

    @property
    def has_own_weights(self) -> bool:
        """Whether each task has weights of its own that are trained."""
        norms = self.model == "resnet18" and self.norm == "task"
        return super().has_own_weights or self.head == "multi" or norms
