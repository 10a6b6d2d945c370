"""A consolidation of one's own: gradient projection memory, a rival of `Gram`.

After each task it finds the directions that the inputs of each kernel fill. It projects
later gradients onto the remaining directions. This is the method of Saha et al. (2021),
with the settings of their permuted MNIST. It keeps a square matrix for each kernel.

    python examples/gradient_projection.py

compares it with `Gram` and with no consolidation on small images, and

    keras-psp run permuted --protocol gpm --context identity --consolidation gpm \
        --parts examples/gradient_projection.py

repeats the authors' experiment, for which they publish 93.91 %.
"""

import keras
import numpy as np
from keras import ops

from keras_psp import benchmarks
from keras_psp.consolidation import Consolidation


@keras.saving.register_keras_serializable(package="example")
class GradientProjection(Consolidation):
    """Keeps later tasks from changing kernels along the inputs of earlier ones.

    The model must be functional, and each of its trainable weights the kernel of a
    layer, `(inputs, outputs)`: what a bias adds is not protected by any projection.

    Args:
        optimizer: The optimizer that takes the steps.
        thresholds: How much of the inputs' squared norm the directions hold: for the
            first kernel, and for all others.
        examples: How many examples of a task are looked at.
        name: Name of the optimizer.

    Reference:
        [Saha et al., 2021](https://arxiv.org/abs/2103.09762), algorithm 1.
    """

    def __init__(
        self, optimizer="sgd", thresholds=(0.95, 0.99), examples=300, name="gpm"
    ):
        super().__init__(optimizer, name=name)
        self.thresholds = tuple(thresholds)
        self.examples = examples

    def add_own_variables(self, variables):
        # The sum of the outer products of all directions: it projects onto them.
        self.projections = [
            self.add_variable((v.shape[0], v.shape[0]), name="projection")
            for v in variables
        ]

    def rise(self, i):
        return ops.convert_to_tensor(0.0)  # There is no penalty.

    def take_step(self, grads, variables):
        pairs = zip(grads, self.projections, strict=True)
        free = [g - ops.matmul(projection, g) for g, projection in pairs]
        self.step_other(free, variables)

    def end_task(self, model, data=None):
        """Adds the directions of a task.

        Args:
            model: The model that was trained.
            data: A `tf.data.Dataset` of the task's batches, `(inputs, labels)`.
        """
        inputs, _ = next(iter(data.unbatch().batch(self.examples)))
        inputs = {name: ops.convert_to_tensor(x) for name, x in inputs.items()}
        layers = {
            id(each.kernel): each for each in model.layers if hasattr(each, "kernel")
        }
        seen = [
            keras.tree.flatten(layers[id(v)].input)[0]
            for v in model.trainable_variables
        ]
        found = keras.Model(model.input, seen).predict(inputs, verbose=0)
        first, others = self.thresholds
        for i, (projection, x) in enumerate(zip(self.projections, found, strict=True)):
            old = ops.convert_to_numpy(projection).astype("float64")
            new = _directions(x.T, old, others if i else first)
            projection.assign(old + new @ new.T)

    def get_config(self):
        return {
            "optimizer": super().get_config()["optimizer"],
            "thresholds": self.thresholds,
            "examples": self.examples,
            "name": self.name,
        }


def _directions(columns, projection, threshold):
    """The fewest directions that, with the old ones, hold a share of columns."""
    columns = columns.astype("float64")
    vectors, values, _ = np.linalg.svd(
        columns - projection @ columns, full_matrices=False
    )
    total = np.sum(columns**2)
    held = 1 - np.sum(values**2) / total
    before = held + np.cumsum([0, *values[:-1] ** 2]) / total
    room = len(projection) - round(projection.trace())
    return vectors[:, : min(np.sum(before < threshold), room)]


benchmarks.register("consolidation", "gpm", GradientProjection)

if __name__ == "__main__":
    for consolidation in ("gram", "gpm", "none"):
        result = benchmarks.run(
            benchmarks.PermutedConfig(
                source="digits",
                tasks=5,
                steps=400,
                units=100,
                depth=2,
                context="identity",
                consolidation=consolidation,
                optimizer="sgd",
                learning_rate=0.05,
            )
        )
        accuracy = f"{result.average_accuracy:.3f}"
        print(f"{consolidation}, average accuracy over 5 tasks: {accuracy}")
