"""The base of all experiments' configs: their common fields, and the optimizer."""

import dataclasses
from collections.abc import Iterable
from typing import Any
from typing import ClassVar

import keras

from keras_psp import contexts
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_number
from keras_psp.consolidation import EWC
from keras_psp.consolidation import Consolidation
from keras_psp.consolidation import CosineEachTask
from keras_psp.consolidation import Gram
from keras_psp.consolidation import SynapticIntelligence
from keras_psp.datasets import TaskSequence
from keras_psp.models import TaskModel

OPTIMIZERS = sorted(
    name.lower()
    for name, value in vars(keras.optimizers).items()
    if isinstance(value, type)
    and issubclass(value, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
)
SCHEDULES = ("constant", "cosine")
# The class that wraps the optimizer, and its options, by name.
CONSOLIDATIONS: dict[str, tuple[type[Consolidation], dict[str, Any]] | None] = {
    "none": None,
    "ewc": (EWC, {}),
    "per_task_ewc": (EWC, {"decay": None}),
    "online_ewc": (EWC, {"decay": 0.9}),
    "gram": (Gram, {}),
    "si": (SynapticIntelligence, {}),
}


def option(default: Any, help: str, names: Iterable[str] | None = None) -> Any:
    """Returns a field of a config that is an option of `keras-psp run`.

    Args:
        default: Default value of the option.
        help: Text for `--help`.
        names: The values that the option may have, if it is a name.
    """
    return dataclasses.field(default=default, metadata={"help": help, "names": names})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that one run depends on; each field is an option of `keras-psp run`.

    To run a model, an optimizer or a consolidation of your own, subclass a config and
    override `build_tasks()`, `build_model()` or `build_optimizer()`. Give the subclass
    a name of its own as `experiment`, so that its results are told apart in reports.

    Raises:
        TypeError, ValueError: A field is not what its help says.

    Example:

    >>> import dataclasses
    >>> from keras_psp import benchmarks, consolidation
    >>> @dataclasses.dataclass(frozen=True)
    ... class StrongEWC(benchmarks.PermutedConfig):
    ...     experiment = "permuted with a strong EWC"
    ...
    ...     def build_optimizer(self):
    ...         return consolidation.EWC(super().build_optimizer(), strength=1e4)
    >>> result = benchmarks.run(StrongEWC(tasks=2, steps=20, units=16))
    >>> result.memory["consolidation"] > 0
    True
    """

    experiment: ClassVar[str]  # Its name on the command line.
    published: ClassVar[dict] = {}  # Fields as in the paper or the authors' code.
    length: ClassVar[str] = "tasks"  # The field that makes a run longer or shorter.

    source: str = option("digits", "the images")
    tasks: int = option(10, "number of tasks, which are learned one after the other")
    steps: int = option(1000, "training steps per task")
    batch_size: int = option(128, "images per training step")
    context: str = option(
        "binary",
        "family of contexts; identity is the standard network",
        tuple(contexts.FAMILIES),
    )
    learnable: bool = option(False, "train the contexts too, as the authors' code does")
    separate: bool = option(False, "upper bound: one network per task")
    joint: bool = option(False, "upper bound: train all tasks together")
    consolidation: str = option(
        "none", "how weights that earlier tasks need are protected", CONSOLIDATIONS
    )
    strength: float = option(
        0.0, "weight of the consolidation's penalty; 0 means the method's default"
    )
    optimizer: str = option(
        "rmsprop",
        "a Keras optimizer; rmsprop has rho=0.99 as in the authors' code",
        tuple(OPTIMIZERS),
    )
    learning_rate: float = option(1e-4, "learning rate of the optimizer")
    schedule: str = option(
        "constant",
        "learning rate during a task; cosine warms up and then falls to 0",
        SCHEDULES,
    )
    seed: int = option(0, "seed of tasks, contexts, initial weights and batches")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["names"]:
                check_name(field.name, value, field.metadata["names"])
            elif field.type is int:
                least = 0 if field.name in ("seed", "depth") else 1
                check_integer(field.name, value, least)
            elif field.type is str:
                if not isinstance(value, str):
                    raise TypeError(
                        f"`{field.name}` must be a string. Received: {value!r}"
                    )
            elif field.type is float:
                check_number(field.name, value)
            elif not isinstance(value, bool):
                raise TypeError(
                    f"`{field.name}` must be True or False. Received: {value!r}"
                )
        alone = [
            name
            for name in ("separate", "joint", "consolidation")
            if getattr(self, name) not in (False, "none")
        ]
        if len(alone) > 1:
            raise ValueError(
                "A run may have only one of `separate`, `joint` and `consolidation`. "
                f"Received: {' and '.join(alone)}"
            )
        # Raises if `learnable` contexts of this family have nothing to learn.
        contexts.get(
            self.context, num_tasks=self.num_contexts, learnable=self.learnable
        )

    @property
    def name(self) -> str:
        """A name made of source, context and the fields that are not default."""
        options, defaults = dataclasses.asdict(self), dataclasses.asdict(type(self)())
        always = ("source", "context")
        changed = [
            name.replace("_", "-") + (f"-{value}" if value is not True else "")
            for name, value in options.items()
            if name not in always and value != defaults[name]
        ]
        return "-".join([self.experiment, *(options[k] for k in always), *changed])

    @property
    def folder_name(self) -> str:
        """The name of the run's folder: the run's name and the backend."""
        return f"{self.name}-{keras.backend.backend()}"

    @property
    def num_contexts(self) -> int:
        """Number of tasks that the model holds."""
        return self.tasks

    @property
    def num_visits(self) -> int:
        """Number of visits to tasks in a run."""
        return self.tasks

    def build_tasks(self) -> TaskSequence:
        """Returns the tasks to learn; `run()` calls it first."""
        raise NotImplementedError

    def build_model(self, tasks: TaskSequence) -> TaskModel:
        """Returns the model that learns the tasks, not yet compiled.

        It is a functional model of the inputs `"image"` and `"task"` and returns
        logits.
        """
        raise NotImplementedError

    def build_optimizer(self) -> keras.optimizers.Optimizer:
        """Returns the optimizer with which `run()` compiles the model.

        Override it to bring an optimizer or a consolidation of your own. `run()` calls
        `end_task(model, data)` of the optimizer, or of the one inside a
        `keras.optimizers.LossScaleOptimizer`, at the end of each task if there is such
        a method. What an optimizer is to remember when a run is resumed must be in its
        variables.
        """
        options: dict[str, Any] = {"learning_rate": self.learning_rate}
        if self.schedule == "cosine":
            options["learning_rate"] = CosineEachTask(self.learning_rate, self.steps)
        if self.optimizer == "rmsprop":
            options["rho"] = 0.99  # PyTorch's default; the authors used it.
        optimizer = keras.optimizers.get(
            {"class_name": self.optimizer, "config": options}
        )
        chosen = CONSOLIDATIONS[self.consolidation]
        if chosen is None:
            return optimizer
        consolidation, options = chosen
        if self.strength:
            options = {**options, "strength": self.strength}
        return consolidation(optimizer, **options)
