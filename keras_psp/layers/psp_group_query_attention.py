"""The superposed attention whose heads share keys and values in groups."""

from typing import Any

import keras

from keras_psp.layers._superposed_attention import SuperposedAttention


@keras.saving.register_keras_serializable(package="keras_psp")
class PSPGroupQueryAttention(SuperposedAttention, keras.layers.GroupQueryAttention):
    """A `keras.layers.GroupQueryAttention` that holds many in one, one for each task.

    ```
    y = attention(q (C_k Q), v (C'_k V), k (C''_k K)) (C'''_k O)
    ```

    As in `keras_psp.layers.PSPMultiHeadAttention`, each projection is a
    `keras_psp.layers.PSPEinsumDense` with a context of its own.

    Args:
        head_dim: Positive integer, the size of each head.
        num_query_heads: Positive integer, the number of heads.
        num_key_value_heads: Positive integer, the number of heads of keys and values.
        num_tasks: Positive integer, the number of tasks. May be left out where
            `context` knows it.
        context: Name of a context family, or a `keras_psp.contexts.Context` or its
            serialized form that shows what each projection's own is to be, but for its
            seed. Defaults to `"binary"`. `None`: there is no superposed kernel, only
            `base`, `core` and `rank`, and `num_tasks` must be given.
        base: Boolean, whether each projection has a kernel `W_0` beside that every task
            sees as it is, so that task k sees `W_0 + C_k W`. They are zeros at first,
            and not trained.
        bias_per_task: Boolean, whether each task has biases of its own. Train them with
            `keras_psp.optimizers.PerTask`: a plain optimizer with momentum also moves
            the biases of tasks without an example in the batch.
        rank: Integer, the rank of a part `A_k B_k` that each task has of its own in
            each projection, so that task k sees `C_k W + A_k B_k`. Or `"full"`, for a
            whole kernel of its own. Or `None`. `B_k` starts as zero: a new layer
            answers as it would without it.
        core: Integer, or a pair `(R_in, R_out)`: the size of a core that each task has
            of its own, between two factors that all tasks share, so that task k sees
            `C_k W + A core_k V^T`. Or `None`. Cores start as zeros.
        bits: Integer in [1, 8]: the base, the core and the low rank are stored in so
            many bits for each number, with scales, and are not trained. Or a dictionary
            of integers for some of `"base"`, `"core"` and `"rank"`. Or `None`.
        **kwargs: `keras.layers.GroupQueryAttention` arguments.

    Call arguments:
        query: Float tensor.
        value: Float tensor.
        key: Float tensor. Defaults to `value`.
        task: By keyword: integer for the whole batch, or integer tensor of shape
            `(batch,)` or `(batch, 1)`, one index for each example. A float index is a
            `TypeError`. Or soft contexts: a float tensor of shape
            `(batch, num_tasks)`, a weight for each task.
        **kwargs: `attention_mask`, `use_causal_mask`, `return_attention_scores` and
            `training`, as of `keras.layers.GroupQueryAttention`.

    Input shape:
        `(batch, steps, dim)`, the query's.

    Output shape:
        The query's. Examples whose index lies outside `[0, num_tasks)` raise a
        `ValueError` where the index can be read and are NaN in a compiled or exported
        graph.

    Raises:
        TypeError, ValueError: An argument that is not one of the above.

    Example:

    >>> import keras, keras_psp
    >>> layer = keras_psp.layers.PSPGroupQueryAttention(4, 4, 2, num_tasks=10)
    >>> x = keras.ops.ones((3, 5, 8))
    >>> tuple(layer(x, x, task=[0, 7, 7]).shape)
    (3, 5, 8)

    Reference:
        [Cheung et al., 2019](https://arxiv.org/abs/1902.05522), equation 3, of the
        projections of [Ainslie et al., 2023](https://arxiv.org/abs/2305.13245).
        `rank`: [Hu et al., 2021](https://arxiv.org/abs/2106.09685), equation 3.
    """

    def __init__(
        self,
        head_dim: int,
        num_query_heads: int,
        num_key_value_heads: int,
        num_tasks: int | None = None,
        context: Any = "binary",
        base: bool = False,
        bias_per_task: bool = False,
        rank: int | str | None = None,
        core: Any = None,
        bits: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(head_dim, num_query_heads, num_key_value_heads, **kwargs)
        self.set_projections(context, num_tasks, base, bias_per_task, rank, core, bits)
