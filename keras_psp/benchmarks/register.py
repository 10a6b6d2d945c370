"""`register()`: own parts by name, in this process or from installed packages."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from keras_psp._core.checks import check_list
from keras_psp._core.checks import check_name
from keras_psp.benchmarks._parts import PARTS
from keras_psp.benchmarks._parts import add_part
from keras_psp.benchmarks._parts import check_part_name
from keras_psp.benchmarks.config import Config
from keras_psp.benchmarks.suites import EXPERIMENTS
from keras_psp.benchmarks.suites import SUITES
from keras_psp_cli.parser import ENTRY_POINTS

_TABLES = {**PARTS, "experiment": EXPERIMENTS, "suite": SUITES}
_loaded: dict[Path, ModuleType] = {}  # Files of registrations.


def register(kind: str, name: str, value: Any) -> None:
    """Gives a part of your own a name, for configs, suites and the command line.

    | kind | value |
    |---|---|
    | `"source"` | what `load_source()` takes, or a function that returns it |
    | `"context"` | a subclass of `keras_psp.contexts.Context` |
    | `"consolidation"` | function of an optimizer that returns an optimizer |
    | `"training"` | function of model, stream of batches and options of `fit()` |
    | `"model"` | function of a `TaskSequence` and the config; returns a model |
    | `"experiment"` | a subclass of `Config`, such as one with other tasks |
    | `"suite"` | a list of configs |

    The command reads a file of registrations with `--parts FILE.py`, and what installed
    packages name as entry points of the group `keras_psp.benchmarks`.

    Args:
        kind: One of the kinds above.
        name: A word of letters, digits, `_`, `.` and `-`.
        value: The part.

    Raises:
        TypeError: `value` is not what `kind` says.
        ValueError: Unknown kind; a name that is taken or no word.

    Example:

    >>> import numpy as np
    >>> from keras_psp import benchmarks
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(500, 8)).astype("float32"), rng.integers(0, 3, 500)
    >>> benchmarks.register("source", "noise", (x, y))
    >>> config = benchmarks.PermutedConfig("noise", tasks=2, steps=5, units=8)
    >>> benchmarks.run(config).config["source"]
    'noise'
    """
    check_name("kind of part", kind, _TABLES)
    if name in _TABLES[kind]:
        raise ValueError(
            f"`name` is taken by another {kind}. Received: name={name!r}, which is one "
            f"of {', '.join(_TABLES[kind])}"
        )
    if kind == "experiment":
        if not isinstance(value, type) or not issubclass(value, Config):
            raise TypeError(
                "An experiment must be a subclass of `keras_psp.benchmarks.Config`. "
                f"Received: {name}={value!r}"
            )
        if value.experiment != name:
            raise ValueError(
                "`name` must be the `experiment` of the config. Received: "
                f"name={name!r}, experiment={value.experiment!r}"
            )
        EXPERIMENTS[check_part_name(name)] = value
    elif kind == "suite":
        configs = check_list("value", value, "configs")
        if not configs or not all(isinstance(config, Config) for config in configs):
            raise TypeError(
                f"A suite must be a list of configs. Received: {name}={value!r}"
            )
        SUITES[check_part_name(name)] = configs
    else:
        add_part(kind, name, value)


def load_parts(files: Iterable[str | Path] = ()) -> None:
    """Imports what installed packages register, and files of registrations, each once.

    Args:
        files: Paths of Python files.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: A package's entry point cannot be imported.
    """
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:
            raise ImportError(
                f"The parts of the package {point.dist and point.dist.name!r} cannot "
                f"be loaded: {point.value}: {error!r}"
            ) from error
    for path in (Path(file).resolve() for file in files):
        if path in _loaded:
            continue
        name = f"keras_psp_parts_{len(_loaded)}"  # That no other module has.
        spec = importlib.util.spec_from_file_location(name, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise FileNotFoundError(
                f"There is no such Python file. Received: {str(path)!r}"
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # Where dataclasses look for it.
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _loaded[path] = module


def loaded_files() -> list[ModuleType]:
    """Returns the modules of the files of registrations that were read."""
    return list(_loaded.values())
