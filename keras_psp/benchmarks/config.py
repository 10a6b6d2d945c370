"""What the configs of all experiments have in common."""

import dataclasses
from typing import ClassVar

import keras

from keras_psp import contexts
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_number
from keras_psp.consolidation import EWC
from keras_psp.consolidation import CosineEachTask
from keras_psp.consolidation import Gram
from keras_psp.consolidation import SynapticIntelligence

OPTIMIZERS = sorted(
    name.lower()
    for name, value in vars(keras.optimizers).items()
    if isinstance(value, type)
    and issubclass(value, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
)
SCHEDULES = ("constant", "cosine")
# What wraps the optimizer, and options that make it what it is called.
CONSOLIDATIONS = {
    "none": None,
    "ewc": (EWC, {}),
    "per_task_ewc": (EWC, {"decay": None}),
    "online_ewc": (EWC, {"decay": 0.9}),
    "gram": (Gram, {}),
    "si": (SynapticIntelligence, {}),
}


def option(default, help, names=None):
    """A field of a config that is an option of `keras-psp run`.

    Args:
        default: Its default.
        help: What it is, for `--help`.
        names: What it may be, if it is a name.
    """
    return dataclasses.field(default=default, metadata={"help": help, "names": names})


@dataclasses.dataclass(frozen=True)
class Config:
    """All that one run depends on; every field is an option of `keras-psp run`.

    Raises:
        TypeError, ValueError: A field is not what its help says.
    """

    experiment: ClassVar[str]  # Its name on the command line.
    published: ClassVar[dict]  # Fields as they are in the paper, or its authors' code.
    length: ClassVar[str] = "tasks"  # The field that makes a run longer, or shorter.

    source: str = option("digits", "the images")
    tasks: int = option(10, "how many tasks are learned, one after the other")
    steps: int = option(1000, "training steps of each task")
    batch_size: int = option(128, "images in a training step")
    context: str = option(
        "binary",
        "the family of contexts; identity is the standard network",
        tuple(contexts.FAMILIES),
    )
    learnable: bool = option(False, "train the contexts too, as the authors' code")
    separate: bool = option(
        False, "a fresh network for each task: what as many networks would reach"
    )
    joint: bool = option(
        False, "all tasks at once, in batches of one each: what need not be kept"
    )
    consolidation: str = option(
        "none", "what keeps earlier tasks while a task is trained", CONSOLIDATIONS
    )
    strength: float = option(0.0, "how much it weighs; 0 is each one's own default")
    optimizer: str = option(
        "rmsprop",
        "a Keras optimizer; rmsprop has the authors' rho of 0.99",
        tuple(OPTIMIZERS),
    )
    learning_rate: float = option(1e-4, "its learning rate")
    schedule: str = option(
        "constant",
        "how that changes while a task is trained: cosine warms up and falls to 0",
        SCHEDULES,
    )
    seed: int = option(0, "of tasks, contexts, initial weights, batches")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["names"]:
                check_name(field.name, value, field.metadata["names"])
            elif field.type is int:
                least = 0 if field.name in ("seed", "depth") else 1
                check_integer(field.name, value, least)
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
                "A run has one of `separate`, `joint` and `consolidation`. "
                f"Received: {' and '.join(alone)}"
            )
        # Raises if there is nothing to learn.
        contexts.get(
            self.context, num_tasks=self.num_contexts, learnable=self.learnable
        )

    @property
    def name(self) -> str:
        """A name made of the source, the context and all that is not a default."""
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
        """The name and the backend: of the folder that a run is written to."""
        return f"{self.name}-{keras.backend.backend()}"

    @property
    def num_contexts(self) -> int:
        """How many tasks the model holds."""
        return self.tasks

    @property
    def num_visits(self) -> int:
        """How many times a task is trained, all tasks together."""
        return self.tasks

    def build_tasks(self):
        """Returns the `TaskSequence` to learn."""
        raise NotImplementedError

    def build_model(self, tasks):
        """Returns the `TaskModel` that learns it, not yet compiled."""
        raise NotImplementedError

    def build_optimizer(self) -> keras.optimizers.Optimizer:
        """Returns the optimizer of the whole stream, in its consolidation if any."""
        options = {"learning_rate": self.learning_rate}
        if self.schedule == "cosine":
            options["learning_rate"] = CosineEachTask(self.learning_rate, self.steps)
        if self.optimizer == "rmsprop":
            options["rho"] = 0.99  # PyTorch's default, which the authors used.
        optimizer = keras.optimizers.get(
            {"class_name": self.optimizer, "config": options}
        )
        if self.consolidation == "none":
            return optimizer
        consolidation, options = CONSOLIDATIONS[self.consolidation]
        if self.strength:
            options = {**options, "strength": self.strength}
        return consolidation(optimizer, **options)
