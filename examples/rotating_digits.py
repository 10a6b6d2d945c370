"""
Title: Images that turn, and contexts that are mixed
Description: Soft contexts let neighbouring tasks share what they have learned.
Accelerator: None

Run it with `pip install "keras-psp[bench]"` and any backend.
"""

import keras

import keras_psp
from keras_psp import datasets
from keras_psp.benchmarks import AccuracyMatrix
from keras_psp.benchmarks import average_accuracy

"""
## The tasks

Handwritten digits that turn a little every step. A task is a tenth of the circle, and
at every angle the model is given a mixture of its context and the next one's: a weight
for each of the ten in place of an index.
"""

steps = 50
tasks = datasets.rotating(
    "digits", period=10 * steps, context_every=steps, cycles=3, assignment="mixture"
)

"""
## The model

`soft=True` gives it an input of weights.
"""

model = keras_psp.models.mlp(
    tasks.image_shape,
    tasks.num_classes,
    tasks.num_contexts,
    units=256,
    depth=2,
    soft=True,
)

"""
## Training

One `fit()`, in which an epoch is a visit to a task; all tasks are visited three times.
"""

model.compile(
    optimizer=keras.optimizers.RMSprop(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
accuracy_matrix = AccuracyMatrix(tasks)
model.fit(
    tasks.stream(steps, batch_size=64),
    epochs=tasks.num_visits,
    steps_per_epoch=steps,
    callbacks=[accuracy_matrix],
    shuffle=False,
    verbose=0,
)

"""
## What is kept
"""

matrix = accuracy_matrix.matrix
print(f"average accuracy over {tasks.num_tasks} tasks: {average_accuracy(matrix):.3f}")
