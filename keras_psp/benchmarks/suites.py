"""The experiments by name, and suites: lists of configs to run one after the other."""

from typing import Any

from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.incremental_config import IncrementalConfig as Incremental
from keras_psp.benchmarks.permuted_config import PermutedConfig as Permuted
from keras_psp.benchmarks.rotating_config import RotatingConfig as Rotating

Options = dict[str, Any]
EXPERIMENTS: dict[str, type[Config]] = {
    config.experiment: config for config in (Permuted, Rotating, Incremental)
}

# Every way of learning task after task, and the upper bounds.
SYSTEMS: tuple[Options, ...] = (
    {"context": "identity"},
    {"context": "identity", "head": "multi"},
    {"context": "identity", "consolidation": "ewc"},
    {"context": "identity", "consolidation": "online_ewc"},
    {"context": "identity", "consolidation": "per_task_ewc"},
    {"context": "identity", "consolidation": "si"},
    {"context": "identity", "consolidation": "gram"},
    {"context": "binary"},
    {"context": "binary", "consolidation": "gram"},
    {"context": "binary", "consolidation": "ewc"},
    {"context": "binary", "consolidation": "si", "strength": 1.0},
    {"context": "identity", "separate": True},
    {"context": "identity", "joint": True},
)
# Consolidations, and how the network is trained with each.
EWC: Options = {
    "consolidation": "ewc",
    "schedule": "cosine",
    "learning_rate": 3e-4,
}
SI: Options = {"consolidation": "si", "strength": 1.0}
GRAM: Options = {
    "consolidation": "gram",
    "schedule": "cosine",
    "learning_rate": 1e-3,
}
CONSOLIDATED: tuple[Options, ...] = (
    *({"context": "identity", **kept} for kept in ({}, EWC, GRAM)),
    *({"context": "binary", **kept} for kept in ({}, EWC, SI, GRAM)),
)
FAMILIES: tuple[Options, ...] = (
    {"context": "binary", "learnable": True},
    {"context": "complex"},
    {"context": "powers"},
    {"context": "fast_rotation"},
    {"context": "hadamard"},
    {"context": "signed_permutation"},
    {"context": "permutation"},
    {"context": "complex", "complex_valued": True},
)
TURNS: tuple[Options, ...] = (
    {"context": "identity"},
    {"context": "binary"},
    {"context": "binary", "assignment": "step"},
    {"context": "binary", "assignment": "random"},
    {"context": "binary", "assignment": "mixture"},
)
HEADS: tuple[Options, ...] = (
    {"context": "identity", "head": "shared"},
    {"context": "identity", "head": "multi"},
    {"context": "binary"},
    {"context": "identity", "head": "shared", "separate": True},
)

# Parts of each task's own beside Gram, and what a reader would compare them with.
BEST: Options = {"recipe": "best", "part_bits": 4}
RETAINED: tuple[Options, ...] = (
    {**BEST, "guessed": 320},
    {"recipe": "gram", "context": "fast_rotation"},
    {**BEST, "consolidation": "freeze"},
    {"recipe": "gram", "context": "fast_rotation", "units": 512},
    {"context": "identity", "separate": True},
    {"context": "identity", "joint": True},
)
# In the protocol of GPM: standard networks with one head, which know no task.
GPM: Options = {"protocol": "gpm", "context": "identity"}
GPM_GRAM: Options = {**GPM, **GRAM, "learning_rate": 0.03}
SINGLE_HEAD: tuple[Options, ...] = (
    GPM_GRAM,
    {**GPM, "consolidation": "gram"},
    {**GPM, "consolidation": "ewc"},
    {**GPM, **SI},  # With its default strength it diverges at this rate.
    {**GPM, "joint": True},
)
# Other published settings: first what knows no task and stores nothing for it.
RITTER: Options = {"protocol": "ritter"}
WIDE: Options = {"source": "mnist", "tasks": 10, "units": 2000, "depth": 2}
OTHERS: tuple[Options, ...] = (
    {**RITTER, "recipe": "gram", "context": "identity"},
    {**RITTER, "recipe": "gram", "context": "fast_rotation"},
    {**RITTER, **BEST},
    {**WIDE, "recipe": "gram", "context": "fast_rotation"},
    {"protocol": "dendrites", **GRAM, "context": "fast_rotation"},
)
# The 40 classes of CIFAR-100 at hand, four for each task; each with norms of its own.
CIFAR: Options = {
    **{"source": "cifar100", "tasks": 10, "classes_per_task": 4, "augment": True},
    **{"width": 0.25, "steps": 150, "batch_size": 32, "head": "multi"},
}
CIFAR_SYSTEMS: tuple[Options, ...] = (
    {**CIFAR, **GRAM, "context": "binary", "rank": 4, "task_learning_rate": 3.0},
    {**CIFAR, **GRAM, "context": "binary"},
    {**CIFAR, **GRAM, "context": "identity", "consolidation": "ewc"},
    {**CIFAR, **GRAM, "context": "binary", "consolidation": "freeze"},
    {**CIFAR, "schedule": "cosine", "context": "identity", "separate": True},
)

# Minutes on two cores, with the digits that come with scikit-learn.
DIGITS: Options = {
    "source": "digits",
    "units": 128,
    "depth": 2,
    "learning_rate": 1e-3,
}
PERMUTED_DIGITS: Options = {**DIGITS, "tasks": 10, "steps": 100}
ROTATING_DIGITS: Options = {**DIGITS, "steps": 50, "cycles": 4}
INCREMENTAL_DIGITS: Options = {
    **{"source": "digits", "classes_per_task": 2, "steps": 60, "batch_size": 64},
    **{"width": 0.0625},
}

# The published settings.
MNIST: Options = {"source": "mnist", "tasks": 50}

SUITES: dict[str, list[Config]] = {
    "paper-small": [
        *(
            Permuted(**PERMUTED_DIGITS, **system, seed=seed)
            for system in SYSTEMS
            for seed in range(2)
        ),
        *(Permuted(**PERMUTED_DIGITS, **family) for family in FAMILIES),
        *(
            Permuted(**{**PERMUTED_DIGITS, "units": units}, context=context)
            for units in (32, 64, 256)
            for context in ("identity", "binary")
        ),
        *(Rotating(**ROTATING_DIGITS, **turns) for turns in TURNS),
        *(Incremental(**INCREMENTAL_DIGITS, **head) for head in HEADS),
    ],
    "paper": [
        *(Permuted(**MNIST, **system) for system in SYSTEMS),
        *(Permuted(**MNIST, **family) for family in FAMILIES),
        *(
            Permuted(**MNIST, units=units, context=context)
            for units in (128, 512, 1024, 2048)
            for context in ("identity", "binary")
        ),
        *(
            Rotating(source=source, cycles=50, **turns)
            for source in ("mnist", "fashion_mnist")
            for turns in TURNS
        ),
        *(Incremental(**head, augment=True, steps=5000) for head in HEADS),
    ],
    "consolidation": [
        Permuted(**MNIST, **system, seed=seed)
        for seed in range(3)
        for system in CONSOLIDATED
    ],
    "retention": [
        Permuted(**system, seed=seed)
        for seed in range(3)
        for system in (
            *(
                {**MNIST, "tasks": tasks, **kept}
                for tasks in (50, 100)
                for kept in RETAINED
            ),
            *SINGLE_HEAD,
            *OTHERS,
            # With a context, a head and a part for each task, which is told.
            {
                **{**GPM_GRAM, "context": "fast_rotation", "head": "multi"},
                **{"rank": 4, "part_bits": 4},
            },
        )
    ],
    "retention-cifar": [
        Incremental(**system, seed=seed)
        for seed in range(3)
        for system in CIFAR_SYSTEMS
    ],
}
