"""
Title: Consolidation of a plain Keras model
Description: Elastic weight consolidation makes a plain Keras model forget less.
Accelerator: None

Run it with `pip install "keras-psp[bench]"` and any backend.
"""

import keras

from keras_psp import datasets
from keras_psp.consolidation import EWC

"""
## The tasks and the model

Each task is real handwritten digits, whose pixels it sees in an order of its own.
Task 0 sees them as they are. The model is a plain Keras model without tasks.
"""

num_tasks = 3
tasks = datasets.permuted("digits", num_tasks=num_tasks, seed=0)


def build_model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(tasks.image_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(tasks.num_classes),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def load(split):
    """The examples of a task without its index."""
    return split.map(lambda inputs, label: (inputs["image"], label))


"""
## Training

`EWC` is an optimizer around another one. It pulls the weights that matter to earlier
tasks back to the values that these tasks left. Call its `end_task()` when a task ends.
With a `strength` of 0 it pulls nothing: that is the comparison.
"""


def learn(strength):
    model = build_model(EWC("adam", strength=strength))
    for k in range(num_tasks):
        data = load(tasks.train(k, batch_size=64))
        model.fit(data, epochs=10, verbose=0)
        model.optimizer.end_task(model, data)
    scores = [
        model.evaluate(load(tasks.test(k, batch_size=359)), verbose=0)[1]
        for k in range(num_tasks)
    ]
    return sum(scores) / num_tasks


"""
## What is kept
"""

print(f"without consolidation: {learn(strength=0.0):.3f}")
print(f"average accuracy over {num_tasks} tasks: {learn(strength=100.0):.3f}")
