"""Asking an exported model what the model itself answers."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

from keras_psp.inference import evidence_by_entropy

BATCH_SIZES = (1, 7, 64)
RUN_ARTIFACT = Path(__file__).with_name("run_artifact.py")


class Check:
    """Requests to an exported model, and what it must answer.

    Batches of 1, 7 and 64 examples of mixed tasks, batches of one task, and examples
    of tasks that there are not among others and alone.

    Args:
        model: Functional Keras model whose inputs are a dictionary.
        output_names: The names of its outputs, in order.
        tasks: The tasks that have an endpoint each.
        infer_task: Boolean, whether there is an endpoint for that.
        from_logits: Boolean, an argument of `infer_task()`.
    """

    def __init__(
        self, model, output_names, tasks=(), infer_task=False, from_logits=True
    ):
        self.requests, self.answers = {}, {}
        self._model, self._names = model, output_names
        size = max(BATCH_SIZES)
        others = {
            name: _draw(name, tensor, size)
            for name, tensor in model.input.items()
            if name != "task"
        }
        if "task" not in model.input:
            self._add_batches(others)
            return
        given = _draw_tasks(model, size)
        self._add_batches({**others, "task": given})
        for n in (1, 7):
            one = np.repeat(given[-1:], n, axis=0)
            self._add({**_first(others, n), "task": one})
        if model.input["task"].dtype == "int32":
            self._add_unknown(_first(others, 7), given[:7], {3: model.num_tasks})
            self._add_unknown(others, given, {0: -1, 5: 2**31 - 1, 6: -(2**31)})
            self._add_unknown(_first(others, 1), given[:1], {0: model.num_tasks})
        others = _first(others, 7)
        for task in tasks:
            outputs = self._predict({**others, "task": np.full(7, task, "int32")})
            self._expect(f"serve_task_{task}", others, outputs)
        if infer_task:
            evidence = evidence_by_entropy(model, others, 7, from_logits)
            evidence = keras.ops.convert_to_numpy(evidence)
            self._expect("infer_task", others, {"evidence": evidence})

    def run(self, path, folder, python=sys.executable):
        """Runs an exported model in a process that has neither Keras nor keras_psp.

        Args:
            path: Path of the model.
            folder: Path of a folder for the files that are exchanged.
            python: Path of the interpreter.

        Returns:
            Dictionary of NumPy arrays, like `answers`.

        Raises:
            RuntimeError: The runtime failed; with what it said.
        """
        requests, answers = Path(folder, "requests.npz"), Path(folder, "answers.npz")
        np.savez(requests, **self.requests)
        run_python(python, "-P", RUN_ARTIFACT, path, requests, answers)
        with np.load(answers) as found:
            return dict(found)

    def difference(self, found):
        """Returns how far answers are from what they must be.

        Args:
            found: What `run()` returned.

        Returns:
            The largest difference, of outputs larger than 1 relative to the largest;
            infinite where one of them alone is NaN, or one is missing.
        """
        return max(
            _regret(found, key.removesuffix("evidence"), expected)
            if key.endswith("infer_task/evidence")
            else _difference(found.get(key), expected)
            for key, expected in self.answers.items()
        )

    def _add_batches(self, inputs):
        for n in BATCH_SIZES:
            self._add(_first(inputs, n))

    def _add(self, inputs):
        self._expect("serve", inputs, self._predict(inputs))

    def _add_unknown(self, inputs, tasks, unknown):
        outputs = self._predict({**inputs, "task": tasks})
        tasks = tasks.copy()
        for i, task in unknown.items():
            tasks[i] = task
            for value in outputs.values():
                value[i] = np.nan
        self._expect("serve", {**inputs, "task": tasks}, outputs)

    def _expect(self, endpoint, inputs, outputs):
        number = len({key.split("/")[0] for key in self.requests})
        for arrays, tensors in ((self.requests, inputs), (self.answers, outputs)):
            for name, value in tensors.items():
                arrays[f"{number}/{endpoint}/{name}"] = value

    def _predict(self, inputs):
        outputs = self._model.predict(inputs, batch_size=max(BATCH_SIZES), verbose=0)
        outputs = keras.tree.flatten(outputs)
        return dict(zip(self._names, map(np.array, outputs), strict=True))


def run_python(python, *arguments, backend=None):
    """Runs a command of Python's.

    Args:
        python: Path of the interpreter.
        *arguments: Its arguments.
        backend: Keras' backend. Defaults to this process's.

    Raises:
        RuntimeError: It failed; with the last that it said.
    """
    root = str(Path(__file__).parents[2])
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **os.environ,
        "KERAS_BACKEND": backend or keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
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
        raise RuntimeError(done.stdout.strip()[-2000:])


def _draw(name, tensor, size):
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    shape = [size, *(32 if n is None else n for n in tensor.shape[1:])]
    rng = np.random.default_rng(0)
    if keras.backend.is_float_dtype(dtype):
        return rng.normal(size=shape).astype(dtype)
    if keras.backend.is_int_dtype(dtype) or dtype == "bool":
        return rng.integers(2, size=shape).astype(dtype)
    raise ValueError(
        "A model's inputs must be numbers. "
        f"Received: input {name!r} of dtype {tensor.dtype}"
    )


def _draw_tasks(model, size):
    rng = np.random.default_rng(1)
    if model.input["task"].dtype == "int32":
        return rng.permutation(np.arange(size) % model.num_tasks).astype("int32")
    return rng.dirichlet(np.ones(model.num_tasks), size).astype("float32")


def _first(inputs, n):
    return {name: value[:n] for name, value in inputs.items()}


def _difference(found, expected):
    if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    unknown = np.isnan(expected)
    if (np.isnan(found) != unknown).any():
        return np.inf
    if unknown.all():
        return 0.0
    found, expected = found[~unknown].astype("float64"), expected[~unknown]
    return float(abs(found - expected).max() / max(1, abs(expected).max()))


def _regret(found, endpoint, evidence):
    """How far evidence is from that of the tasks which were found to have most."""
    tasks, confidences = found[f"{endpoint}task"], found[f"{endpoint}confidence"]
    best, second = -np.sort(-evidence, axis=-1)[:, :2].T
    regret = best - np.take_along_axis(evidence, tasks[:, None], axis=-1)[:, 0]
    ahead = confidences * (abs(best) + abs(second))
    return max(regret.max(), abs(ahead - (best - second)).max())
