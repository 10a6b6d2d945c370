"""K finished models -> one."""

from itertools import zip_longest

import keras
import numpy as np

from keras_psp.contexts import Context
from keras_psp.contexts.families import series
from keras_psp.layers.superposed import Superposed
from keras_psp.layers.task_rows import TaskRows
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery.counterparts import can_convert
from keras_psp.surgery.counterparts import is_altered
from keras_psp.surgery.counterparts import set_task_weights
from keras_psp.surgery.graph import all_layers
from keras_psp.surgery.graph import as_functional
from keras_psp.surgery.graph import as_inputs
from keras_psp.surgery.graph import inputs_of_layers
from keras_psp.surgery.kernel import Kernel
from keras_psp.surgery.twin import build_twin


def superpose(models, context="binary", base=None, data=None, ridge=1e-3) -> TaskModel:
    """Stores K trained models of one architecture in one.

    The kernels of each layer are bound and added up,

    ```
    W = sum_k C_k^T W_k,  and read:  C_j W = W_j + sum_(k != j) C_j C_k^T W_k
    ```

    whose second term is what the other tasks leak in. With `base`, the model that all
    have been trained from, only their differences `W_k - W_0` are: they are far smaller
    than the kernels, and so is what leaks. Everything that is no kernel (biases,
    scales, statistics) each task keeps as it is.

    With `data`, the sum is replaced by the kernel that answers best, layer after layer:
    the one whose outputs, for the inputs which the layers before it give it, are
    nearest to what the task's own model has there,

    ```
    (sum_k C_k^T G_k C_k) W = sum_k C_k^T (X_k^T Y_k / n + r_k D_k)
    G_k = X_k^T X_k / n + r_k I,  r_k = ridge tr(X_k^T X_k / n) / M
    ```

    where `X_k` are the n inputs of the layer in the superposed model, `Y_k` what it is
    to add to the base's outputs, and `D_k` the difference of the kernels.

    Args:
        models: List of at least two Keras models, functional or sequential, built, of
            one architecture. They stay as they are. Model k is task k.
        context: Name of a context family, or a `keras_psp.contexts.Context` of as many
            tasks as there are models, which shows what each layer's own is to be, but
            for its seed. Defaults to `"binary"`.
        base: The model that the others were trained from; or `None`.
        data: List of one set of unlabelled inputs for each task: arrays, as the model
            takes them. A few hundred examples each are enough. Or `None`.
        ridge: Non-negative float, with `data`: how much of a layer's mean squared input
            is added to the diagonal, for inputs that the data do not show.

    Returns:
        A `keras_psp.models.TaskModel`, not compiled. Inputs: a dictionary of the
        models', by name, and `"task"`, int32 `(batch,)`. Outputs: the models'. It has
        the memory of one model, or with `base` of two, and each task's own weights.

    Raises:
        TypeError: One of the models is not a Keras model.
        ValueError: There are fewer than two models, or not as many data; a model is not
            built, neither functional nor sequential, or differs in a layer; a layer
            without a counterpart here has other weights in each; a layer is quantized
            or has a LoRA.

    Example:

    >>> import keras, keras_psp
    >>> models = [
    ...     keras.Sequential([keras.Input((64,), name="x"), keras.layers.Dense(2)])
    ...     for _ in range(3)
    ... ]
    >>> one = keras_psp.superpose(models, context="rotation")
    >>> one.num_tasks, one.count_params() < sum(m.count_params() for m in models)
    (3, False)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equations 1 and 2. The
        fit is that of RegMean ([Jin et al., 2023](https://arxiv.org/abs/2212.09849),
        equation 2), under contexts.
    """
    plain = _check(models, base)
    if data is not None and len(data) != len(models):
        raise ValueError(
            "`data` must hold inputs for each of the models. "
            f"Received: {len(data)} sets of inputs for {len(models)} models"
        )
    seed = context.seed if isinstance(context, Context) else 0
    chosen = [layer for layer in all_layers(plain[0]) if can_convert(layer)]
    contexts = series(context, len(models), len(chosen), seed=seed)
    one, pairs = build_twin(plain[0], chosen, contexts, base=base is not None)
    alike = dict(
        zip(
            map(id, all_layers(plain[0])),
            zip(*map(all_layers, plain), strict=True),
            strict=True,
        )
    )
    kernels = []
    for layer, twin in pairs:
        if isinstance(twin, (Superposed, TaskRows)):
            layers = alike[id(layer)][: len(models)]
            if isinstance(twin, Superposed):
                of_base = None if base is None else alike[id(layer)][-1]
                kernels.append(Kernel(twin, layers, of_base))
            for task, each in enumerate(layers):
                set_task_weights(twin, task, each)
        elif getattr(layer, "weights", None):
            twin.set_weights(layer.get_weights())
    for kernel in kernels:
        kernel.add_up()
    if data is not None:
        inputs = [as_inputs(plain[0], each) for each in data]
        here = inputs_of_layers(one)
        there = [inputs_of_layers(model) for model in plain[: len(models)]]
        for kernel in kernels:  # Each sees what the ones before it now give.
            kernel.fit(here, there, inputs, ridge)
    return one


def _check(models, base):
    """Returns the models, and the base behind them, as functional ones of a dict."""
    if not isinstance(models, (list, tuple)) or len(models) < 2:
        raise ValueError(
            "`models` must be a list of at least two Keras models. "
            f"Received: models={models!r}"
        )
    plain = [
        as_functional(model) for model in (*models, *([] if base is None else [base]))
    ]
    first, *others = [all_layers(model) for model in plain]
    for layers in others:
        for layer, other in zip_longest(first, layers):
            if layer is None or other is None or _describe(layer) != _describe(other):
                name = (layer or other).name
                raise ValueError(
                    "The models must be of one architecture. The first layer that "
                    f"differs is {name!r}."
                )
    for layers in zip(first, *others, strict=True):
        if is_altered(layers[0]):
            raise ValueError(
                "A layer that is quantized or has a LoRA cannot be superposed. "
                f"Received: {layers[0].name!r}"
            )
        if not can_convert(layers[0]) and not _all_equal(layers):
            raise ValueError(
                f"A {type(layers[0]).__name__} has no counterpart that keeps weights "
                f"for each task, and {layers[0].name!r} has others in each model."
            )
    if not any(can_convert(layer) for layer in first):
        raise ValueError(f"No layer of {plain[0].name!r} can be superposed.")
    return plain


def _describe(layer):
    """What two layers must have in common: all but names and beginnings."""
    if not isinstance(layer, keras.layers.Layer):
        return type(layer), layer.name
    config = {
        key: value
        for key, value in layer.get_config().items()
        if key not in ("name", "trainable", "seed") and "initializer" not in key
    }
    return type(layer), config, [tuple(weight.shape) for weight in layer.weights]


def _all_equal(layers):
    weights = [getattr(layer, "weights", ()) for layer in layers]
    return all(
        np.array_equal(*map(keras.ops.convert_to_numpy, pair))
        for others in weights[1:]
        for pair in zip(weights[0], others, strict=True)
    )
