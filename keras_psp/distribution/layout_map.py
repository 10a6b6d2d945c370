"""Which device holds which part of a model's weights."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras

from keras_psp._core.checks import check_name
from keras_psp._core.private import names_kept
from keras_psp._core.task_rows import is_task_rows

BANKS = ("tasks", "inputs")


def layout_map(
    model: keras.Model | Callable[[], keras.Model],
    mesh: keras.distribution.DeviceMesh,
    axis: str = "model",
    banks: str = "tasks",
) -> keras.distribution.LayoutMap:
    """Returns the layout of a model whose weights are spread over devices, on JAX.

    It is for `keras.distribution.ModelParallel`. Every device along `axis` holds an
    equal part of

    - each bank, which is a weight with a row for each task (contexts, low-rank factors,
      cores, kernels, heads, statistics and biases per task): some of the tasks, or with
      `banks="inputs"` some of the inputs of every task (where the devices do not
      divide them, some of the outputs);
    - each other weight of two dimensions or more: some of its outputs, the last
      dimension. If the devices do not divide it, each holds the whole weight.

    Contexts that are computed from their seed have no weight and stay where they are
    needed. Keras gives the variables of an optimizer, and those of a consolidation, the
    layout of the weights that they belong to.

    Keras decides where a weight lies when it is made. The model must therefore be
    built under the distribution, with the names of the layers that the layout is for:
    by the function that is given here, or, for a model, by `keras.models.clone_model()`
    or `keras.models.load_model()`.

    Args:
        model: A built model; or a function without arguments that builds it. The
            function runs once here, without any weights in memory.
        mesh: The `keras.distribution.DeviceMesh`.
        axis: Name of the dimension of `mesh` that the weights are spread over.
        banks: `"tasks"` or `"inputs"`, what the devices share of each bank.

    Returns:
        A `keras.distribution.LayoutMap`, with one entry for the path of each weight
        that is spread.

    Raises:
        ValueError: `mesh` has no such `axis`; `banks` is neither of the two; with
            `banks="tasks"`, the devices do not divide the tasks; the model is not
            built.

    Example:

    >>> import keras, keras_psp
    >>> def build():
    ...     return keras_psp.models.mlp((4,), num_classes=3, num_tasks=8)
    >>> devices = [f"cpu:{i}" for i in range(8)]  # Or `list_devices()`, on JAX.
    >>> mesh = keras.distribution.DeviceMesh((2, 4), ["batch", "model"], devices)
    >>> layouts = keras_psp.distribution.layout_map(build, mesh)
    >>> layouts["dense_0/context/contexts"].axes
    ('model', None)
    """
    check_name("banks", banks, BANKS)
    if axis not in mesh.axis_names:
        raise ValueError(
            f"`mesh` must have an axis {axis!r}. Received: a mesh of axes "
            f"{list(mesh.axis_names)}"
        )
    devices = mesh.shape[list(mesh.axis_names).index(axis)]
    if not isinstance(model, keras.Model):
        with names_kept(), keras.StatelessScope(initialize_variables=False):
            model = model()
    layouts = keras.distribution.LayoutMap(mesh)
    for variable in model.variables:
        place = _find_spread_dimension(variable, devices, banks)
        if place is not None:
            layouts[variable.path] = tuple(
                axis if i == place else None for i in range(len(variable.shape))
            )
    return layouts


def _find_spread_dimension(variable: Any, devices: int, banks: str) -> int | None:
    """Returns the dimension that the devices share; `None` if each holds all."""
    shape = tuple(variable.shape)
    places: Sequence[int]
    if not is_task_rows(variable):
        places = [len(shape) - 1] if len(shape) > 1 else []
    elif banks == "inputs":
        places = range(1, len(shape))
    elif shape[0] % devices:
        raise ValueError(
            "The number of devices must divide the number of tasks. Received: "
            f"{devices} devices, {shape[0]} tasks in {variable.path!r}"
        )
    else:
        return 0
    return next((place for place in places if shape[place] % devices == 0), None)
