"""An ensemble of networks for tables that share almost all of their weights."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.backend import without_branches
from keras_psp._core.checks import check_integer
from keras_psp._core.checks import check_name
from keras_psp._core.checks import check_number
from keras_psp.contexts.binary import Binary
from keras_psp.layers import PSPDense
from keras_psp.layers import TaskDense
from keras_psp.layers._task_rows import TaskRows

ADAPTERS = ("first", "all")


def tabular_ensemble(
    num_features: int,
    num_outputs: int,
    num_members: int = 32,
    units: int = 256,
    depth: int = 3,
    dropout: float = 0.1,
    adapters: str = "first",
    activation: Any = None,
    seed: int = 0,
    name: str = "tabular_ensemble",
) -> keras.Model:
    """Builds a perceptron for tables that makes `num_members` predictions in one.

    Each member multiplies what a layer reads with numbers of its own, which begin as
    random signs and are trained: a learned binary context. All members share the
    kernels, and each has a head of its own:

    ```
    h_i = relu((x * r_i) W + b),   y_i = h_i V_i + c_i,   y = 1 / k sum_i y_i
    ```

    Args:
        num_features: Positive integer, the number of columns, best standardized.
        num_outputs: Positive integer, the number of outputs of a member.
        num_members: Positive integer, k.
        units: Positive integer, the width of a hidden layer.
        depth: Positive integer, the number of hidden layers.
        dropout: Number in [0, 1], the share of hidden units that a training step
            leaves out.
        adapters: `"first"`: the first layer alone has them, as in TabM-mini. `"all"`:
            every hidden layer has them before and behind the kernel, and biases for
            each member, as in BatchEnsemble with the initial values of TabM.
        activation: Activation of the outputs, which comes before the mean: `"softmax"`
            for classes, so that probabilities are averaged. Or `None`.
        seed: Non-negative integer, for the signs.
        name: Name of the model.

    Returns:
        A `keras.Model`. Input: floats `(batch, num_features)`. Output: the members'
        mean, `(batch, num_outputs)`. In training, the output is that of every member,
        `(batch, num_members, num_outputs)`, and the loss is the mean of their losses.
        Metrics are those of the mean.

    Raises:
        TypeError: An argument is not of its type.
        ValueError: An argument is out of its range.

    Example:

    >>> import keras, keras_psp
    >>> model = keras_psp.models.tabular_ensemble(10, 3, activation="softmax")
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> x, y = keras.random.normal((64, 10)), keras.ops.arange(64) % 3
    >>> history = model.fit(x, y, verbose=0)
    >>> model.predict(x, verbose=0).shape
    (64, 3)

    Reference:
        TabM: [Gorishniy et al., 2025](https://arxiv.org/abs/2410.24210), section 3.
        BatchEnsemble: [Wen et al., 2020](https://arxiv.org/abs/2002.06715).
    """
    model = TabularEnsemble(
        num_outputs=check_integer("num_outputs", num_outputs),
        num_members=check_integer("num_members", num_members),
        units=check_integer("units", units),
        depth=check_integer("depth", depth),
        dropout=check_number("dropout", dropout, most=1.0),
        adapters=check_name("adapters", adapters, ADAPTERS),
        activation=activation,
        seed=check_integer("seed", seed, least=0),
        name=name,
    )
    model.build((None, check_integer("num_features", num_features)))
    return model


@keras.saving.register_keras_serializable(package="keras_psp")
class TabularEnsemble(keras.Model):
    """What `tabular_ensemble()` returns; see there for the arguments."""

    def __init__(
        self,
        num_outputs: int,
        num_members: int,
        units: int,
        depth: int,
        dropout: float,
        adapters: str,
        activation: Any,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_outputs, self.num_members = num_outputs, num_members
        self.units, self.depth, self.dropout = units, depth, dropout
        self.adapters, self.seed = adapters, seed
        self.activation = keras.activations.get(activation)
        own = adapters == "all"
        first = Binary(num_members, seed=seed, learnable=True)
        self.hidden = [
            PSPDense(units, context=first, use_bias=not own, name="hidden_0")
        ]
        self.scales: list[Any] = []
        for i in range(depth):
            if i > 0:
                dense = keras.layers.Dense(units, use_bias=not own, name=f"hidden_{i}")
                self.hidden.append(dense)
            if own and i > 0:
                self.scales.append(TaskScale(num_members, False, name=f"before_{i}"))
            if own:
                self.scales.append(TaskScale(num_members, True, name=f"behind_{i}"))
        self.drop = keras.layers.Dropout(dropout, seed=seed)
        self.head = TaskDense(num_outputs, num_members, name="head")

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        for i, layer in enumerate(self.hidden):
            layer.build((None, self.units if i else width))
        for layer in (*self.scales, self.head):
            layer.build((None, self.units))
        self.head.draw_rows()
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        size, members = ops.shape(inputs)[0], self.num_members
        # To the layers, a member is an example: a whole batch, of a task of its own.
        x = ops.broadcast_to(inputs, (members, size, inputs.shape[-1]))
        task = np.arange(members, dtype="int32")  # Known: no mask is needed.
        scales = iter(self.scales)
        with without_branches():
            for i, layer in enumerate(self.hidden):
                if i == 0:
                    x = layer(x, task)
                elif self.scales:
                    x = layer(next(scales)(x, task))
                else:
                    x = layer(x)
                if self.scales:
                    x = next(scales)(x, task)
                x = self.drop(ops.relu(x), training=training)
            x = self.activation(self.head(x, task))
        if training:
            return ops.swapaxes(x, 0, 1)
        return ops.mean(x, axis=0)

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return (input_shape[0], self.num_outputs)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss: in training the mean of the members' losses."""
        if len(y_pred.shape) == 3:

            def for_each(values: Any) -> Any:
                return ops.repeat(values, self.num_members, axis=0)

            y = for_each(y)
            y_pred = ops.reshape(y_pred, (-1, self.num_outputs))
            sample_weight = None if sample_weight is None else for_each(sample_weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns the metrics, of the members' mean."""
        if len(y_pred.shape) == 3:
            y_pred = ops.mean(y_pred, axis=1)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_outputs": self.num_outputs,
            "num_members": self.num_members,
            "units": self.units,
            "depth": self.depth,
            "dropout": self.dropout,
            "adapters": self.adapters,
            "activation": keras.activations.serialize(self.activation),
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskScale(TaskRows, keras.layers.Layer):
    """Multiplies features with numbers of each task, and perhaps adds others."""

    def __init__(self, num_tasks: int, use_bias: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_num_tasks(num_tasks)
        self.use_bias = use_bias

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1:]
        self.add_rows("scale", width, keras.initializers.Ones())
        if self.use_bias:
            self.add_rows("bias", width, keras.initializers.Zeros())

    def call(self, inputs: Any, task: Any = None) -> Any:
        task = self.parse_task(task, inputs)
        x = ops.multiply(inputs, task.rows(self.scale, inputs))
        if self.use_bias:
            x = ops.add(x, task.rows(self.bias, x))
        return task.mask(x)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "use_bias": self.use_bias}
