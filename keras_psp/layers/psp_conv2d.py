"""The superposed convolution of images."""

import keras

from keras_psp.layers._superposed_conv import SuperposedConv


@keras.saving.register_keras_serializable(package="keras_psp")
class PSPConv2D(SuperposedConv, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` that holds many kernels in one, one for each task.

    ```
    y = activation(conv(x, C_k W) + b)
    ```

    The context acts on the numbers that a filter looks at, `kernel_size[0] *
    kernel_size[1] * in / groups` of them, or on the `in` channels of the inputs, alike
    at every place. Everything else is Conv2D's: strides, padding, dilation, groups,
    data formats, regularizers, constraints, dtype policies, LoRA, saving.

    A batch of one task is one convolution with the bound kernel. A batch of many tasks
    binds the kernel of each task, if a filter has as many places as there are filters
    or more, there is an example for each task, and a CPU computes; or else the patches
    of each example, which takes `kernel_size[0] * kernel_size[1]` times the inputs'
    memory. With `context_over="channels"` it binds the inputs and is one convolution
    too.

    Args:
        filters: Positive integer, the number of filters.
        kernel_size: Integer or pair of integers, the size of a filter.
        num_tasks: Positive integer, the number of tasks. May be left out where
            `context` knows it.
        context: Name of a context family, `keras_psp.contexts.Context`, or its
            serialized form. Defaults to `"binary"`. `None`: there is no superposed
            kernel, only `base`, `core` and `rank`, and `num_tasks` must be given.
        context_over: `"kernel"`, as in the paper, or `"channels"`.
        base: Boolean, whether there is a kernel `W_0` beside that every task sees as
            it is, so that task k sees `W_0 + C_k W`. It is the attribute
            `base_kernel`, zeros at first, and is not trained.
        bias_per_task: Boolean, whether each task has a bias of its own. Train it with
            `keras_psp.optimizers.PerTask`: a plain optimizer with momentum also moves
            the biases of tasks without an example in the batch.
        rank: Integer, the rank of a part `A_k B_k` that each task has of its own, so
            that task k sees `C_k W + A_k B_k`. Or `"full"`, for a whole kernel of its
            own. Or `None`. `B_k` starts as zero: a new layer answers as it would
            without it. It needs `groups=1`.
        core: Integer, or a pair `(R_in, R_out)`: the size of a core that each task has
            of its own, between two factors that all tasks share, so that task k sees
            `C_k W + A core_k V^T`. Or `None`. Cores start as zeros. It needs
            `groups=1`.
        bits: Integer in [1, 8]: the base, the core and the low rank are stored in so
            many bits for each number, with scales, and are not trained. Or a dictionary
            of integers for some of `"base"`, `"core"` and `"rank"`. Or `None`.
        **kwargs: `keras.layers.Conv2D` arguments.

    Call arguments:
        inputs: Float tensor.
        task: Integer for the whole batch, or integer tensor of shape `(batch,)` or
            `(batch, 1)`, one index for each example. A float index is a `TypeError`.
            Or soft contexts: a float tensor of shape `(batch, num_tasks)`, a weight
            for each task.

    Input shape:
        `(batch, height, width, in)`, or `(batch, in, height, width)` if `data_format`
        is `"channels_first"`.

    Output shape:
        `(batch, new_height, new_width, filters)`, or `(batch, filters, new_height,
        new_width)`. Examples whose index lies outside `[0, num_tasks)` raise a
        `ValueError` where the index can be read and are NaN in a compiled or exported
        graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.PSPConv2D(2, 3, num_tasks=10)
    >>> x = keras.ops.ones((3, 8, 8, 4))
    >>> tuple(layer(x, [0, 7, 7]).shape)
    (3, 6, 6, 2)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 3 and
        section 4.3.
        `rank`: [Hu et al., 2021](https://arxiv.org/abs/2106.09685), equation 3.
    """
