"""A family of contexts of one's own: signs that are constant over blocks of inputs.

A family says what a task needs (`draw`), how it is applied (`bind`), and how that is
undone (`unbind`). The base class does the rest: every layer takes the family, it is
saved, grows by `add_tasks`, refuses unknown tasks, and mixes contexts by weights.

    python examples/own_context.py
"""

import keras
import numpy as np
from keras import ops

import keras_psp


@keras.saving.register_keras_serializable(package="example")
class BlockSigns(keras_psp.contexts.Context):
    """One random sign for every `block` inputs: an eighth of the memory, say."""

    def __init__(self, num_tasks, block=8, **kwargs):
        super().__init__(num_tasks, **kwargs)
        self.block = block

    def draw(self, tasks, width):
        blocks = -(-width // self.block)
        signs = [
            np.random.default_rng([self.seed, task]).choice([-1, 1], blocks)
            for task in tasks  # A row depends on its task alone, so that more may come.
        ]
        return np.array(signs, "int8")

    def bind(self, inputs, index):
        rows = self.rows_of(index)
        signs = ops.repeat(rows, self.block, axis=-1)[..., : inputs.shape[-1]]
        if len(signs.shape) == 2:  # A sign for each example: (batch, 1, ..., M).
            middle = (1,) * (len(inputs.shape) - 2)
            signs = ops.reshape(signs, (-1, *middle, inputs.shape[-1]))
        return inputs * ops.cast(signs, inputs.dtype)

    def unbind(self, inputs, index):
        return self.bind(inputs, index)  # Signs undo themselves.

    def get_config(self):
        return {**super().get_config(), "block": self.block}


tasks = keras_psp.datasets.permuted("digits", num_tasks=10)
model = keras_psp.models.mlp(
    tasks.image_shape,
    tasks.num_classes,
    num_tasks=10,
    depth=2,
    context=BlockSigns(10),
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.RMSprop(1e-3), loss)
accuracy_matrix = keras_psp.benchmarks.AccuracyMatrix(tasks)
model.fit(
    tasks.stream(steps_per_task=100, batch_size=64),
    epochs=10,
    steps_per_epoch=100,
    callbacks=[accuracy_matrix],
    shuffle=False,
    verbose=0,
)
accuracy = keras_psp.benchmarks.average_accuracy(accuracy_matrix.matrix)
context = model.get_layer("dense_1").context
print(f"{context.bits_per_task} bits a task for the 256 inputs of a layer")
print(f"average accuracy over 10 tasks: {accuracy:.3f}")
