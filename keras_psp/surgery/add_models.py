"""Adds trained models to a superposed one, and removes them."""

import contextlib
import warnings
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_fewer_tasks
from keras_psp._core.checks import check_number
from keras_psp._core.data import read_inputs
from keras_psp._core.task_index import check_task_names
from keras_psp._core.task_index import in_order
from keras_psp._core.task_index import split_names
from keras_psp._core.task_layer import TaskLayer
from keras_psp._reading.adapters import as_models
from keras_psp._reading.counterparts import differs
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import read_model
from keras_psp._reading.heads import Heads
from keras_psp._reading.lora import merge_lora
from keras_psp._reading.plan import alike_layers
from keras_psp._reading.plan import same_leaves
from keras_psp._reading.same_architecture import all_equal
from keras_psp._reading.same_architecture import check_same_architecture
from keras_psp._reading.text import without_text
from keras_psp._reading.within import weights_of
from keras_psp.layers import PSPComplexDense
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._task_copies import TaskCopies
from keras_psp.models._own_model import OwnModel
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery._compressed import fit_more_models
from keras_psp.surgery._compressed import hold_more
from keras_psp.surgery._compressed import is_compressed
from keras_psp.surgery._embeddings import is_rounded
from keras_psp.surgery._embeddings import rounds
from keras_psp.surgery._factors import has_factors
from keras_psp.surgery._factors import hold_factors
from keras_psp.surgery._kernel import RIDGE
from keras_psp.surgery._kernel import InputProbes
from keras_psp.surgery._kernel import Kernel
from keras_psp.surgery.extract import build_plain


def add_models(
    model: TaskModel,
    models: Sequence[Any] | Mapping[str, Any],
    data: Sequence[Any] | Mapping[str, Any] | None = None,
    ridge: float | None = None,
    base: keras.Model | None = None,
) -> TaskModel:
    """Adds trained models to a superposed one, as new tasks.

    They get the indices of tasks that were removed, and then those behind the present
    tasks; see `TaskModel.add_tasks()`.

    ```
    W <- W + sum_k C_k^T (W_k - W_0)
    ```

    Without `data`, the kernels change by this sum, which the present tasks see as
    noise; everything else that they have stays as it is, bit for bit, and
    `remove_models()` undoes the sum.

    With `data`, the kernels, the base's among them, are fitted once more as
    `superpose()` does: to the new models for the new tasks, and to what the model
    computes now for the present tasks. Use it if the model was superposed with data.
    Where the data of a present task are missing, those of the new tasks stand in for
    them.

    A model without contexts that has a base and a part of low rank for each task, of
    `superpose(bits=32)` or `convert(context=None)`, gets the factors nearest to what
    the new models add to the base.

    Args:
        model: `keras_psp.models.TaskModel` that `superpose()` or `convert()` made. It
            is changed.
        models: List of built Keras models of the architecture of `extract(model, 0)`.
            Their heads may have other numbers of outputs, up to the widest task's. If
            the tasks have names, a dictionary of the models by the new tasks' names.
        data: List of one set of unlabelled inputs for each new task, or for each task,
            the present ones first, both in order; as `superpose()` takes them. Or a
            dictionary of the new tasks' by name. Or `None`.
        ridge: Non-negative float, with `data`; see `superpose()`.
        base: The model that LoRA adapters belong to, if there are paths of such among
            the `models`; see `keras_psp.surgery.with_adapter()`. Or `None`.

    Returns:
        The model itself, with one more task for each of the models.

    Raises:
        TypeError: `model` takes no task; one of `models` is not a Keras model; `data`
            holds no arrays.
        ValueError: There is no model; one has another architecture, or other weights
            where tasks share them, or a kernel that is not finite; the contexts cannot
            hold so many tasks; `data` has another length, or does not fit the model's
            inputs. The model is then as it was.

    Warns:
        UserWarning: The model was fitted to data, and `data` is missing. It says how
            much the outputs of the present tasks change.

    Example:

    >>> import keras, keras_psp
    >>> models = [
    ...     keras.Sequential([keras.Input((64,), name="x"), keras.layers.Dense(2)])
    ...     for _ in range(4)
    ... ]
    >>> one = keras_psp.superpose(models[:3], context="fast_rotation")
    >>> keras_psp.surgery.add_models(one, models[3:]).num_tasks
    4

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 1.
    """
    models, names = split_names("models", models)
    models = as_models(models, base)
    pairs, graphs, heads = _pair(model, models)
    _check_names(model.task_names, names)
    tasks = len(models) if names is None else names
    given: Any = in_order("data", data, names)
    if ridge is not None:
        ridge = check_number("ridge", ridge)
    present, new = model.present_tasks, model.next_tasks(len(models))
    layers = [layer for layer, _ in pairs if isinstance(layer, Superposed)]
    if layers and all(map(is_compressed, layers)):
        _add_compressed(model, tasks, graphs, pairs, heads, given, ridge)
        return _name_classes(model, models, new)
    if given is None and layers and all(map(has_factors, layers)):
        with _undone_if_it_fails(model, pairs):
            model.add_tasks(tasks)
            with model.weights_moved():
                for layer, plains in pairs:
                    set_task_weights(layer, plains, new)
                    if isinstance(layer, Superposed):
                        hold_factors(layer, plains, new)
        return _name_classes(model, models, new)
    _check_contexts(layers)
    if given is None:
        if model.fitted_to_data:
            _warn_of_leak(model, pairs, new)
        held = []
    else:
        given = _read_data(model, len(models), given)
        before = [
            dict(_by_id(build_plain(model, k, is_whole=True)[1])) for k in present
        ]
        held = [
            (layer, [*(each[id(layer)] for each in before), *plains])
            for layer, plains in pairs
        ]
    with _undone_if_it_fails(model, pairs):
        model.add_tasks(tasks)
        with model.weights_moved():
            for layer, plains in pairs:
                set_task_weights(layer, plains, new)
                if isinstance(layer, Superposed):
                    Kernel(layer, plains, new).add_up()
            _cut(heads, new)
            if given is not None:
                kernels = [
                    Kernel(*each, [*present, *new])
                    for each in held
                    if isinstance(each[0], Superposed)
                ]
                probes = InputProbes(model, held)
                for kernel in kernels:  # Each sees what the ones before it now give.
                    kernel.fit(probes, given, RIDGE if ridge is None else ridge)
                model.fitted_to_data = True
    return _name_classes(model, models, new)


def _check_names(known, names):
    """Raises a `ValueError` if new names do not fit those of the present tasks."""
    if names is None and known is not None:
        raise ValueError(
            "The tasks of the model have names: give the new models as a dictionary by "
            f"name. Received: a list, for tasks {list(known)}"
        )
    if names is not None:
        if known is None:
            raise ValueError(
                "The tasks of the model have no names, and new ones cannot have any. "
                f"Received: models {list(names)}"
            )
        check_task_names((*filter(None, known), *names))


def _name_classes(model, models, new):
    """Returns the model, which knows the names of the new tasks' outputs."""
    known = list(model.class_names or [None] * model.num_tasks)
    for task, each in zip(new, models, strict=True):
        known[task] = getattr(each, "class_names", None)
    model.class_names = known
    return model


def _add_compressed(model, tasks, graphs, pairs, heads, data, ridge):
    if data is not None:
        data = _read_data(model, len(graphs), data)[-len(graphs) :]
    fitted = fit_more_models(pairs, graphs, data, ridge)
    new = model.next_tasks(len(graphs))
    with _undone_if_it_fails(model, pairs):
        model.add_tasks(tasks)
        with model.weights_moved():
            for layer, plains in pairs:
                set_task_weights(layer, plains, new)
            for layer, parts, biases in fitted:
                hold_more(layer, parts, biases, new)
        _cut(heads, new)


def _cut(heads, new):
    """Tells layers how many outputs each of the new tasks has."""
    for layer, units in heads:
        every = [layer.units_of(task) for task in range(layer.num_tasks)]
        for task, number in zip(new, units, strict=True):
            every[task] = number
        layer.set_units_per_task(every)


def _check_contexts(layers):
    for layer in layers:
        if layer.context is None:
            raise ValueError(
                "A layer without a superposed kernel can take more models if all its "
                "parts are in few bits, as `superpose(budget=)` makes them, or "
                "without `data`, if it holds a base and factors alone. Received: "
                f"{layer.name!r}"
            )


def remove_models(
    model: TaskModel, models: Sequence[keras.Model] | Mapping[str, keras.Model]
) -> TaskModel:
    """Removes trained models from a superposed one, and their tasks.

    ```
    W <- W - sum_k C_k^T (W_k - W_0)
    ```

    The kernels are then what they would be without these tasks, except for float32
    rounding, unless the tasks have been trained since. Kernels that were fitted to data
    stay as they are, and so do the answers of the other tasks.

    Args:
        model: `keras_psp.models.TaskModel`. It is changed.
        models: List of built Keras models: the model's last tasks, in their order. Or a
            dictionary of them by the names of their tasks, which may be any: unless
            they are the last ones, their indices stay free (see
            `TaskModel.remove_task()`).

    Returns:
        The model itself, with one task less for each of the models.

    Raises:
        TypeError: `model` takes no task; one of `models` is not a Keras model.
        ValueError: There is no model; one has another architecture, or other biases,
            scales or statistics than the task has (biases beside kernels in few bits
            are not compared); a task was removed already; no task would be left; the
            optimizer cannot follow. The model is then as it was.

    Example:

    >>> import keras, keras_psp
    >>> models = [
    ...     keras.Sequential([keras.Input((64,), name="x"), keras.layers.Dense(2)])
    ...     for _ in range(4)
    ... ]
    >>> one = keras_psp.superpose(models, context="fast_rotation")
    >>> keras_psp.surgery.remove_models(one, models[2:]).num_tasks
    2

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 1.
    """
    models, names = split_names("models", models)
    pairs, *_ = _pair(model, models)
    first = model.num_tasks - check_fewer_tasks(len(models), model.num_tasks)
    tasks = last = list(range(first, model.num_tasks))
    if names is not None:
        tasks = [model.task_index(name) for name in names]
    gone = sorted(set(tasks) & set(model.removed_tasks))
    if gone:
        raise ValueError(
            f"`models` must be the last tasks of {model.name!r}. Received: "
            f"{len(tasks)} models, where the tasks {gone} were removed already"
        )
    if len(tasks) == len(model.present_tasks):
        raise ValueError(
            f"A model must keep at least one task. Received: all {len(tasks)} models "
            f"of {model.name!r}"
        )
    for layer, plains in pairs:
        if is_compressed(layer):
            continue  # Its biases were fitted, or its kernels rounded.
        if differs(layer, plains, own=True, tasks=tasks):
            which = "the last tasks" if names is None else "these tasks"
            raise ValueError(
                f"`models` must be {which} of {model.name!r}. Received: models "
                f"that have other weights in {layer.name!r} than these tasks"
            )
    model.check_can_change(len(tasks))
    if not model.fitted_to_data:
        with model.weights_moved():
            for layer, plains in pairs:
                if isinstance(layer, Superposed) and layer.context is not None:
                    Kernel(layer, plains, tasks).add_up(sign=-1)
    if sorted(tasks) == last:
        return model.remove_tasks(n=len(models))
    for task in tasks:
        model.remove_task(task)
    return model


def _pair(model, models):
    """Returns which layers of a model stand for which of other models.

    Returns:
        `(pairs, graphs, heads)`: the layers that take a task, each with the same layer
        of every model; what is read of these models; and layers of which the models
        have other numbers of outputs, each with a list of these.
    """
    if not isinstance(models, (list, tuple)) or not models:
        raise ValueError(
            f"`models` must be a list of Keras models. Received: models={models!r}"
        )
    plain, pairs = build_plain(model, _any_task(model), is_whole=True)
    graphs = [merge_lora(read_model(each)) for each in (plain, *models)]
    found_heads = Heads(graphs)
    if found_heads.reads[0] is not graphs[0]:
        raise ValueError(
            f"`models` must have no more outputs than the widest task of {model.name!r}"
            f". Received: models with {list(found_heads.units.values())} outputs, the "
            "model itself first"
        )
    graphs = found_heads.reads
    check_same_architecture(graphs)
    copied = [copy for layer, copy in pairs if isinstance(layer, TaskCopies)]
    same = same_leaves(alike_layers(graphs, copied))
    found, heads = [], []
    for layer, copy in pairs:
        if id(copy) in found_heads.units:
            heads.append((layer, found_heads.units[id(copy)][1:]))
        is_held = bool(
            copy.weights if isinstance(layer, TaskCopies) else weights_of(copy)
        )
        if id(copy) not in same or not is_held:
            continue
        plains = same[id(copy)][1:]
        if isinstance(layer, PSPComplexDense):
            raise ValueError(
                "Pairs of inputs have no kernel of complex numbers. Received: "
                f"{layer.name!r}, a {type(layer).__name__}"
            )
        if isinstance(layer, TaskLayer):
            found.append((layer, plains))
            shared_differ = differs(layer, plains, own=False)
        elif is_rounded(layer):
            shared_differ = not all(rounds(layer, each) for each in plains)
        else:
            shared_differ = not all_equal([copy, *plains])
        if shared_differ:
            raise ValueError(
                f"The tasks of {model.name!r} share the weights of {layer.name!r} "
                "except for its kernel. Received: models with others"
            )
    return found, graphs[1:], heads


def _any_task(model):
    """A task of the model; or 0 of what is none, which is then refused."""
    return next(iter(getattr(model, "present_tasks", ())), 0)


def _by_id(pairs):
    return [(id(layer), copy) for layer, copy in pairs]


def _read_data(model, number, data):
    """Returns a dictionary of arrays for each task, the present and the new ones."""
    first = len(model.present_tasks)
    if not isinstance(data, (list, tuple)) or len(data) not in (number, first + number):
        raise ValueError(
            f"`data` must be a list of inputs for each of {number} new tasks, or of "
            f"all {first + number} tasks. Received: "
            + (f"{len(data)} sets" if hasattr(data, "__len__") else repr(data))
        )
    is_own = isinstance(model, OwnModel)
    graph = read_model(model.original()) if is_own else Graph(model, takes_task=True)
    inputs = {name: graph.inputs[name] for name in graph.names}
    data = [
        read_inputs(without_text(model, each), inputs, name=f"data[{i}]")
        for i, each in enumerate(data)
    ]
    if len(data) == number:
        every = {name: np.concatenate([x[name] for x in data]) for name in inputs}
        data = [every] * first + data
    return data


def _warn_of_leak(model, pairs, new):
    leaks = {
        layer.name: Kernel(layer, plains, new).expected_leak(model.present_tasks)
        for layer, plains in pairs
        if isinstance(layer, Superposed)
    }
    name = max(leaks, key=leaks.get, default=None)
    if name is not None:
        warnings.warn(
            f"The kernels of {model.name!r} were fitted to data. Models that are added "
            "without `data` disturb the present tasks: expect their outputs to change "
            f"by about {100 * leaks[name]:.0f} % in the layer {name!r}.",
            stacklevel=3,
        )


@contextlib.contextmanager
def _undone_if_it_fails(model: TaskModel, pairs: Any) -> Iterator[None]:
    """Takes out again what was added to a model, if what is done inside fails."""
    first, removed = model.num_tasks, model.removed_tasks
    before = [
        (kernel, ops.convert_to_numpy(kernel).copy())
        for layer, _ in pairs
        if isinstance(layer, Superposed)
        for kernel in (layer.kernel, layer.base_kernel)
        if isinstance(kernel, keras.Variable)  # Codes do not change.
    ]
    try:
        yield
    except BaseException:
        for kernel, values in before:
            kernel.assign(values)
        if model.num_tasks > first:
            model.remove_tasks(n=model.num_tasks - first)
        for task in set(removed) - set(model.removed_tasks):
            model.remove_task(task)
        raise
