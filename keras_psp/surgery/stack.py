"""K models of one architecture -> one model that holds them side by side."""

from collections.abc import Mapping
from collections.abc import Sequence

import keras
import numpy as np

from keras_psp._core.task_index import check_num_tasks
from keras_psp._core.task_index import split_names
from keras_psp._reading.counterparts import COUNTERPARTS
from keras_psp._reading.counterparts import can_convert
from keras_psp._reading.counterparts import is_altered
from keras_psp._reading.counterparts import make_superposed
from keras_psp._reading.counterparts import make_task_dense
from keras_psp._reading.counterparts import set_new_rows
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import copy_weights
from keras_psp._reading.plan import Plan
from keras_psp._reading.plan import alike_layers
from keras_psp._reading.plan import calls_inside
from keras_psp._reading.plan import is_safe
from keras_psp._reading.plan import same_leaves
from keras_psp._reading.same_architecture import check_same_architecture
from keras_psp._reading.within import can_copy
from keras_psp._reading.within import make_again
from keras_psp._reading.within import weights_of
from keras_psp.layers._task_copies import TaskCopies
from keras_psp.layers._task_rows import TaskRows
from keras_psp.models.stacked_model import StackedModel
from keras_psp.surgery._build_superposed import build_superposed


def stack(
    models: keras.Model | Sequence[keras.Model] | Mapping[str, keras.Model],
    num_tasks: int | Sequence[str] | None = None,
) -> StackedModel:
    """Holds K models of one architecture side by side in one model, exactly.

    Nothing is superposed and nothing is shared: each task has all weights of its own,
    and answers as its own model. One `fit()` trains all of them, each as if it were
    alone, and one call answers for a batch of many tasks. For thousands of small models
    this is many times faster than one after the other.

    `Dense` becomes a `TaskDense`. Normalizations, embeddings and depthwise convolutions
    become the `Task...` layers. Of every other layer with weights (convolutions,
    attention, recurrent layers), each task has a copy of the weights, and a mixed batch
    is computed once for every task: exact, but no faster than a loop.

    Args:
        models: List of built functional or sequential Keras models of one architecture,
            or a dictionary of them by the names that their tasks are to have. Model k
            becomes task k. Or one such model, with `num_tasks`. They are not changed.
        num_tasks: With one model: positive integer, the number of tasks, or a list of
            their names. Each task begins with fresh weights, drawn by the layers' own
            initializers; copies of other layers are made anew one by one. Weights that
            are not drawn, such as statistics, begin as in a new model too.

    Returns:
        A `keras_psp.models.StackedModel`, not compiled. Inputs: a dictionary of the
        model's inputs by name, and `"task"`, int32 `(batch,)`. Outputs: the model's.

    Raises:
        TypeError: One of the models is not a Keras model, or `num_tasks` no integer.
        ValueError: There is no model; `num_tasks` is given with several models, or not
            with one; the models differ in a layer, a function or a constant; a model is
            not built, is of a class of its own, or takes a task already; a layer is
            quantized or has a LoRA, or gathers statistics and has no counterpart here;
            no layer has weights.

    Example:

    >>> import keras, keras_psp
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    >>> many = keras_psp.stack(model, num_tasks=1000)
    >>> many.num_tasks, many.count_params() == 1000 * model.count_params()
    (1000, True)
    >>> both = keras_psp.stack({"paris": model, "tokyo": keras_psp.extract(many, 7)})
    >>> x = keras.ops.ones((2, 4))
    >>> y = both({"x": x, "task": keras.ops.array([0, 0])})
    >>> bool(keras.ops.all(keras.ops.isclose(y, model(x))))
    True
    """
    fresh = isinstance(models, keras.Model)
    if fresh:
        if num_tasks is None:
            raise ValueError(
                "With one model, `num_tasks` must be given. Received: num_tasks=None"
            )
        number, names = check_num_tasks(num_tasks)
        models = [models]
    else:
        models, names = split_names("models", models)
        if not isinstance(models, (list, tuple)) or not models:
            raise ValueError(
                "`models` must be a Keras model, or a list of them. "
                f"Received: models={models!r}"
            )
        if num_tasks is not None:
            raise ValueError(
                "`num_tasks` can be given with one model only. Received: "
                f"num_tasks={num_tasks!r} with {len(models)} models"
            )
        number = len(models)
    graphs = [Graph(model) for model in models]
    check_same_architecture(graphs)
    plan, alike = _plan(graphs)

    def new_layer(layer):
        if type(layer) is keras.layers.Dense:
            return make_task_dense(layer, number)
        return make_superposed(layer, number, lambda: None, False, "kernel")

    stacked, pairs = build_superposed(
        graphs[0], plan, new_layer, number, kind=StackedModel
    )
    same = same_leaves(alike)
    for layer, held in pairs:
        if not isinstance(held, TaskRows):
            copy_weights(layer, held)
            continue
        if not fresh:
            set_task_weights(held, same[id(layer)])
        elif isinstance(held, TaskCopies):
            again = [make_again(layer).get_weights() for _ in range(number)]
            for weight, values in zip(
                held.task_weights, zip(*again, strict=True), strict=True
            ):
                weight.assign(np.stack(values))
        else:
            held.draw_rows()
        if isinstance(held, TaskCopies):
            set_new_rows(held, layer)
    stacked.task_names = names
    return stacked


def _plan(graphs):
    """Returns the `Plan` for models, and what of them stands for one another."""
    alike = alike_layers(graphs)
    # A block's own weights are used by its code: all inside is copied with it.
    whole = [layers[0] for layers in alike if can_copy(layers[0])]
    alike = alike_layers(graphs, whole)
    calls = calls_inside(graphs[0], [layers[0] for layers in alike])
    chosen, copied = [], []
    for first, *_ in alike:
        if not weights_of(first):
            continue
        if is_altered(first):
            raise ValueError(
                "A layer that is quantized or has a LoRA cannot be stacked. "
                f"Received: {first.name!r}"
            )
        if not is_safe(first, calls):
            raise ValueError(
                "A layer whose weights a block uses otherwise than by calling it "
                f"cannot be stacked. Received: {first.name!r}"
            )
        if _has_counterpart(first):
            chosen.append(first)
        elif can_copy(first):
            copied.append(first)
        else:
            raise ValueError(
                f"A {type(first).__name__} has no counterpart that keeps weights for "
                f"each task. Received: {first.name!r}"
            )
    if not chosen and not copied:
        raise ValueError(
            f"A layer must have weights. Received: {graphs[0].name!r}, without"
        )
    return Plan.of(chosen, copied, calls), alike


def _has_counterpart(layer):
    """Whether a layer keeps all weights for each task, without copies."""
    if type(layer) is keras.layers.Dense:
        activation = layer.activation
        return not isinstance(activation, keras.layers.Layer) or (
            activation.built and not activation.weights
        )
    kind = COUNTERPARTS.get(type(layer))
    return kind is not None and issubclass(kind, TaskRows) and can_convert(layer)
