"""Models of classes of their own, as users write them."""

import keras


@keras.saving.register_keras_serializable("tests")
class OwnModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(x)


@keras.saving.register_keras_serializable("tests")
class TwoInAttributes(keras.Model):
    """Has layers in attributes, in another order than that of its graph.

    As of KerasHub's models, Keras does not see these attributes on torch.
    """

    def __init__(self, **kwargs):
        self.second, self.first = keras.layers.Dense(4), keras.layers.Dense(5)
        x = keras.Input((4,), name="x")
        outputs = self.second(keras.ops.tanh(self.first(x)))
        super().__init__(x, outputs, **kwargs)

    def __setattr__(self, name, value):
        if keras.backend.backend() == "torch" and name in ("first", "second"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def get_config(self):
        return {"name": self.name}
