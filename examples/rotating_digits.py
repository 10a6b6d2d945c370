"""
Title: Images that turn, and contexts that are mixed
Description: Soft contexts let neighbouring tasks share what they have learned.
Accelerator: None

Run it with `pip install "keras-psp[bench]"` and any backend.
"""

import keras

import keras_psp
from keras_psp import datasets
from keras_psp.evaluation import AccuracyMatrix
from keras_psp.evaluation import average_accuracy

"""
## The tasks

Handwritten digits turn a little with every step. A task is a tenth of the circle. At
every angle the model gets a mixture of the task's context and the next one's: a weight
for each of the ten tasks instead of an index.
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

In this one `fit()`, an epoch is a visit to a task. All tasks are visited three times.
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
