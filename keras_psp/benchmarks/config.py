"""The base of all experiments' configs: their common fields, and the optimizer."""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import ClassVar
from typing import Self
from typing import get_type_hints

import keras

from keras_psp import contexts
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_number
from keras_psp.benchmarks._parts import PARTS
from keras_psp.benchmarks._parts import TRAININGS
from keras_psp.benchmarks._parts import find_name
from keras_psp.benchmarks.protocols import NONE
from keras_psp.benchmarks.protocols import PROTOCOLS
from keras_psp.benchmarks.protocols import RECIPES
from keras_psp.benchmarks.protocols import named_settings
from keras_psp.consolidation import EWC
from keras_psp.consolidation import CosineEachTask
from keras_psp.consolidation import Freeze
from keras_psp.consolidation import Gram
from keras_psp.consolidation import SynapticIntelligence
from keras_psp.datasets import TaskSequence
from keras_psp.layers._few_bits import check_bits
from keras_psp.models import TaskModel
from keras_psp.optimizers import PerTask

OPTIMIZERS = sorted(
    name.lower()
    for name, value in vars(keras.optimizers).items()
    if isinstance(value, type)
    and issubclass(value, keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
)
SCHEDULES = ("constant", "cosine")
# What wraps the optimizer, and its options, by name.
CONSOLIDATIONS: dict[str, tuple[Callable, dict[str, Any]] | None] = {
    "none": None,
    "ewc": (EWC, {}),
    "per_task_ewc": (EWC, {"decay": None}),
    "online_ewc": (EWC, {"decay": 0.9}),
    "gram": (Gram, {}),
    "si": (SynapticIntelligence, {}),
    "freeze": (Freeze, {}),
}
PARTS["consolidation"] = CONSOLIDATIONS


_MAY_BE_ZERO = ("seed", "depth", "rank", "part_bits", "guessed")
# How many times as fast parts of low rank learn as the weights that tasks share.
TASK_LEARNING_RATE = 3.0


def option(default: Any, help: str, names: Iterable[str] | None = None) -> Any:
    """Returns a field of a config that is an option of `keras-psp run`.

    Args:
        default: Default value of the option.
        help: Text for `--help`.
        names: The values that the option may have, if it is a name.

    Example:

    >>> import dataclasses
    >>> from keras_psp import benchmarks
    >>> @dataclasses.dataclass(frozen=True)
    ... class Noisy(benchmarks.PermutedConfig):
    ...     experiment = "noisy"
    ...     noise: float = benchmarks.option(0.1, "deviation of the noise")
    >>> Noisy(noise=0.2).name
    'noisy-digits-binary-noise-0.2'
    """
    return dataclasses.field(default=default, metadata={"help": help, "names": names})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that one run depends on; each field is an option of `keras-psp run`.

    `source`, `context`, `consolidation`, `training` and `model` take a part of your
    own: its name, if you have registered it with `register()`, or the object itself,
    which is then registered under its `__name__`.

    For a task sequence, or more options, of your own, subclass a config, override
    `build_tasks()`, `build_model()` or `build_optimizer()`, and declare each option
    with `option()`. Give the subclass a name of its own as `experiment`, so that its
    results are told apart in reports.

    `recipe` and `protocol` name settings of several fields. Fields that are given win
    over a recipe's. They must not contradict what a protocol fixes.
    `dataclasses.replace()` gives all fields, so it cannot bring a recipe in.

    Raises:
        TypeError, ValueError: A field is not what its help says, or contradicts the
            protocol.

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
    protocols: ClassVar[tuple[str, ...]] = ()  # Those of this experiment.
    _given: ClassVar[set[str]] = set()  # Of an instance: the fields that were given.

    source: str = option("digits", "the images")
    tasks: int = option(10, "number of tasks, which are learned one after the other")
    steps: int = option(1000, "training steps per task")
    batch_size: int = option(128, "images per training step")
    context: str = option(
        "binary",
        "family of contexts; identity is the standard network",
        contexts.FAMILIES,
    )
    learnable: bool = option(False, "train the contexts too, as the authors' code does")
    separate: bool = option(False, "upper bound: one network per task")
    joint: bool = option(False, "upper bound: train all tasks together")
    consolidation: str = option(
        "none", "how weights that earlier tasks need are protected", CONSOLIDATIONS
    )
    rank: int = option(
        0, "rank of the part that each task has of its own in every layer; 0 for none"
    )
    task_learning_rate: float = option(
        0.0,
        "how many times as fast the weights of a task's own are trained; 0 means "
        f"{TASK_LEARNING_RATE:g} with rank, and no difference without",
    )
    part_bits: int = option(
        0,
        "bits of each number of tasks' own parts, which are rounded after the last "
        "task and tested again; 0 for not",
    )
    guessed: int = option(
        0,
        "test images of each task that are answered after the last one without being "
        "told the task; 0 for none",
    )
    training: str = option("fit", "how the network is trained", TRAININGS)
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
    recipe: str = option(
        NONE, "settings of training; other options win over them", (NONE, *RECIPES)
    )
    protocol: str = option(
        NONE,
        "published settings; no option may contradict them",
        (NONE, *PROTOCOLS),
    )

    def __new__(cls, *args: Any, **options: Any) -> Self:
        config = super().__new__(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        given = {**dict(zip(names, args, strict=False)), **options}
        object.__setattr__(config, "_given", set(given))
        return config

    def __post_init__(self) -> None:
        self._take_named_settings()
        types = get_type_hints(type(self))  # Which are strings in some modules.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in PARTS and not isinstance(value, str):
                value = find_name(field.name, value)
                object.__setattr__(self, field.name, value)
            if field.metadata["names"]:
                check_name(field.name, value, field.metadata["names"])
            elif types[field.name] is int:
                least = 0 if field.name in _MAY_BE_ZERO else 1
                check_integer(field.name, value, least)
            elif types[field.name] is str:
                if not isinstance(value, str):
                    raise TypeError(
                        f"`{field.name}` must be a string. Received: {value!r}"
                    )
            elif types[field.name] is float:
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
        if self.task_learning_rate and not self.has_own_weights:
            raise ValueError(
                "`task_learning_rate` is that of weights that each task has of its "
                "own, as by `rank` or `head='multi'`. "
                f"Received: task_learning_rate={self.task_learning_rate}"
            )
        if self.consolidation == "freeze" and not self.has_own_weights:
            raise ValueError(
                "`consolidation='freeze'` trains the weights alone that each task has "
                "of its own, as by `rank` or `head='multi'`. Received: neither"
            )
        if self.part_bits:
            check_bits(self.part_bits)
            if not self.rank:
                raise ValueError(
                    "`part_bits` is for the parts that `rank` gives to each task. "
                    f"Received: part_bits={self.part_bits} and rank=0"
                )
        if self.guessed and (self.separate or self.num_contexts != self.tasks):
            raise ValueError(
                "`guessed` is for one network with a context for each task. Received: "
                f"guessed={self.guessed}, separate={self.separate} and "
                f"{self.num_contexts} contexts for {self.tasks} tasks"
            )
        # Raises if `learnable` contexts of this family have nothing to learn.
        contexts.get(
            self.context, num_tasks=self.num_contexts, learnable=self.learnable
        )

    def _take_named_settings(self) -> None:
        """Sets fields that are not given to those of the recipe and the protocol."""
        check_name("recipe", self.recipe, (NONE, *RECIPES))
        check_name("protocol", self.protocol, (NONE, *self.protocols))
        settings = named_settings(self.recipe, self.protocol)
        if self.protocol != NONE:
            for name, value in PROTOCOLS[self.protocol].fixed.items():
                if name in self._given and getattr(self, name) != value:
                    raise ValueError(
                        f"The protocol {self.protocol!r} has {name}={value!r}. "
                        f"Received: {name}={getattr(self, name)!r}"
                    )
        fields = {field.name for field in dataclasses.fields(self)}
        for name, value in settings.items():
            if name in fields and name not in self._given:
                object.__setattr__(self, name, value)

    @property
    def has_own_weights(self) -> bool:
        """Whether each task has weights of its own that are trained."""
        return self.rank > 0 or self.learnable

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
        factor = self.task_learning_rate or (TASK_LEARNING_RATE if self.rank else 0)
        if factor or self.consolidation == "freeze":
            optimizer = PerTask(optimizer, rates=factor or None)
        chosen = CONSOLIDATIONS[self.consolidation]
        if chosen is None:
            return optimizer
        consolidation, options = chosen
        if self.strength:
            options = {**options, "strength": self.strength}
        return consolidation(optimizer, **options)
