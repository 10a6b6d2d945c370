"""What a run measures once its last task is learned."""

import functools
from typing import Any

import keras
import numpy as np

from keras_psp._core.memory import count_bytes
from keras_psp._core.private import flatten_layers
from keras_psp.benchmarks.config import Config
from keras_psp.datasets import TaskSequence
from keras_psp.evaluation.accuracy_matrix import make_evaluator
from keras_psp.inference import infer_task
from keras_psp.layers._task_low_rank import TaskLowRank
from keras_psp.models import TaskModel

BATCH = 32  # Images that are known to be of one task.


def measure_afterwards(
    config: Config, model: TaskModel, tasks: TaskSequence
) -> dict[str, Any]:
    """Measures what a config asks for, beside the accuracies; changes the model."""
    found: dict[str, Any] = {}
    if config.part_bits:
        found["in_few_bits"] = _test_in_few_bits(model, tasks, config.part_bits)
    if config.guessed:
        found["guessed"] = _guess_tasks(model, tasks, config.guessed)
    return found


def _test_in_few_bits(
    model: TaskModel, tasks: TaskSequence, bits: int
) -> dict[str, Any]:
    """Rounds the parts of tasks' own, and tests all tasks."""
    for layer in flatten_layers(model):
        if isinstance(layer, TaskLowRank):
            layer.round_to_bits(bits)
    evaluator, metric = make_evaluator(model, tasks.num_tasks)
    data = tasks.test_all(range(tasks.num_tasks), batch_size=1000)
    evaluator.evaluate(data, verbose=0)
    accuracy = keras.ops.convert_to_numpy(metric.result()).tolist()
    return {"accuracy": accuracy, "weights": count_bytes(model.weights)}


def _guess_tasks(model: TaskModel, tasks: TaskSequence, count: int) -> dict[str, Any]:
    """Answers test images as those of the task that the model takes them for."""
    found: dict[str, dict[str, list[float]]] = {
        way: {"found": [], "accuracy": []} for way in ("by_image", "by_batch")
    }
    # One that nobody has asked yet: what is compiled may know parts before rounding.
    model = TaskModel(model.input, model.output)
    guess_it = functools.partial(
        infer_task, model, method="energy", from_logits=True, batch_size=1000
    )
    for task in range(tasks.num_tasks):
        inputs, labels = next(iter(tasks.test(task, count)))
        x, labels = np.asarray(inputs["image"]), np.asarray(labels)
        parts = [x[start : start + BATCH] for start in range(0, len(x), BATCH)]
        by_batch = [np.repeat(guess_it(y, per="batch")[0], len(y)) for y in parts]
        guesses = {"by_image": guess_it(x)[0], "by_batch": np.concatenate(by_batch)}
        for way, guess in guesses.items():
            answers = model.predict({"image": x, "task": guess}, verbose=0)
            found[way]["found"].append(float(np.mean(guess == task)))
            accuracy = np.mean(answers.argmax(-1) == labels)
            found[way]["accuracy"].append(float(accuracy))
    return {"images": count, **found}
