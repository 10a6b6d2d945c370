"""How well K trained models are kept in less and less memory."""

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_number
from keras_psp._core.table import Table
from keras_psp._reading.plan import plan_models
from keras_psp.diagnostics import _plots as plots
from keras_psp.diagnostics.memory import memory
from keras_psp.layers._task_low_rank import FULL
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery._budget import best
from keras_psp.surgery._compressed import Walk
from keras_psp.surgery._compressed import check_can_compress
from keras_psp.surgery._parts import Form
from keras_psp.surgery.superpose import read_data_of_tasks
from keras_psp.surgery.superpose import read_models

BUDGETS = (0.2, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
OURS = "superpose(budget=)"
FEW_BITS = (1, 2, 3, 4, 6, 8)
RANKS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Frontier(Table):
    """Errors over memory; as text, and in a notebook, a table.

    Attributes:
        rows: Tuple of a dictionary for each way of keeping the models; see
            `frontier()`.
    """

    _labels = ("system", "size")

    def plot(self, path: Any = None) -> Any:
        """Draws the error, or what `evaluate` returned, over the memory.

        Args:
            path: Where to write the figure; its ending says how (`.png`, `.svg`).

        Returns:
            Matplotlib figure.
        """
        return plots.save(plots.draw_frontier(self.rows), path)


def frontier(
    models: Sequence[keras.Model],
    base: keras.Model | None = None,
    data: Sequence[Any] | None = None,
    evaluate: Callable[[TaskModel], float] | None = None,
    budgets: Sequence[float] = BUDGETS,
    verbose: bool = True,
) -> Frontier:
    """Compares ways to keep K trained models, by their error and their memory.

    ```
    superpose(budget=)  what the search finds for each of the budgets
    copies              each model in 1 to 8 bits
    differences         a base in 8 bits, and each model's difference in 1 to 8 bits
    low rank            a base in 8 bits, and differences of a low rank in 4 bits
    ```

    All are rounded and fitted to the data as those of `superpose()`, so that a rival is
    no worse than where it is applied alone.

    Args:
        models: As `superpose()` takes them. They are not changed.
        base: Likewise.
        data: List of one set of inputs for each task, as `superpose()` takes them.
        evaluate: Function of a `TaskModel` that returns a number, such as its accuracy
            on test data. Or `None`.
        budgets: List of positive numbers, in float32 networks of one model. Those that
            are too small are left out.
        verbose: Boolean, whether to show a progress bar.

    Returns:
        A `Frontier`. Its `rows` are dictionaries: `system` and `size`, strings;
        `memory`, in float32 networks of one model; `error`, the mean squared error of
        the outputs for the data as a share of their variance; and `evaluate`, what that
        returned, if it was given. `print()` shows a table, and `plot(path=None)` draws
        it.

    Raises:
        TypeError: As `superpose()` does, `data` is missing, or a budget is no number.
        ValueError: As `superpose()` does, or a budget is negative or not finite.

    Example:

    >>> import keras, keras_psp
    >>> base = keras.Sequential([keras.Input((16,), name="x"), keras.layers.Dense(8)])
    >>> models = [keras.models.clone_model(base) for _ in range(3)]
    >>> x = keras.random.normal((50, 16))
    >>> result = keras_psp.diagnostics.frontier(
    ...     models, base, [x] * 3, budgets=[1.0], verbose=False
    ... )
    >>> ours = result.rows[0]
    >>> ours["system"], ours["memory"] <= 1.0, ours["error"] < 0.1
    ('superpose(budget=)', True, True)
    """
    graphs, heads = read_models(models, base)
    budgets = sorted(check_number("budgets", each) for each in budgets)
    plan, alike = plan_models(graphs, heads=heads, in_parts=True)
    check_can_compress(alike)
    data = read_data_of_tasks(graphs[0], models, data)
    walk = Walk(graphs, plan, alike, base is not None, data, None)
    ways = [(OURS, f"{each:g} networks", each) for each in budgets]
    ways += _rivals(walk, base is not None, len(models))
    menus = [best(walk.choices(group)) for group in walk.groups]
    given = [graphs[0].give(x) for x in data]
    own = [_answer(walk.own(k), x) for k, x in enumerate(given)]
    bar = keras.utils.Progbar(len(ways), verbose=int(verbose))
    rows = []
    for i, (system, size, how) in enumerate(ways):
        one: TaskModel | None
        if isinstance(how, Form):
            one = walk.fit_alike(how)
        else:
            one = walk.fit_within(menus, how * walk.count_model_bytes())
        if one is not None:
            here = [_answer(walk.plain(k), x) for k, x in enumerate(given)]
            row: dict[str, Any] = {"system": system, "size": size}
            row["memory"] = memory(one).total / walk.count_model_bytes()
            row["error"] = _error(here, own)
            if evaluate is not None:
                row["evaluate"] = float(evaluate(one))
            rows.append(row)
        bar.update(i + 1)
    return Frontier(tuple(rows))


def _rivals(walk, with_base, num_tasks):
    """Returns names and sizes of rivals, each with its `Form`."""
    found = [("copies", f"{b} bits", Form(rank=FULL, rank_bits=b)) for b in FEW_BITS]
    if with_base:
        found += [
            ("differences", f"{bits} bits", Form(8, rank=FULL, rank_bits=bits))
            for bits in FEW_BITS
        ]
    most = walk.widest()
    found += [
        ("low rank", f"{rank} in 4 bits", Form(8, rank=rank, rank_bits=4))
        for rank in RANKS
        if rank < most
    ]
    return found


def _answer(model, x):
    """Returns a model's outputs, each example's in a row."""
    found = keras.tree.flatten(model.predict(x, verbose=0))
    return np.concatenate([each.reshape(len(each), -1) for each in found], 1)


def _error(here, own):
    """Returns the tasks' mean squared error, as a share of their outputs' variance."""
    shares = [
        np.square(a - b).sum(1).mean() / max(np.var(b, 0).sum(), 1e-12)
        for a, b in zip(here, own, strict=True)
    ]
    return float(np.mean(shares))
