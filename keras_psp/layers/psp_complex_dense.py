"""The superposed dense layer of complex numbers."""

from typing import Any

import keras
from keras import ops

from keras_psp._core.checks import check_integer
from keras_psp.layers._superposed import Superposed


@keras.saving.register_keras_serializable(package="keras_psp")
class PSPComplexDense(Superposed, keras.layers.Layer):
    """A dense layer of complex numbers that holds many kernels in one.

    ```
    y = activation((x C_k) W + b),  x, W, b complex
    ```

    the layer of the paper's "complex superposition". Complex numbers are carried as
    real ones: the first half of the last dimension are the real, the second half the
    imaginary parts. The activation works on either alone, as in the authors' code.
    `keras_psp.layers.PSPDense` with a `"complex"` context takes half the weights.

    Args:
        units: Positive integer, the number of complex outputs.
        num_tasks: Positive integer, the number of tasks. May be left out where
            `context` knows it.
        context: Name of a context family, `keras_psp.contexts.Context`, or its
            serialized form, of the 2 M real inputs. Defaults to `"complex"`.
        activation: Activation function. Defaults to none.
        use_bias: Boolean, whether the layer has a bias.
        kernel_initializer: Initializer of the real and of the imaginary part of the
            kernel. Defaults to half the variance of Glorot's for each.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of either part of the kernel.
        bias_regularizer: Regularizer of the bias.
        kernel_constraint: Constraint on either part of the kernel.
        bias_constraint: Constraint on the bias.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example; or soft contexts, a float tensor
            of shape `(batch, num_tasks)`.

    Input shape:
        `(batch, ..., 2 * input_dim)`.

    Output shape:
        `(batch, ..., 2 * units)`. Examples whose index lies outside `[0, num_tasks)`
        raise a `ValueError` where the index can be read and are NaN in a compiled or
        exported graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.PSPComplexDense(2, num_tasks=10)
    >>> x = keras.ops.ones((3, 8))  # Four complex numbers: 1 + 1i.
    >>> tuple(layer(x, [0, 7, 7]).shape)
    (3, 4)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), section 2.1, "complex
        superposition".
    """

    def __init__(
        self,
        units: int,
        num_tasks: int | None = None,
        context: Any = "complex",
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.VarianceScaling(0.5, "fan_avg")
        self.units = check_integer("units", units)
        if context is None:
            raise ValueError(
                "A PSPComplexDense has no kernel but the superposed one, and needs a "
                "context. Received: context=None"
            )
        self.set_context(context, num_tasks)
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        if input_shape[-1] % 2:
            raise ValueError(
                "The last dimension must be even: real parts, then imaginary parts. "
                f"Received: input_shape={input_shape}"
            )
        self.build_context(input_shape[-1])
        self.kernel_real, self.kernel_imaginary = (
            self.add_weight(
                name=name,
                shape=(input_shape[-1] // 2, self.units),
                initializer=initializer,
                regularizer=self.kernel_regularizer,
                constraint=self.kernel_constraint,
            )
            for name, initializer in (
                ("kernel_real", self.kernel_initializer),
                ("kernel_imaginary", _other_seed(self.kernel_initializer)),
            )
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(2 * self.units,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        else:
            self.bias = None

    @property
    def kernel(self) -> Any:
        """The kernel as one of real numbers, `(2 * input_dim, 2 * units)`."""
        real = ops.convert_to_tensor(self.kernel_real)
        imaginary = ops.convert_to_tensor(self.kernel_imaginary)
        return ops.concatenate(
            [
                ops.concatenate([real, imaginary], axis=1),
                ops.concatenate([-imaginary, real], axis=1),
            ],
            axis=0,
        )

    def call(self, inputs: Any, task: Any = None) -> Any:
        def dense(bound):
            outputs = ops.matmul(bound, self.kernel)
            if self.use_bias:
                outputs = ops.add(outputs, self.bias)
            return self.activation(outputs)

        return self.call_bound(dense, inputs, task)

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return (*input_shape[:-1], 2 * self.units)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            **{
                name: module.serialize(getattr(self, name))
                for name, module in (
                    ("kernel_initializer", keras.initializers),
                    ("bias_initializer", keras.initializers),
                    ("kernel_regularizer", keras.regularizers),
                    ("bias_regularizer", keras.regularizers),
                    ("kernel_constraint", keras.constraints),
                    ("bias_constraint", keras.constraints),
                )
            },
        }


def _other_seed(initializer):
    """The same initializer, but for its seed: the parts must not be equal."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if isinstance(config.get("seed"), int):
        config["seed"] += 1
    return type(initializer).from_config(config)
