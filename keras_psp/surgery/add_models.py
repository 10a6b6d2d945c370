"""Trained models -> into a superposed one, and out again."""

from keras_psp._core.checks import check_fewer_tasks
from keras_psp._reading.counterparts import differs
from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import Graph
from keras_psp._reading.same_architecture import all_equal
from keras_psp._reading.same_architecture import check_same_architecture
from keras_psp.layers import PSPComplexDense
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._task_layer import TaskLayer
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery._kernel import Kernel
from keras_psp.surgery.extract import build_plain


def add_models(model, models) -> TaskModel:
    """Adds trained models to a superposed one, as tasks behind its own.

    ```
    W <- W + sum_k C_k^T (W_k - W_0)
    ```

    What the model's tasks read changes by what leaks in from the new ones, no more; all
    else they have stays as it is, bit for bit. `remove_models()` undoes it.

    Args:
        model: `keras_psp.models.TaskModel` that `superpose()` or `convert()` made. It
            is changed.
        models: List of Keras models of its architecture, built: what
            `extract(model, 0)` is.

    Returns:
        The model itself, with a task more for each of them.

    Raises:
        TypeError: `model` takes no task; one of `models` is not a Keras model.
        ValueError: There is no model; one is of another architecture, or differs where
            tasks share what is no kernel; the contexts cannot hold so many tasks.

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
    pairs = _pair(model, models)
    first = model.num_tasks
    model.add_tasks(len(models))
    for layer, plains in pairs:
        set_task_weights(layer, plains, first)
        if isinstance(layer, Superposed):
            Kernel(layer, plains, first).add_up()
    return model


def remove_models(model, models) -> TaskModel:
    """Removes trained models from a superposed one, of which they are the last tasks.

    ```
    W <- W - sum_k C_k^T (W_k - W_0)
    ```

    The kernels are then what they would be without these tasks, but for float32's
    rounding, unless the tasks have been fitted to data or trained since.

    Args:
        model: `keras_psp.models.TaskModel`. It is changed.
        models: List of Keras models, built: the model's last tasks, in their order.

    Returns:
        The model itself, with a task less for each of them.

    Raises:
        TypeError: `model` takes no task; one of `models` is not a Keras model.
        ValueError: There is no model; one is of another architecture, or has other
            biases, scales or statistics than the task has; no task would be left.

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
    pairs = _pair(model, models)
    first = model.num_tasks - check_fewer_tasks(len(models), model.num_tasks)
    for layer, plains in pairs:
        if differs(layer, plains, own=True, first=first):
            raise ValueError(
                f"`models` must be the last tasks of {model.name!r}. Received: models "
                f"that have other weights in {layer.name!r} than these tasks"
            )
    for layer, plains in pairs:
        if isinstance(layer, Superposed):
            Kernel(layer, plains, first).add_up(sign=-1)
    return model.remove_tasks(len(models))


def _pair(model, models):
    """Returns the layers that take a task, each with its like in every model."""
    if not isinstance(models, (list, tuple)) or not models:
        raise ValueError(
            f"`models` must be a list of Keras models. Received: models={models!r}"
        )
    plain, pairs = build_plain(model, 0)
    graphs = [Graph(each) for each in (plain, *models)]
    check_same_architecture(graphs)
    alike = {
        id(layers[0]): layers[1:]
        for layers in zip(*(leaf_layers(graph.layers) for graph in graphs), strict=True)
    }
    found = []
    for layer, copy in pairs:
        if id(copy) not in alike:
            continue  # An operation that is no layer.
        plains = alike[id(copy)]
        if isinstance(layer, PSPComplexDense):
            raise ValueError(
                "Pairs of inputs have no kernel of complex numbers. Received: "
                f"{layer.name!r}, a {type(layer).__name__}"
            )
        if isinstance(layer, TaskLayer):
            found.append((layer, plains))
            shared_differ = differs(layer, plains, own=False)
        else:
            shared_differ = not all_equal([copy, *plains])
        if shared_differ:
            raise ValueError(
                f"The tasks of {model.name!r} share the weights of {layer.name!r} but "
                "for its kernel. Received: models with others"
            )
    return found
