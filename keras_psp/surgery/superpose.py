"""K finished models -> one."""

import numpy as np

from keras_psp._core.checks import check_number
from keras_psp._reading.counterparts import can_convert
from keras_psp._reading.counterparts import check_context
from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.counterparts import set_new_rows
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import as_inputs
from keras_psp._reading.graph import copy_weights
from keras_psp._reading.same_architecture import all_equal
from keras_psp._reading.same_architecture import check_same_architecture
from keras_psp.contexts.families import series
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._task_rows import TaskRows
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery._build_superposed import build_superposed
from keras_psp.surgery._kernel import InputProbes
from keras_psp.surgery._kernel import Kernel


def superpose(
    models, context="binary", base=None, data=None, ridge=1e-3, context_over="kernel"
) -> TaskModel:
    """Stores K trained models of one architecture in one.

    The kernels of each layer are bound and added up,

    ```
    W = sum_k C_k^T W_k,  and read:  C_j W = W_j + sum_(k != j) C_j C_k^T W_k
    ```

    whose second term is what the other tasks leak in. With `base`, the model that all
    have been trained from, only their differences `W_k - W_0` are: they are far smaller
    than the kernels, and so is what leaks. Of attention these are the kernels of its
    projections. Everything that is no such kernel (biases, scales, statistics,
    depthwise kernels) each task keeps as it is.

    With `data`, the sum is replaced by the kernels that answer best, layer after layer:
    those whose outputs, for the inputs which the layers before give, are nearest to
    what each task's own model has there. With a base that is a change `B` of the base's
    kernel and a kernel `W` under contexts, the least squares solution of

    ```
    sum_k |X_k (B + C_k W) - Y_k|^2 / n + r_k |B + C_k W - D_k|^2 + r_k |B|^2
    r_k = ridge tr(X_k^T X_k / n) / M
    ```

    where `X_k` are the n inputs of the layer in the superposed model, `Y_k` what is
    missing from the base's outputs, and `D_k` the difference of the kernels. Without a
    base it is `W` alone,

    ```
    (sum_k C_k^T G_k C_k) W = sum_k C_k^T (X_k^T Y_k / n + r_k W_k)
    G_k = X_k^T X_k / n + r_k I
    ```

    Args:
        models: List of at least two Keras models, functional or sequential, built, of
            one architecture. They stay as they are. Model k is task k.
        context: Name of a context family, or a `keras_psp.contexts.Context` of as many
            tasks as there are models, which shows what each layer's own is to be, but
            for its seed. Defaults to `"binary"`.
        base: The model that the others were trained from; or `None`.
        data: List of one set of unlabelled inputs for each task: an array, a list or
            dictionary of arrays if the model has several inputs, or batches of these. A
            few hundred examples each are enough. Or `None`.
        ridge: Non-negative float, with `data`: how much of a layer's mean squared input
            is added to the diagonal, for inputs that the data do not show. With 0 the
            data must show all.
        context_over: What contexts of convolutions act on: `"kernel"`, as in the paper,
            or `"channels"`, which is faster where a batch holds many tasks, and
            leaks more. See `keras_psp.layers.PSPConv2D`.

    Returns:
        A `keras_psp.models.TaskModel`, not compiled. Inputs: a dictionary of the
        models', by name, and `"task"`, int32 `(batch,)`. Outputs: the models'. It has
        the memory of one model, or with `base` of two, and each task's own weights.

    Raises:
        TypeError: One of the models is not a Keras model; `data` is not as above.
        ValueError: There are fewer than two models, or not as many data; the data have
            no example, labels, or are not finite; a model is not built, neither
            functional nor sequential, or differs in a layer or in how it is called; the
            ridge is 0 and the data do not show all inputs of a layer; a
            layer without a counterpart here has other weights in each; a layer is
            quantized or has a LoRA.

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
    graphs = _check(models, base)
    check_number("ridge", ridge)
    seed = check_context(context, context_over)
    if data is not None:
        data = list(data)
        if len(data) != len(models):
            raise ValueError(
                "`data` must hold inputs for each of the models. "
                f"Received: {len(data)} sets of inputs for {len(models)} models"
            )
        data = [as_inputs(graphs[0], each) for each in data]
    chosen = [layer for layer in graphs[0].layers if can_convert(layer)]
    contexts = series(context, len(models), len(chosen), seed=seed)
    with_base = base is not None
    one, pairs = build_superposed(graphs[0], chosen, contexts, with_base, context_over)
    alike = {
        id(layers[0]): layers
        for layers in zip(*(leaf_layers(graph.layers) for graph in graphs), strict=True)
    }
    kept, kernels = [], []
    for layer, twin in pairs:
        if isinstance(twin, (Superposed, TaskRows)):
            layers = alike[id(layer)][: len(models)]
            if isinstance(twin, Superposed):
                twin.kernel.assign(np.zeros(twin.kernel.shape))
                if base is not None:
                    twin.base_kernel.assign(alike[id(layer)][-1].get_weights()[0])
                kernels.append(Kernel(twin, layers))
            set_task_weights(twin, layers)
            if base is not None:
                set_new_rows(twin, alike[id(layer)][-1])
            kept.append((twin, layers))
        else:
            copy_weights(layer, twin)
    for kernel in kernels:
        kernel.add_up()
    if data is not None:
        taps = InputProbes(one, kept)
        for kernel in kernels:  # Each sees what the ones before it now give.
            kernel.fit(taps, data, ridge)
    return one


def _check(models, base):
    """Returns the `Graph`s of the models, and of the base behind them."""
    if not isinstance(models, (list, tuple)) or len(models) < 2:
        raise ValueError(
            "`models` must be a list of at least two Keras models. "
            f"Received: models={models!r}"
        )
    graphs = [Graph(model) for model in (*models, *([] if base is None else [base]))]
    check_same_architecture(graphs)
    for layers in zip(*(graph.layers for graph in graphs), strict=True):
        if not can_convert(layers[0]) and not all_equal(layers):
            raise ValueError(
                f"A {type(layers[0]).__name__} has no counterpart that keeps weights "
                f"for each task, and {layers[0].name!r} has others in each model."
            )
    if not any(map(can_convert, graphs[0].layers)):
        raise ValueError(f"No layer of {graphs[0].name!r} can be superposed.")
    return graphs
