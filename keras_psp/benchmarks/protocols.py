"""Settings by name: the protocols that others published, and recipes of training."""

import dataclasses
from typing import Any

Options = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The part of a config that makes a run comparable with published ones.

    Attributes:
        fixed: Options that no other may contradict: the tasks, the network, the steps.
        training: Options that the authors trained with, and other methods need not.
        source: Where it was published.
    """

    fixed: Options
    training: Options
    source: str


PROTOCOLS: dict[str, Protocol] = {
    "gpm": Protocol(
        {
            **{"source": "mnist", "tasks": 10, "units": 100, "depth": 2},
            **{"steps": 27_000, "batch_size": 10, "optimizer": "sgd"},
        },
        {"learning_rate": 0.01},
        "Saha et al., 2021, arXiv:2103.09762",
    ),
    "ritter": Protocol(
        {"source": "mnist", "tasks": 50, "units": 100, "depth": 2},
        {},
        "Ritter et al., 2018, arXiv:1805.07810",
    ),
    "dendrites": Protocol(
        {
            **{"source": "mnist", "tasks": 100, "units": 2048, "depth": 2},
            **{"steps": 703, "batch_size": 256},  # Three times through the images.
        },
        {"optimizer": "adam", "learning_rate": 5e-4},
        "Iyer et al., 2022, arXiv:2201.00042",
    ),
    "split-mnist": Protocol(
        {
            **{"source": "mnist", "tasks": 5, "classes_per_task": 2},
            **{"model": "mlp", "width": 1.0},
        },
        {"learning_rate": 1e-3},
        "Hsu et al., 2018, arXiv:1810.12488",
    ),
}

# How a network is trained: options beside its size and its tasks.
RECIPES: dict[str, Options] = {
    "paper": {},
    "gram": {
        **{"consolidation": "gram", "schedule": "cosine", "learning_rate": 1e-3},
    },
    "best": {
        **{"consolidation": "gram", "schedule": "cosine", "learning_rate": 1e-3},
        **{"context": "fast_rotation", "head": "multi"},
        **{"rank": 4, "task_learning_rate": 3.0},
    },
}
NONE = "none"


def named_settings(recipe: Any, protocol: Any) -> Options:
    """Returns the options that a recipe and a protocol set together.

    Unknown names set nothing.
    """
    settings = dict(RECIPES.get(recipe, {}))
    if protocol in PROTOCOLS:
        settings |= PROTOCOLS[protocol].training | PROTOCOLS[protocol].fixed
    return settings
