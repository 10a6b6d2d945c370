"""`infer_task()`: which task unlabelled examples belong to."""

import weakref
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import gradient
from keras_psp._core.checks import check_boolean
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.data import Structure
from keras_psp._core.data import read_inputs
from keras_psp._core.one_thread import one_thread
from keras_psp._reading.describe import is_of_keras
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import is_graph
from keras_psp._reading.task_layers import as_task_model
from keras_psp._reading.text import without_text
from keras_psp.models.task_model import TaskModel


def infer_task(
    model: TaskModel,
    x: Structure,
    method: str = "entropy",
    per: str = "example",
    batch_size: int = 32,
    from_logits: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the task of unlabelled examples: the one for which the model is surest.

    ```
    evidence_k = -H(p(y | x, k))               method="entropy"
    evidence_k = log sum_y exp(logit(y, k))    method="energy"
    evidence_k = -d H(p(y | x, a)) / d a_k     method="gradient", at a = (1/K, ..., 1/K)
    ```

    where H is the entropy of the model's answer. `"entropy"` and `"energy"` compute the
    answers of all K tasks. `"energy"` also sees how large the logits are, which a
    softmax removes. `"gradient"` mixes the contexts of all tasks, and asks which of
    them should have more weight. It needs one forward and one backward pass, whatever K
    is, but the tasks disturb one another in the mixture.

    On ten tasks of permuted MNIST, `"gradient"` finds the task of 45 % of single
    examples and of 57 % of batches of 32; `"entropy"` of 94 % and 100 %; `"energy"` of
    99 % and 100 % (`python tools/measure.py infer`, seed 0, on JAX).

    Args:
        model: `keras_psp.models.TaskModel` of at least two tasks, with one output of
            shape `(batch, num_classes)`. For `"gradient"` every layer that takes a task
            must take soft contexts (`TaskDense` and `TaskBatchNormalization` do not);
            the model itself may take an index.
        x: The model's inputs without the task: an array of shape `(n, ...)`; a list, if
            there are several inputs, or a dictionary of such arrays; or batches of
            these as a list, a generator, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a torch `DataLoader`. Labels beside the inputs,
            as in `(x, y)`, are not used.
        method: `"entropy"`, `"energy"`, which needs logits, or `"gradient"`.
        per: `"example"`, a task for each example; or `"batch"`, one task for all of
            them, from the mean of their evidence.
        batch_size: Positive integer, how many examples are computed at once.
        from_logits: Whether the model answers with logits, or else with probabilities.
            By default the last activation of the model tells: after a softmax or a
            sigmoid the answers are probabilities, without an activation logits.

    Returns:
        `(tasks, confidences)`: NumPy arrays of shape `(n,)`, int32 and float32; with
        `per="batch"` NumPy scalars. A confidence is the distance between the evidence
        of the two best tasks relative to its size, `|a - b| / (|a| + |b|)`. It lies
        between 0, a tie, and 1, whatever the number of tasks. Use it to rank answers:
        it is not a probability of being right.

    Raises:
        TypeError: `model` is no `TaskModel`, `x` holds no arrays of numbers,
            `batch_size` is no integer, or `from_logits` no boolean.
        ValueError: An argument is not one of the above; `x` is empty, not finite, or
            does not fit the model's inputs; the model has several outputs, or fewer
            than two classes; its last activation does not tell what its answers are; a
            layer takes no soft contexts; the model's answers are not finite.

    Example:

    >>> import numpy as np, keras_psp
    >>> model = keras_psp.models.mlp((4,), num_classes=3, num_tasks=5)
    >>> x = np.ones((2, 4), "float32")
    >>> tasks, confidences = keras_psp.infer_task(model, x)
    >>> tasks.shape, confidences.shape
    ((2,), (2,))
    >>> task, confidence = keras_psp.infer_task(model, x, per="batch")
    >>> int(task) in range(5)
    True

    Reference:
        [Wortsman et al., 2020](https://arxiv.org/abs/2006.14769), section 3.3;
        "energy": [Liu et al., 2020](https://arxiv.org/abs/2010.03759), equation 4.
    """
    check_name("method", method, _METHODS)
    check_name("value of `per`", per, ("example", "batch"))
    batch_size = check_integer("batch_size", batch_size)
    x = without_text(model, x)
    model = as_task_model(model)
    _check_outputs(model)
    if from_logits is None:
        from_logits = gives_logits(model)
    check_boolean("from_logits", from_logits)
    if method == "energy" and not from_logits:
        raise ValueError(
            '`method="energy"` needs logits, and the model must answer with them. '
            "Received: a model that answers with probabilities (from_logits=False)"
        )
    inputs = {name: model.input[name] for name in model.input if name != "task"}
    x = read_inputs(x, inputs, name="x")
    evidence = _METHODS[method](model, x, batch_size, from_logits)
    evidence = ops.convert_to_numpy(evidence).astype("float64")
    failed = ~np.isfinite(evidence).all(axis=-1)
    if failed.any():
        raise ValueError(
            f"The answers of {model.name!r} must be finite. Received: NaN for "
            f"{failed.sum()} of {len(failed)} examples"
        )
    if per == "batch":
        evidence = evidence.mean(axis=0)
    places, confidences = map(ops.convert_to_numpy, decide(evidence.astype("float32")))
    tasks = np.array(model.present_tasks, "int32")[places]
    return tasks, confidences[()]


def decide(evidence: Any) -> tuple[Any, Any]:
    """Returns the places with most evidence, and how far each is ahead.

    Args:
        evidence: float32 tensor of shape `(..., n)`, of n tasks.

    Returns:
        `(places, confidences)`: tensors of shape `(...)`, int32 and float32.
    """
    ordered = ops.sort(evidence, axis=-1)
    second, best = ordered[..., -2], ordered[..., -1]
    size = ops.maximum(ops.abs(best) + ops.abs(second), np.finfo("float32").tiny)
    places = ops.cast(ops.argmax(evidence, axis=-1), "int32")
    return places, (best - second) / size


def gives_logits(model: keras.Model) -> bool:
    """Returns whether a model answers with logits, or else with probabilities.

    Args:
        model: Functional or sequential model with one output.

    Raises:
        ValueError: Its last activation does not tell.
    """
    last = _last_activation(Graph(model, takes_task=True))
    told = getattr(last, "activation", None) or type(last)
    name = getattr(told, "__name__", type(told).__name__)
    kind = _ACTIVATIONS.get(name.lower().replace("_", ""))
    if kind is None or not is_of_keras(told):
        raise ValueError(
            "`from_logits` must be `True` if the model answers with logits, or `False` "
            "if it answers with probabilities: its last activation does not tell. "
            f"Received: from_logits=None for {model.name!r}, whose last activation is "
            f"{name!r}"
        )
    return kind == "logits"


_ACTIVATIONS = {
    "linear": "logits",
    "logsigmoid": "logits",
    "logsoftmax": "logits",
    "hardsigmoid": "probabilities",
    "sigmoid": "probabilities",
    "softmax": "probabilities",
    "sparsemax": "probabilities",
}
# What logits pass as logits, and probabilities as probabilities.
_PASSING = {
    "Dropout",
    "Flatten",
    "GetItem",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalAveragePooling3D",
    "Identity",
    "Reshape",
}


def _last_activation(graph: Graph, place: int = 0) -> Any:
    """Returns the layer or operation that decides what one of the outputs is."""
    made = {}

    def record(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        for i, tensor in enumerate(keras.tree.flatten(outputs)):
            # The tensor is kept, so that no other has its id.
            made[id(tensor)] = layer, args, i, tensor
        return outputs

    unknown = None, (), 0, None
    outputs = graph.rebuild(graph.new_inputs(), lambda layer: layer, record)
    output = keras.tree.flatten(outputs)[place]
    layer, args, i, _ = made.get(id(output), unknown)
    while layer is not None and _passes(layer):
        layer, args, i, _ = made.get(id(args[0]), unknown)
    if is_graph(layer):
        return _last_activation(Graph(layer, takes_task=True), i)
    return layer


def _passes(layer: Any) -> bool:
    if isinstance(layer, keras.layers.Activation):
        return layer.activation is keras.activations.linear
    return type(layer).__name__ in _PASSING and is_of_keras(type(layer))


def _check_outputs(model: TaskModel) -> None:
    if len(model.present_tasks) == 1:
        raise ValueError("`model` has one task: there is nothing to infer.")
    outputs = dict(zip(model.output_names, model.outputs, strict=True))
    if isinstance(model.output, dict):  # Whose names are not those of the layers.
        outputs = dict(sorted(model.output.items()))
    shapes = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), outputs)
    if keras.tree.is_nested(model.output) or len(model.output.shape) != 2:
        raise ValueError(
            "`model` must have one output, of shape (batch, num_classes). "
            f"Received: outputs {shapes}"
        )
    if model.output.shape[1] == 1:
        raise ValueError(
            "`model` must tell at least two classes apart: one class always has "
            f"entropy 0. Received: outputs {shapes}"
        )


def entropy(outputs: Any, from_logits: bool) -> Any:
    """Returns the entropy of a model's answers, over the classes.

    Args:
        outputs: float32 tensor of shape `(..., num_classes)`.
        from_logits: Whether these are logits, or else probabilities.

    Returns:
        Tensor of shape `(...)`.
    """
    if from_logits:
        logs = ops.log_softmax(outputs, axis=-1)
        # A task may not have all outputs: its logits are -inf there. NaN stays NaN.
        absent = ops.equal(logs, float("-inf"))
        terms = ops.where(absent, 0.0, ops.multiply(ops.exp(logs), logs))
        return -ops.sum(terms, axis=-1)
    logs = ops.log(ops.maximum(outputs, keras.config.epsilon()))
    return -ops.sum(outputs * logs, axis=-1)


def _by_entropy(model, x, batch_size, from_logits):
    return -entropy(_answers(model, x, batch_size), from_logits)


def _by_energy(model, x, batch_size, from_logits):
    return ops.logsumexp(_answers(model, x, batch_size), axis=-1)


def _answers(model, x, batch_size):
    """The answers of every task that there is, `(n, tasks, num_classes)`."""
    # Each batch holds one task: such batches cost the least.
    tasks = np.array(model.present_tasks, "int32")
    if keras.backend.is_float_dtype(model.input["task"].dtype):
        tasks = np.eye(model.num_tasks, dtype="float32")
    starts = range(0, len(next(iter(x.values()))), batch_size)

    def batches():
        for task in tasks:
            for start in starts:
                batch = {k: v[start : start + batch_size] for k, v in x.items()}
                size = len(next(iter(batch.values())))
                yield ({**batch, "task": np.repeat([task], size, axis=0)},)

    outputs = model.predict(batches(), steps=len(tasks) * len(starts), verbose=0)
    outputs = outputs.reshape(len(tasks), -1, outputs.shape[-1])
    return ops.cast(np.moveaxis(outputs, 0, 1), "float32")


# A probe for each model, so that it is compiled once.
_probes: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _by_gradient(model, x, batch_size, from_logits):
    # A model that has grown, or is quantized, has other variables: compile again.
    variables = [(tuple(v.shape), str(v.dtype)) for v in model.variables]
    key = from_logits, model.num_tasks, model.removed_tasks, variables
    if key != _probes.get(model, (None,))[0]:
        _probes[model] = key, _Probe(model, from_logits)
    probe = _probes[model][1]
    with one_thread(probe):
        gradients = probe.predict(x, batch_size=batch_size, verbose=0)
    return -gradients[:, model.present_tasks]


class _Probe(keras.Model):
    """Answers with the gradient of a model's entropy by its contexts' weights."""

    def __init__(self, model, from_logits):
        super().__init__(name="probe", dtype="float32")
        self.from_logits = from_logits
        present = np.isin(np.arange(model.num_tasks), model.present_tasks)
        self.shares = (present / present.sum()).astype("float32")
        inputs = Graph(model, takes_task=True).new_inputs()
        inputs.pop("task")
        try:
            self.inner = _with_soft_contexts(model)
            self(inputs)  # On JAX an error inside `predict()` loses the weights.
        except TypeError as error:
            raise ValueError(
                '`method="gradient"` needs layers that all take soft contexts; use '
                f'`method="entropy"`. Received: {model.name!r}, of which {error}'
            ) from error

    def call(self, inputs):
        state = self.inner.trainable_variables, self.inner.non_trainable_variables
        state = [[v.value for v in variables] for variables in state]

        def total_entropy(weights):
            # Stateless: layers must not assign anything while the gradient is traced.
            outputs, _ = self.inner.stateless_call(
                *state, {**inputs, "task": weights}, training=False
            )
            outputs = ops.cast(outputs, "float32")
            return ops.sum(entropy(outputs, self.from_logits))

        batch = ops.shape(next(iter(inputs.values())))[0]
        shares = ops.convert_to_tensor(self.shares)[None]
        return gradient(total_entropy, ops.repeat(shares, batch, axis=0))


def _with_soft_contexts(model):
    """Returns a model of the same layers that takes a weight for each task."""
    graph = Graph(model, takes_task=True)
    inputs = graph.new_inputs()
    inputs["task"] = keras.Input((model.num_tasks,), name="task")

    def replace(layer):
        return _with_soft_contexts(layer) if isinstance(layer, TaskModel) else layer

    return TaskModel(inputs, graph.rebuild(inputs, replace))


_METHODS = {"entropy": _by_entropy, "energy": _by_energy, "gradient": _by_gradient}
