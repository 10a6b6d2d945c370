"""A kernel that all tasks share, beside the superposed one."""

import keras


class BaseKernel(keras.layers.Layer):
    """Holds the weight, for a layer that is given a child keeps it in its files.

    It is not trained: every task would move it for all the others.
    """

    def build(self, shape):
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer="zeros", trainable=False
        )
