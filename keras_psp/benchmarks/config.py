"""Configs: all that a run depends on, in one frozen dataclass an experiment."""

import dataclasses
from numbers import Integral
from numbers import Real

import keras

from keras_psp import contexts
from keras_psp.datasets import SOURCES
from keras_psp.datasets import TaskSequence
from keras_psp.datasets import permuted
from keras_psp.models import TaskModel
from keras_psp.models import mlp
from keras_psp.names import check_name

OPTIMIZERS = sorted(
    name.lower()
    for name, value in vars(keras.optimizers).items()
    if isinstance(value, type)
    and issubclass(value, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
)


def _option(default, help, names=None):
    return dataclasses.field(default=default, metadata={"help": help, "names": names})


@dataclasses.dataclass(frozen=True)
class PermutedConfig:
    """One run on permuted images: a multi-layer perceptron learns task after task.

    Every field is an option of `keras-psp run permuted`.

    Raises:
        TypeError, ValueError: A field is not what its help says.

    Example:

    >>> from keras_psp.benchmarks import PermutedConfig
    >>> PermutedConfig(source="digits", tasks=5).experiment
    'permuted'
    """

    source: str = _option("digits", "the images", SOURCES)
    tasks: int = _option(10, "how many tasks are learned, one after the other")
    steps: int = _option(1000, "training steps of each task")
    batch_size: int = _option(128, "images in a training step")
    units: int = _option(256, "width of a hidden layer")
    depth: int = _option(3, "number of hidden layers")
    context: str = _option(
        "binary",
        "the family of contexts; identity is the standard network",
        tuple(contexts.FAMILIES),
    )
    learnable: bool = _option(False, "train the contexts too, as the authors' code")
    complex_valued: bool = _option(
        False, "a network of complex numbers, as the paper's; twice the weights"
    )
    optimizer: str = _option(
        "rmsprop",
        "a Keras optimizer; rmsprop has the authors' rho of 0.99",
        tuple(OPTIMIZERS),
    )
    learning_rate: float = _option(1e-4, "its learning rate")
    seed: int = _option(0, "of permutations, contexts, initial weights, batches")

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return "permuted"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["names"]:
                check_name(field.name, value, field.metadata["names"])
            elif field.type is int:
                least = 0 if field.name in ("seed", "depth") else 1
                _check_number(field.name, value, Integral, least, "an integer")
            elif field.type is float:
                _check_number(field.name, value, Real, 0, "a number")
            elif not isinstance(value, bool):
                raise TypeError(
                    f"`{field.name}` must be True or False. Received: {value!r}"
                )
        # Raises if there is nothing to learn.
        contexts.get(self.context, num_tasks=self.tasks, learnable=self.learnable)

    def build_tasks(self) -> TaskSequence:
        """Returns the tasks to learn."""
        return permuted(self.source, self.tasks, seed=self.seed)

    def build_optimizer(self) -> keras.optimizers.Optimizer:
        """Returns the optimizer of the whole stream."""
        options = {"learning_rate": self.learning_rate}
        if self.optimizer == "rmsprop":
            options["rho"] = 0.99  # PyTorch's default, which the authors used.
        return keras.optimizers.get({"class_name": self.optimizer, "config": options})

    def build_model(self, tasks: TaskSequence) -> TaskModel:
        """Returns the model that learns them, not yet compiled."""
        return mlp(
            tasks.image_shape,
            tasks.num_classes,
            self.tasks,
            units=self.units,
            depth=self.depth,
            context=self.context,
            learnable=self.learnable,
            complex_valued=self.complex_valued,
            seed=self.seed,
        )


EXPERIMENTS = {"permuted": PermutedConfig}


def _check_number(name, value, kind, least, what):
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {what}. Received: {name}={value!r}")
    if not least <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be {what}, at least {least}. Received: {name}={value!r}"
        )
