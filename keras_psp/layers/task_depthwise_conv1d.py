"""A depthwise convolution of sequences with a kernel for each task."""

import keras

from keras_psp.layers._task_depthwise_conv import TaskDepthwiseConv


@keras.saving.register_keras_serializable(package="keras_psp")
class TaskDepthwiseConv1D(TaskDepthwiseConv, keras.layers.DepthwiseConv1D):
    """One `keras.layers.DepthwiseConv1D` for each task: nothing is superposed.

    ```
    y = activation(depthwise_conv(x, W_k) + b_k)
    ```

    Each output sums over no more numbers than a filter has places, far too few for what
    tasks leak into one another to average out; and the kernels are small. All tasks'
    kernels start alike. Train them with `keras_psp.optimizers.PerTask`: a plain
    optimizer with momentum also moves the kernels of tasks without an example in the
    batch.

    Args:
        kernel_size: Integer, the size of a filter.
        num_tasks: Positive integer, the number of tasks.
        bits: Integer in [1, 8], how many bits the kernels' numbers are stored in, with
            a scale for each filter; they are not trained then. Or `None`.
        **kwargs: `keras.layers.DepthwiseConv1D` arguments. Regularizers and constraints
            see one task's kernel at a time.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example.

    Input shape:
        `(batch, steps, in)`, or `(batch, in, steps)` if `data_format` is
        `"channels_first"`.

    Output shape:
        `(batch, new_steps, in * depth_multiplier)`, or `(batch, in * depth_multiplier,
        new_steps)`. Examples whose index lies outside `[0, num_tasks)` raise a
        `ValueError` where the index can be read and are NaN in a compiled or exported
        graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.TaskDepthwiseConv1D(3, num_tasks=10)
    >>> tuple(layer(keras.ops.ones((3, 8, 4)), [0, 7, 7]).shape)
    (3, 6, 4)
    >>> tuple(layer.kernel.shape), tuple(layer.bias.shape)
    ((10, 3, 4, 1), (10, 4))
    """
