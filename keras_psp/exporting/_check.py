"""Compares the outputs of an exported model with the model's own."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_psp._core.private import kept_weights
from keras_psp._core.task import unknown_answer
from keras_psp.exporting._run_artifact import as_known
from keras_psp.inference import entropy

BATCH_SIZES = (1, 7, 64)
SIZE = max(BATCH_SIZES)
RUN_ARTIFACT = Path(__file__).with_name("_run_artifact.py")


class Check:
    """Requests to an exported model, and what it must answer.

    The requests are batches of 1, 7 and 64 examples of mixed tasks, batches of one
    task, and examples of invalid tasks, among others and alone.

    Args:
        model: Functional Keras model whose inputs are a dictionary.
        output_names: The names of its outputs, in order.
        tasks: The tasks that have an endpoint each.
        infer_task: Boolean, whether there is an endpoint `infer_task`.
        from_logits: Boolean, an argument of `infer_task()`.
        data: Dictionary of arrays of inputs by name, without tasks. By default, they
            are drawn.
    """

    def __init__(
        self,
        model: keras.Model,
        output_names: list[str],
        tasks: Iterable[int] = (),
        infer_task: bool = False,
        from_logits: bool = True,
        data: dict[str, np.ndarray] | None = None,
    ) -> None:
        self.requests: dict[str, np.ndarray] = {}
        self.answers: dict[str, np.ndarray] = {}
        self._model, self._names, self._is_drawn = model, output_names, data is None
        others = {
            name: _draw(name, tensor) if data is None else _repeat(data[name], tensor)
            for name, tensor in model.input.items()
            if name != "task"
        }
        if "task" not in model.input:
            self._add(others, BATCH_SIZES)
            return
        given = _draw_tasks(model)
        self._add({**others, "task": given}, BATCH_SIZES)
        self._add({**others, "task": np.repeat(given[:1], SIZE, axis=0)}, (1, 7))
        if takes_index(model):
            first, *others_unknown = _unknown_tasks(model)
            self._add({**others, "task": given}, (7,), {3: first})
            self._add({**others, "task": given}, (1,), {0: first})
            unknown = dict(zip((0, 5, 6, 9, 11), others_unknown, strict=False))
            self._add({**others, "task": given}, (64,), unknown)
        for task in tasks:
            given = np.full(SIZE, task, model.input["task"].dtype)
            outputs = self._predict({**others, "task": given})
            self._expect(f"serve_task_{task}", _first(others, 7), _first(outputs, 7))
        if infer_task:
            evidence = self._evidence(_first(others, 7), from_logits)
            self._expect("infer_task", _first(others, 7), {"evidence": evidence})

    def run(
        self, path: Path | str, folder: Path | str, python: str | None = None
    ) -> dict[str, np.ndarray]:
        """Runs an exported model in a process that has neither Keras nor keras_psp.

        Args:
            path: Path of the model.
            folder: Path of a folder for the requests and answers.
            python: Path of an interpreter that has the runtime; it sees only its own
                packages. Defaults to this one.

        Returns:
            Dictionary of NumPy arrays, like `answers`.

        Raises:
            RuntimeError: The runtime failed; with what it said.
        """
        requests, answers = Path(folder, "requests.npz"), Path(folder, "answers.npz")
        np.savez(requests, **self.requests)  # type: ignore[arg-type]
        interpreter = [sys.executable, "-P"] if python is None else [python, "-I"]
        run_python(*interpreter, RUN_ARTIFACT, path, requests, answers)
        with np.load(answers) as found:
            return dict(found)

    def difference(self, found: dict[str, np.ndarray]) -> float:
        """Returns how far answers are from what they must be.

        Args:
            found: What `run()` returned.

        Returns:
            The largest difference, of outputs larger than 1 relative to the largest;
            infinite where only one of the two is NaN, or an output is missing.
        """
        return max(
            _regret(found, key.removesuffix("evidence"), expected)
            if key.endswith("infer_task/evidence")
            else _difference(found.get(key), expected)
            for key, expected in self.answers.items()
        )

    def differences(self, found: dict[str, np.ndarray]) -> dict[str, float]:
        """Returns the largest `difference()` of each output, by name."""
        differences = dict.fromkeys(self._names, 0.0)
        for key, expected in self.answers.items():
            name = key.split("/", 2)[2]
            if name in differences and not key.endswith("infer_task/evidence"):
                difference = _difference(found.get(key), expected)
                differences[name] = max(differences[name], difference)
        return differences

    def _add(self, inputs, sizes, unknown=()):
        """Adds batches of the first examples, some with invalid tasks."""
        outputs = self._predict(inputs)
        for i in unknown:
            inputs["task"] = inputs["task"].copy()
            inputs["task"][i] = unknown[i]
            for value in outputs.values():
                value[i] = unknown_answer(value.dtype.name)
        for n in sizes:
            self._expect("serve", _first(inputs, n), _first(outputs, n))

    def _expect(self, endpoint, inputs, outputs):
        number = len({key.split("/")[0] for key in self.requests})
        for arrays, tensors in ((self.requests, inputs), (self.answers, outputs)):
            for name, value in tensors.items():
                arrays[f"{number}/{endpoint}/{name}"] = value

    def _predict(self, inputs):
        try:
            with kept_weights(self._model):
                # In batches of one size: others would be compiled anew.
                outputs = self._model.predict(inputs, batch_size=SIZE, verbose=0)
        except Exception as error:
            if not self._is_drawn:
                raise
            shapes = {name: value.shape for name, value in inputs.items()}
            raise ValueError(
                "The model cannot be called on random numbers, which the file's "
                "outputs are compared for. Give `data=`, such inputs as it takes. "
                f"Received: random inputs of shapes {shapes}; the model said: {error}"
            ) from error
        outputs = [as_known(np.array(value)) for value in keras.tree.flatten(outputs)]
        number = len(next(iter(inputs.values())))
        for name, value in zip(self._names, outputs, strict=True):
            if value.shape[:1] != (number,):
                raise ValueError(
                    "The model's outputs must have an entry for each example. "
                    f"Received: output {name!r} of shape {value.shape} for {number} "
                    "examples"
                )
        return dict(zip(self._names, outputs, strict=True))

    def _evidence(self, inputs, from_logits):
        """How sure of each example each task is; see `keras_psp.infer_task`."""
        present = np.array(self._model.present_tasks)
        n, number = len(next(iter(inputs.values()))), len(present)
        rows = np.arange(-(-n * number // SIZE) * SIZE) % (n * number)
        inputs = {name: value[rows // number] for name, value in inputs.items()}
        task = present[rows % number].astype(self._model.input["task"].dtype)
        (outputs,) = self._predict({**inputs, "task": task}).values()
        found = -entropy(outputs[: n * number].astype("float32"), from_logits)
        evidence = np.full((n, self._model.num_tasks), -np.inf, "float32")
        evidence[:, present] = keras.ops.convert_to_numpy(found).reshape(n, number)
        return evidence


def takes_index(model: keras.Model) -> bool:
    """Whether a model has an input `"task"` of indices, not of soft contexts."""
    return "task" in model.input and keras.backend.is_int_dtype(
        model.input["task"].dtype
    )


def run_python(python: str, *arguments: Any, backend: str | None = None) -> None:
    """Runs a Python command.

    Args:
        python: Path of the interpreter.
        *arguments: Its arguments.
        backend: Keras' backend. Defaults to this process's.

    Raises:
        RuntimeError: It failed; with the last lines of its output.
    """
    paths = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **os.environ,
        "KERAS_BACKEND": backend or keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "CUDA_VISIBLE_DEVICES": "",  # Whose memory another process may hold.
    }
    done = subprocess.run(
        [python, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise RuntimeError("\n".join(done.stdout.strip().splitlines()[-10:]))


def _draw(name, tensor):
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    shape = [SIZE, *(32 if n is None else n for n in tensor.shape[1:])]
    rng = np.random.default_rng(0)
    if keras.backend.is_float_dtype(dtype):
        return rng.normal(size=shape).astype(dtype)
    if keras.backend.is_int_dtype(dtype) or dtype == "bool":
        return rng.integers(2, size=shape).astype(dtype)
    raise ValueError(
        "A model's inputs must be numbers. "
        f"Received: input {name!r} of dtype {tensor.dtype}"
    )


def _repeat(array, tensor):
    """Returns as many examples as are asked for, again and again if there are less."""
    rows = np.arange(SIZE) % len(array)
    return array[rows].astype(keras.backend.standardize_dtype(tensor.dtype))


def _draw_tasks(model):
    rng = np.random.default_rng(1)
    if takes_index(model):
        tasks = rng.permutation(np.resize(model.present_tasks, SIZE))
        return tasks.astype(model.input["task"].dtype)
    return rng.dirichlet(np.ones(model.num_tasks), SIZE).astype("float32")


def _unknown_tasks(model):
    """Returns invalid tasks that the dtype of the model's input can hold."""
    limits = np.iinfo(model.input["task"].dtype)
    candidates = (
        *model.removed_tasks[:1],
        *(model.num_tasks, -1, limits.max, limits.min, 2**32),
    )
    return [
        task
        for task in candidates
        if limits.min <= task <= limits.max and task not in model.present_tasks
    ]


def _first(inputs, n):
    return {name: value[:n] for name, value in inputs.items()}


def _difference(found, expected):
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    unknown, other = (_is_unknown(outputs) for outputs in (expected, found))
    if (unknown != other).any():
        return np.inf
    if unknown.all():
        return 0.0
    wide = "complex128" if expected.dtype.kind == "c" else "float64"
    found, expected = (outputs[~unknown].astype(wide) for outputs in (found, expected))
    return float(abs(found - expected).max() / max(1, abs(expected).max()))


def _is_unknown(outputs):
    answer = unknown_answer(outputs.dtype.name)
    return np.isnan(outputs) if np.isnan(answer) else outputs == answer


def _regret(found, endpoint, evidence):
    """How far evidence is from that of the tasks which were found to have most."""
    tasks, confidences = found[f"{endpoint}task"], found[f"{endpoint}confidence"]
    best, second = -np.sort(-evidence, axis=-1)[:, :2].T
    regret = best - np.take_along_axis(evidence, tasks[:, None], axis=-1)[:, 0]
    ahead = confidences * (abs(best) + abs(second))
    return max(regret.max(), abs(ahead - (best - second)).max())
