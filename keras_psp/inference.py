"""Which task unlabelled examples are from."""

import weakref

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import gradient
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_shape
from keras_psp._reading.graph import Graph
from keras_psp.models.task_model import TaskModel


def infer_task(
    model, x, method="entropy", per="example", batch_size=32, from_logits=True
):
    """Finds the task of unlabelled examples: the one whose model is surest of them.

    ```
    evidence_k = -H(p(y | x, k))               method="entropy"
    evidence_k = log sum_y exp(logit(y, k))    method="energy"
    evidence_k = -d H(p(y | x, a)) / d a_k     method="gradient", at a = (1/K, ..., 1/K)
    ```

    where H is the entropy of the answer. `"entropy"` and `"energy"` ask for the answers
    of all K tasks; `"energy"` sees how large the logits are too, which a softmax takes
    away. `"gradient"` mixes the contexts of all tasks, and asks which of them should
    have more weight: one forward and one backward pass, whatever K is, but of a mixture
    in which the tasks disturb one another. Of ten tasks of permuted MNIST it finds 45 %
    of single examples' and 57 % of batches' of 32, `"entropy"` 94 and 100 %, `"energy"`
    99 and 100 % (`python tools/measure.py infer`, seed 0, on
    JAX).

    Args:
        model: `keras_psp.models.TaskModel` of at least two tasks, whose output has
            shape `(batch, num_classes)`. For `"gradient"` all layers that take a task
            must take soft contexts (`TaskDense` and `TaskBatchNormalization` do not);
            the model itself may take an index.
        x: The model's inputs without the task: an array of shape `(n, ...)`, or a
            dictionary of such.
        method: `"entropy"`, `"energy"`, which needs logits, or `"gradient"`.
        per: `"example"`, a task for each example; or `"batch"`, one task for all of
            them, from the mean of their evidence.
        batch_size: Positive integer, how many examples are computed at once.
        from_logits: Boolean, whether the model gives logits, or else probabilities.

    Returns:
        `(tasks, confidences)`: NumPy arrays of shape `(n,)`, int32 and float32; with
        `per="batch"` NumPy scalars. A confidence is how far the evidence of the two
        best tasks lies apart, relative to its size: `|a - b| / (|a| + |b|)`. From 0, a
        tie, to 1, whatever the number of tasks; it ranks answers, and is no
        probability of being right.

    Raises:
        TypeError: `model` is no `TaskModel`, or `batch_size` no integer.
        ValueError: An argument is not one of the above; `x` is empty or not finite; a
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
    if method == "energy" and not from_logits:
        raise ValueError('`method="energy"` needs logits. Received: from_logits=False')
    x = _check(model, x)
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
    tasks, confidences = map(ops.convert_to_numpy, decide(evidence.astype("float32")))
    return tasks[()], confidences[()]


def decide(evidence):
    """Returns the tasks with most evidence, and how far that is ahead.

    Args:
        evidence: float32 tensor of shape `(..., num_tasks)`.

    Returns:
        `(tasks, confidences)`: tensors of shape `(...)`, int32 and float32.
    """
    ordered = ops.sort(evidence, axis=-1)
    second, best = ordered[..., -2], ordered[..., -1]
    size = ops.maximum(ops.abs(best) + ops.abs(second), np.finfo("float32").tiny)
    tasks = ops.cast(ops.argmax(evidence, axis=-1), "int32")
    return tasks, (best - second) / size


def _check(model, x):
    """Returns `x` as a dictionary of NumPy arrays."""
    if not isinstance(model, TaskModel):
        raise TypeError(
            "`model` must be a `keras_psp.models.TaskModel`. "
            f"Received: model of type {type(model).__name__}"
        )
    if not isinstance(model.input, dict) or "task" not in model.input:
        raise ValueError(
            f"`model` must have an input 'task'. Received: inputs {model.input}"
        )
    if model.num_tasks == 1:
        raise ValueError("`model` has one task: there is nothing to infer.")
    shape = getattr(model.output, "shape", ())
    if len(shape) != 2:
        raise ValueError(
            "`model` must have one output, of shape (batch, num_classes). "
            f"Received: output {model.output}"
        )
    names = sorted(set(model.input) - {"task"})
    if not isinstance(x, dict) and len(names) == 1:
        x = {names[0]: x}
    if not isinstance(x, dict) or sorted(x) != names:
        raise ValueError(
            f"`x` must hold the model's inputs without the task: {names}. Received: "
            + (f"{sorted(x)}" if isinstance(x, dict) else f"{type(x).__name__}")
        )
    x = {name: ops.convert_to_numpy(value) for name, value in x.items()}
    for name, value in x.items():
        expected = model.input[name].shape
        check_shape(name, value, expected)
        # Keras lets a last dimension of 1 go missing, or be one too many.
        x[name] = value.reshape((*value.shape, 1)[: len(expected)])
        if not np.isfinite(value).all():
            raise ValueError(f"`x` must be finite. Received: NaN or inf in {name!r}")
    sizes = {name: len(value) for name, value in x.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            "`x` must hold at least one example, and equally many in every input. "
            f"Received: {sizes}"
        )
    return x


def entropy(outputs, from_logits):
    """Returns the entropy of what a model answers, over its classes.

    Args:
        outputs: float32 tensor of shape `(..., num_classes)`.
        from_logits: Boolean, whether these are logits, or else probabilities.

    Returns:
        Tensor of shape `(...)`.
    """
    if from_logits:
        logs = ops.log_softmax(outputs, axis=-1)
        return -ops.sum(ops.exp(logs) * logs, axis=-1)
    logs = ops.log(ops.maximum(outputs, keras.config.epsilon()))
    return -ops.sum(outputs * logs, axis=-1)


def _by_entropy(model, x, batch_size, from_logits):
    return -entropy(_answers(model, x, batch_size), from_logits)


def _by_energy(model, x, batch_size, from_logits):
    return ops.logsumexp(_answers(model, x, batch_size), axis=-1)


def _answers(model, x, batch_size):
    """Every task's answers, `(n, num_tasks, num_classes)`."""
    # Batches of one task, which cost the least.
    tasks = np.arange(model.num_tasks, dtype="int32")
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


_probes = weakref.WeakKeyDictionary()  # Of models, so that each is compiled once.


def _by_gradient(model, x, batch_size, from_logits):
    # What is compiled holds for these variables alone: models grow, and are quantized.
    variables = [(tuple(v.shape), str(v.dtype)) for v in model.variables]
    key = from_logits, model.num_tasks, variables
    if key != _probes.get(model, (None,))[0]:
        _probes[model] = key, _Probe(model, from_logits)
    return -_probes[model][1].predict(x, batch_size=batch_size, verbose=0)


class _Probe(keras.Model):
    """Answers with the gradient of a model's entropy by the weights of its contexts."""

    def __init__(self, model, from_logits):
        super().__init__(name="probe", dtype="float32")
        self.num_tasks, self.from_logits = model.num_tasks, from_logits
        inputs = Graph(model, takes_task=True).new_inputs()
        inputs.pop("task")
        try:
            self.inner = _with_soft_contexts(model)
            self(inputs)  # On JAX what fails in `predict()` loses the weights.
        except TypeError as error:
            raise ValueError(
                '`method="gradient"` needs layers that all take soft contexts; use '
                f'`method="entropy"`. Received: {model.name!r}, of which {error}'
            ) from error

    def call(self, inputs):
        state = self.inner.trainable_variables, self.inner.non_trainable_variables
        state = [[v.value for v in variables] for variables in state]

        def total_entropy(weights):
            # Stateless: what a layer would assign belongs to the gradient's inside.
            outputs, _ = self.inner.stateless_call(
                *state, {**inputs, "task": weights}, training=False
            )
            outputs = ops.cast(outputs, "float32")
            return ops.sum(entropy(outputs, self.from_logits))

        batch = ops.shape(next(iter(inputs.values())))[0]
        return gradient(
            total_entropy, ops.full((batch, self.num_tasks), 1 / self.num_tasks)
        )


def _with_soft_contexts(model):
    """The same layers, called once more with a weight for each task."""
    graph = Graph(model, takes_task=True)
    inputs = graph.new_inputs()
    inputs["task"] = keras.Input((model.num_tasks,), name="task")

    def replace(layer):
        return _with_soft_contexts(layer) if isinstance(layer, TaskModel) else layer

    return TaskModel(inputs, graph.rebuild(inputs, replace))


_METHODS = {"entropy": _by_entropy, "energy": _by_energy, "gradient": _by_gradient}
