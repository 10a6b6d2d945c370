"""A model of a class of its own, as users write it."""

import keras


@keras.saving.register_keras_serializable("tests")
class OwnModel(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(x)
