"""
Title: Ten tasks, one after the other, in one network
Description: A superposed multi-layer perceptron learns permuted digits and keeps them.
Accelerator: None

Run it with `pip install "keras-psp[bench]"` and any backend.
"""

import keras

import keras_psp
from keras_psp import datasets
from keras_psp.evaluation import AccuracyMatrix
from keras_psp.evaluation import average_accuracy
from keras_psp.evaluation import forgetting

"""
## The tasks

Each task is real handwritten digits, whose pixels it sees in an order of its own.
Task 0 sees them as they are. No two tasks agree on what a kernel should be.
"""

num_tasks, steps_per_task = 10, 200
tasks = datasets.permuted("digits", num_tasks=num_tasks, seed=0)

"""
## The model

Any functional model will do. A `PSPDense` is a `Dense` that takes a task index beside
its input. All tasks share its kernel, and each sees it through signs of its own.
"""

image = keras.Input(tasks.image_shape, name="image")
task = keras.Input((), dtype="int32", name="task")
x = keras.layers.Flatten()(image)
for _ in range(2):
    x = keras_psp.layers.PSPDense(256, num_tasks, activation="relu")(x, task)
logits = keras_psp.layers.PSPDense(tasks.num_classes, num_tasks)(x, task)
model = keras_psp.models.TaskModel({"image": image, "task": task}, logits)

"""
## Training

One `fit()` over the stream of tasks; an epoch is a task. The callback measures the
accuracy on all tasks seen so far at the end of each.
"""

model.compile(
    optimizer=keras.optimizers.RMSprop(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
accuracy_matrix = AccuracyMatrix(tasks)
model.fit(
    tasks.stream(steps_per_task, batch_size=64),
    epochs=num_tasks,
    steps_per_epoch=steps_per_task,
    callbacks=[accuracy_matrix],
    shuffle=False,
    verbose=2,
)

"""
## What is kept
"""

matrix = accuracy_matrix.matrix
print(f"average accuracy over {num_tasks} tasks: {average_accuracy(matrix):.3f}")
print(f"first task, after all the others: {matrix[-1, 0]:.3f}")
print(f"forgetting: {forgetting(matrix):.3f}")
