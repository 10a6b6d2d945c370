"""K trained models -> one superposed model."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_psp._core.checks import check_list
from keras_psp._core.checks import check_number
from keras_psp._core.data import read_inputs
from keras_psp._core.task_index import in_order
from keras_psp._core.task_index import split_names
from keras_psp._reading.adapters import as_models
from keras_psp._reading.counterparts import check_context
from keras_psp._reading.counterparts import make_superposed
from keras_psp._reading.counterparts import make_task_dense
from keras_psp._reading.counterparts import set_new_rows
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import copy_weights
from keras_psp._reading.graph import read_model
from keras_psp._reading.heads import Heads
from keras_psp._reading.lora import merge_lora
from keras_psp._reading.plan import plan_models
from keras_psp._reading.plan import same_leaves
from keras_psp._reading.same_architecture import check_same_architecture
from keras_psp._reading.text import without_text
from keras_psp.contexts.context import Context
from keras_psp.contexts.families import series
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._task_low_rank import FULL
from keras_psp.layers._task_rows import TaskRows
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery._advise import advise_of_noise
from keras_psp.surgery._build_superposed import build_superposed
from keras_psp.surgery._compressed import Walk
from keras_psp.surgery._compressed import check_can_compress
from keras_psp.surgery._compressed import compress
from keras_psp.surgery._factors import FLOATS
from keras_psp.surgery._factors import keep_factors
from keras_psp.surgery._kernel import RIDGE
from keras_psp.surgery._kernel import InputProbes
from keras_psp.surgery._kernel import Kernel
from keras_psp.surgery._parts import Form
from keras_psp.surgery.extract import extract


def superpose(
    models: TaskModel | Sequence[Any] | Mapping[str, Any],
    context: str | Context = "binary",
    base: keras.Model | None = None,
    data: Sequence[Any] | Mapping[str, Any] | None = None,
    ridge: float | None = None,
    context_over: str = "kernel",
    rank: int | str | None = None,
    core: int | tuple[int, int] | None = None,
    bits: int | dict[str, int] | None = None,
    budget: float | None = None,
) -> TaskModel:
    """Stores K trained models of one architecture in one model.

    The kernels of each layer are bound and added up,

    ```
    W = sum_k C_k^T W_k,  and read:  C_j W = W_j + sum_(k != j) C_j C_k^T W_k
    ```

    The second term is the interference of the other tasks. With `base`, the model that
    all were trained from, only the differences `W_k - W_0` are added up. They are much
    smaller than the kernels, and so is the interference. In attention these are the
    kernels of the projections. Everything else (biases, scales, statistics, depthwise
    kernels) is kept for each task as it is.

    With `data`, the sum is replaced by a least squares fit, layer after layer: the
    kernels whose outputs are nearest to those of each task's own model, for the inputs
    that the layers before give. With a base, the unknowns are a change `B` of the
    base's kernel and a kernel `W` under contexts, which minimize

    ```
    sum_k |X_k (B + C_k W) - Y_k|^2 / n + r_k |B + C_k W - D_k|^2 + r_k |B|^2
    r_k = ridge tr(X_k^T X_k / n) / M
    ```

    where `X_k` are the n inputs of the layer in the superposed model, `Y_k` the outputs
    of the task's own model minus those of the base, and `D_k` the difference of their
    kernels. Without a base, the only unknown is `W`:

    ```
    (sum_k C_k^T G_k C_k) W = sum_k C_k^T (X_k^T Y_k / n + r_k W_k)
    G_k = X_k^T X_k / n + r_k I
    ```

    With `budget`, there is no superposed kernel. Each layer keeps the tasks' kernels in
    other parts, each in 1 to 8 bits:

    ```
    W_k = W_0 + A core_k V^T + A_k B_k
    ```

    These are a base, a small core for each task between factors that all tasks share,
    and a part of low rank or a whole kernel of each task's own. `superpose()` estimates
    for each layer what one more bit would gain in each part. It chooses the forms for
    which it expects the least error of the models' outputs. Copies in few bits, and a
    base with differences in few bits, are among them. Then it fits all parts to the
    layers' inputs, layer after layer: each part is rounded, and the others are fitted
    to what it leaves. With H_k, the mean products of the derivatives of model k's
    outputs by the layer's, they minimize

    ```
    sum_k tr(H_k E_k^T G_k E_k),   E_k the error of the kernel of task k
    ```

    The inputs are taken without their means, because each task's biases make up for
    these. Where a convolution or a set of inputs gives more rows `X_k` than a fit
    needs, a random sample of them is taken.

    With `rank`, `core` or `bits`, the parts are those that they name, in all layers.
    With these or a `budget`, embeddings that are the same in all models are kept in 8
    bits, as Keras quantizes them; those that are computed in float16 stay as they are.
    Each task's own depthwise kernels are kept in 8 bits too.

    Heads may have other numbers of outputs: the last `Dense` of each model, perhaps
    before a softmax. Each task's own head is kept as it is, or as the `budget` allows.
    In a batch, the outputs that a task does not have are `-inf` before the activation,
    so that their probability is 0. `extract()` gives each task its own number. If a
    model has the attribute `class_names`, a list of strings, the new one has it too.

    Of models with Keras' LoRA, the kernels are taken with what it adds to them.

    Args:
        models: List of at least two built Keras models of one architecture, whose heads
            may be of other widths. They are not changed. Model k becomes task k. Those
            of a class of their own must be ones that `from_config(get_config())` makes
            again. Or a dictionary of them by the names that their tasks are to have.
            With a `base`, one may be the path of a LoRA adapter of the base: see
            `keras_psp.surgery.with_adapter()`. Or a model that holds all tasks, such as
            one of `keras_psp.stack()`: those that it has are extracted, in their order.
        context: Name of a context family, or a `keras_psp.contexts.Context` for as many
            tasks as there are models. Each layer gets a context like it with a seed of
            its own. Defaults to `"binary"`.
        base: The model that the others were trained from, or `None`. Its head may be of
            any width: if it is another than the models', their mean stands in for it.
        data: List of one set of unlabelled inputs for each task, or a dictionary by the
            names of the tasks. A set is an array, a list or dictionary of arrays if the
            model has several inputs, or batches of these as a list, a generator, a
            `tf.data.Dataset`, a `keras.utils.PyDataset` or a torch `DataLoader`. A few
            hundred examples of each are enough. Or `None`.
        ridge: Non-negative float, with `data`: how much of a layer's mean squared input
            is added to the diagonal, for inputs that the data do not show. With 0 the
            data must show all inputs. Defaults to 1e-3, and to 0.1 with a `budget`.
        context_over: What contexts of convolutions act on: `"kernel"`, as in the paper,
            or `"channels"`, which is faster where a batch holds many tasks but
            interferes more. See `keras_psp.layers.PSPConv2D`.
        rank: Positive integer, the rank of each task's own part beside a base, or
            `"full"` for whole kernels. A layer that is too narrow has whole kernels.
            Without a `base`, whole kernels have none beside them. Or `None`.
        core: Positive integer, or a pair of these: the size of each task's core beside
            a base. A layer that is too narrow has a smaller one. Or `None`.
        bits: Integer in [1, 8], or a dictionary of these for `"base"`, `"core"` and
            `"rank"`: the bits of each number. Defaults to 4 with `rank` or `core`.
            Without these, whole kernels of each task are kept in so many bits. Or 32,
            with a `rank` and a `base`: the base stays as it is, and what each model
            adds to it becomes factors of that rank, in float32. That is exact for
            adapters of no higher rank. Keras' LoRA of an `EinsumDense` of h heads is of
            h times its own rank.
        budget: Positive float, the memory of the whole model as a share of one of the
            models in float32: 0.25 is a quarter of one model, for all tasks.
            `rank`, `core` and `bits` are then chosen. Or `None`. With any of these
            four, the contexts are not used.

    Without `base`, `data` and `budget`, a `keras_psp.InterferenceWarning` says how
    large the noise is.

    Returns:
        A `keras_psp.models.TaskModel`, not compiled; or a model of the models' own
        class, if they have one: see `convert()`. Inputs: a dictionary of the models'
        inputs by name, and `"task"`, int32 `(batch,)`. Outputs: the models'. It takes
        the memory of one model, or of two with `base`, and each task's own weights; or
        at most the `budget`. A task that is added to it later begins with the base's
        biases, scales and statistics; with a `budget`, with all of the base, as exactly
        as the other tasks are kept.

    Raises:
        TypeError: One of the models is not a Keras model; `data` holds no arrays; an
            argument is not of its type.
        ValueError: There are fewer than two models, or not as many data; the data have
            no example or are not finite; a model is not built, or differs in a layer, a
            function, a constant or in how a layer is called; the ridge is 0 and the
            data do not show all inputs of a layer; a layer that gathers statistics has
            no counterpart here and other weights in each; they differ in a layer that
            cannot be copied, because others use its weights; a layer is quantized; the
            `budget` is too small, which names the least, or is given with `rank`,
            `core` or `bits`; `rank` or `core` is too large for all layers; `bits` is
            not in [1, 8]; a kernel is not finite. Where parts are in few bits: the
            ridge is 0, or a weight is not finite.

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
        equation 2), under contexts. With `budget`: numbers are rounded as in GPTQ
        ([Frantar et al., 2023](https://arxiv.org/abs/2210.17323)), and cores between
        shared factors are those of Compress then Serve ([Brüel-Gabrielsson et al.,
        2024](https://arxiv.org/abs/2407.00066)), fitted to the layers' inputs.
    """
    models, names = split_names("models", _each_task(models))
    models = as_models(models, base)
    graphs, heads = read_models(models, base)
    if ridge is not None:
        ridge = check_number("ridge", ridge)
    seed = check_context(context, context_over)
    has_form = not (rank is None and core is None and bits is None)
    in_few_bits = has_form or budget is not None
    plan, alike = plan_models(graphs, heads=heads, in_parts=in_few_bits)
    if not plan.chosen and not plan.copied:
        raise ValueError(
            "`models` must have a layer that can be superposed. "
            f"Received: {graphs[0].name!r}, which has none"
        )
    with_base = base is not None
    form = None
    if budget is not None:
        budget = check_number("budget", budget)
    if bits == FLOATS:
        _check_factors(base, rank, core, budget, data, ridge, heads)
        one = keep_factors(graphs[0], plan, alike, rank)
        return _with_names(one, names, models)
    if in_few_bits:
        if has_form:
            form = _read_form(rank, core, bits, budget, with_base)
        if ridge == 0:
            raise ValueError(
                "`ridge` must be positive with a `budget`, and with `rank`, `core` or "
                f"`bits`. Received: ridge={ridge}"
            )
        check_can_compress(alike)
    examples: Any = None
    if data is not None:
        data = in_order("data", data, names)
        examples = read_data_of_tasks(graphs[0], models, data)
    if in_few_bits:
        walk = Walk(graphs, plan, alike, with_base, examples, ridge)
        if form is not None:
            one = walk.fit_alike(form)
        else:
            one = compress(walk, float(budget or 0))
        return _with_names(one, names, models)
    if base is None and data is None:
        advise_of_noise(len(models))
    contexts = series(context, len(models), len(plan.chosen), seed=seed)

    def new_layer(layer):
        if id(layer) in heads.units:  # Of few outputs; other tasks' would be noise.
            return make_task_dense(layer, len(models))
        return make_superposed(
            layer, len(models), contexts.pop, with_base, context_over
        )

    one, pairs = build_superposed(graphs[0], plan, new_layer, len(models))
    held, kernels = _set_weights(pairs, same_leaves(alike), len(models), with_base)
    for kernel in kernels:
        kernel.add_up()
    if examples is not None:
        probes = InputProbes(one, held)
        for kernel in kernels:  # Each sees what the ones before it now give.
            kernel.fit(probes, examples, RIDGE if ridge is None else ridge)
        one.fitted_to_data = True
    return _with_names(one, names, models)


def _check_factors(base, rank, core, budget, data, ridge, heads):
    """Raises a `ValueError` if arguments do not fit `bits=32`."""
    if base is None or rank is None or rank == FULL:
        raise ValueError(
            "`bits=32` needs a `base` and a `rank`, a positive integer. "
            f"Received: base={base!r}, rank={rank!r}"
        )
    others = (core, budget, data, ridge)
    if any(each is not None for each in others) or heads.units:
        raise ValueError(
            "`bits=32` keeps a base and factors alone, of models with heads of one "
            "width: without `core`, `budget`, `data` and `ridge`. Received: "
            f"core={core}, budget={budget}, ridge={ridge}, heads of other widths: "
            f"{bool(heads.units)}"
        )


def _read_form(rank, core, bits, budget, with_base):
    """Returns the `Form` that arguments name, which a budget would choose."""
    if budget is not None:
        raise ValueError(
            "With a `budget`, `rank`, `core` and `bits` are chosen and cannot be "
            f"given. Received: rank={rank}, core={core}, bits={bits}"
        )
    return Form.read(rank, core, bits, with_base)


def _set_weights(pairs, same, num_tasks, with_base):
    """Gives a new model's layers all weights but the superposed kernels.

    Args:
        pairs: List of the first model's layers, each with the one that replaces it.
        same: Dictionary of a layer's counterparts in all models, the base's last, by
            the id of the first model's.
        num_tasks: Integer, the number of models without the base.
        with_base: Whether there is a base.

    Returns:
        `(held, kernels)`: the layers that hold tasks, each with the models' own; and a
        `Kernel` for each that is superposed, which is zero so far.
    """
    held, kernels = [], []
    for layer, superposed in pairs:
        if not isinstance(superposed, (Superposed, TaskRows)):
            copy_weights(layer, superposed)
            continue
        layers = same[id(layer)][:num_tasks]
        if isinstance(superposed, Superposed):
            superposed.kernel.assign(np.zeros(superposed.kernel.shape))
            if with_base:
                superposed.base_kernel.assign(same[id(layer)][-1].get_weights()[0])
            kernels.append(Kernel(superposed, layers))
        set_task_weights(superposed, layers)
        if with_base:
            set_new_rows(superposed, same[id(layer)][-1])
        held.append((superposed, layers))
    return held, kernels


def _each_task(models):
    """Returns the tasks of a model that holds them, by their names if they have any."""
    if not isinstance(models, TaskModel):
        return models
    every = {k: extract(models, k) for k in models.present_tasks}
    names = models.task_names
    return {names[k]: each for k, each in every.items()} if names else [*every.values()]


def _with_names(one, names, models):
    """Returns a model whose tasks, and their outputs, have the names that are known."""
    one.task_names = names
    one.class_names = [getattr(each, "class_names", None) for each in models]
    return one


def read_models(models, base):
    """Returns what is read of the models, and of the base behind them.

    Returns:
        `(graphs, heads)`: a list of what `read_model()` returns, of models with heads
        as wide as the widest one's; and their `Heads`.

    Raises:
        TypeError: One of the models is not a Keras model.
        ValueError: They cannot be superposed.
    """
    if not isinstance(models, (list, tuple)) or len(models) < 2:
        raise ValueError(
            "`models` must be a list of at least two Keras models. "
            f"Received: models={models!r}"
        )
    every = (*models, *([] if base is None else [base]))
    graphs = [merge_lora(read_model(each)) for each in every]
    heads = Heads(graphs, with_base=base is not None)
    check_same_architecture(heads.reads)
    return heads.reads, heads


def read_data_of_tasks(graph, models, data):
    """Returns a dictionary of arrays for each of the models.

    Raises:
        TypeError: `data` is not a list, or holds no arrays.
        ValueError: It has another length, or does not fit the inputs.
    """
    data = check_list("data", data, "one set of inputs for each of the models")
    if len(data) != len(models):
        raise ValueError(
            "`data` must hold inputs for each of the models. "
            f"Received: {len(data)} sets of inputs for {len(models)} models"
        )
    inputs = {name: graph.inputs[name] for name in graph.names}
    return [
        read_inputs(without_text(model, each), inputs, name=f"data[{i}]")
        for i, (model, each) in enumerate(zip(models, data, strict=True))
    ]
