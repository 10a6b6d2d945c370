"""
Title: Eight fine-tuned models in the memory of two
Description: Eight models that were fine-tuned from one base, kept in one network.
Accelerator: None

Run it with `pip install "keras-psp[bench]"` and any backend.
"""

import keras
import numpy as np

import keras_psp
from keras_psp import datasets

"""
## One base model, and eight that are fine-tuned from it

The base learns upright handwritten digits. Each of the eight models then learns them
turned by another angle.
"""

num_tasks = 8
tasks = datasets.rotating("digits", period=2 * num_tasks, context_every=1)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def without_task(dataset):
    return dataset.map(lambda inputs, label: (inputs["image"], label))


base = keras.Sequential(
    [
        keras.Input(tasks.image_shape, name="image"),
        keras.layers.Flatten(),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(tasks.num_classes),
    ]
)
base.compile("adam", loss)
base.fit(without_task(tasks.train(0, 32)), epochs=10, verbose=0)

models = []
for task in range(num_tasks):
    model = keras.models.clone_model(base)
    model.set_weights(base.get_weights())
    model.compile(keras.optimizers.Adam(3e-4), loss)
    model.fit(without_task(tasks.train(task, 32)), epochs=5, verbose=0)
    models.append(model)

"""
## All of them in one

Only the differences from the base are superposed. `superpose` fits them to 200 images
of each task, without labels, so that tasks disturb each other little.
"""

data = [
    np.concatenate([inputs["image"] for inputs, _ in tasks.train(task, 100).take(2)])
    for task in range(num_tasks)
]
one = keras_psp.superpose(models, context="fast_rotation", base=base, data=data)
share = one.count_params() / sum(model.count_params() for model in models)
print(f"weights, contexts included: {100 * share:.0f} % of the eight models'")

"""
## One model that answers for all

Every example brings its task; a batch may hold many.
"""

one.compile(loss=loss, metrics=["accuracy"])
accuracies = [
    one.evaluate(tasks.test(task, 100), verbose=0)[1] for task in range(num_tasks)
]
print(f"average accuracy over {num_tasks} tasks: {np.mean(accuracies):.4f}")

"""
## And back

One task alone is a plain Keras model again.
"""

plain = keras_psp.extract(one, task=3)
plain.compile(loss=loss, metrics=["accuracy"])
accuracy = plain.evaluate(without_task(tasks.test(3, 100)), verbose=0)[1]
print(f"task 3 by itself: {accuracy:.4f}")
