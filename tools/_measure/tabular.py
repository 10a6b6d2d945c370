"""Trains `tabular_ensemble()` and the package `tabm` alike on scikit-learn's data sets.

Both have three hidden layers of 64 units, 16 members, a dropout of 0.1, AdamW and the
same split and batches. Of 250 steps, every 25th is looked at, and the one with the best
validation figure counts. `tabm` trains in a plain loop of torch's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from _measure import results
from _measure.results import Result
from _measure.results import Row

UNITS, DEPTH, MEMBERS, DROPOUT = 64, 3, 16, 0.1
RATE, DECAY, BATCH, STEPS, LOOK = 2e-3, 3e-4, 64, 250, 25
DATASETS = ("breast_cancer", "wine", "iris", "digits", "diabetes")
KINDS = {"first": "tabm-mini", "all": "tabm"}


def run(args: argparse.Namespace) -> Result:
    """Trains all systems on all data sets with all seeds."""
    import keras

    rows: list[Row] = []
    for name in DATASETS:
        for seed in args.seeds:
            data = _load(name, seed)
            for adapters, arch_type in KINDS.items():
                for system, train in (("keras_psp", _ours), ("tabm", _theirs)):
                    keras.utils.set_random_seed(seed)
                    figure, step = train(data, seed, adapters, arch_type)
                    rows.append(
                        {
                            "data": name,
                            "measure": "RMSE"
                            if data["classes"] is None
                            else "accuracy",
                            "adapters": adapters,
                            "system": system,
                            "seed": seed,
                            "figure": figure,
                            "step_ms": 1000 * step,
                        }
                    )
            print(name, seed, [f"{row['figure']:.4f}" for row in rows[-4:]])
    what = "test accuracy or RMSE in standard deviations, and time of a step"
    environment = results.describe_environment("tabm", "scikit-learn")
    backend = keras.backend.backend()
    return results.save(args, f"stack-tables-{backend}", what, rows, environment)


def _load(name: str, seed: int) -> dict[str, Any]:
    """Returns standardized parts of a data set, drawn by the seed."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    x, y = found.data.astype("float32"), found.target
    classes = None if name == "diabetes" else len(np.unique(y))
    order = np.random.default_rng(seed).permutation(len(x))
    train, validation, test = np.split(order, [len(x) * 6 // 10, len(x) * 8 // 10])
    mean, deviation = x[train].mean(0), x[train].std(0)
    x = (x - mean) / np.where(deviation > 0, deviation, 1)
    if classes is None:
        y = ((y - y[train].mean()) / y[train].std()).astype("float32")[:, None]
    parts = {"train": train, "validation": validation, "test": test}
    return {key: (x[rows], y[rows]) for key, rows in parts.items()} | {
        "classes": classes
    }


def _measure(answers: np.ndarray, y: np.ndarray, classes: int | None) -> float:
    if classes is None:
        return float(np.sqrt(np.mean((answers - y) ** 2)))
    return float(np.mean(answers.argmax(-1) == y))


def _train(
    data: dict, seed: int, step: Callable, answer: Callable
) -> tuple[float, float]:
    """Returns the test figure of the best look, and the median time of a step."""
    (x, y), classes = data["train"], data["classes"]
    rng = np.random.default_rng(seed)
    best, figure, seconds = -np.inf, np.nan, []
    for i in range(1, STEPS + 1):
        rows = rng.choice(len(x), BATCH, replace=False)
        begin = time.perf_counter()
        step(x[rows], y[rows])
        seconds.append(time.perf_counter() - begin)
        if i % LOOK:
            continue
        found = {
            part: _measure(answer(data[part][0]), data[part][1], classes)
            for part in ("validation", "test")
        }
        score = found["validation"] * (1 if classes else -1)
        if score > best:
            best, figure = score, found["test"]
    return figure, statistics.median(seconds)


def _ours(data: dict, seed: int, adapters: str, _: str) -> tuple[float, float]:
    import keras

    import keras_psp

    classes = data["classes"]
    model = keras_psp.models.tabular_ensemble(
        data["train"][0].shape[1],
        classes or 1,
        MEMBERS,
        UNITS,
        DEPTH,
        DROPOUT,
        adapters,
        "softmax" if classes else None,
        seed,
    )
    loss = "sparse_categorical_crossentropy" if classes else "mse"
    model.compile(keras.optimizers.AdamW(RATE, weight_decay=DECAY), loss)
    return _train(data, seed, model.train_on_batch, model.predict_on_batch)


def _theirs(data: dict, seed: int, _: str, arch_type: str) -> tuple[float, float]:
    import tabm
    import torch

    torch.manual_seed(seed)
    classes = data["classes"]
    model = tabm.TabM.make(
        n_num_features=data["train"][0].shape[1],
        d_out=classes or 1,
        n_blocks=DEPTH,
        d_block=UNITS,
        dropout=DROPOUT,
        k=MEMBERS,
        arch_type=arch_type,
    )
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)

    def step(x: np.ndarray, y: np.ndarray) -> None:
        model.train()
        optimizer.zero_grad()
        outputs = model(torch.from_numpy(x)).flatten(0, 1)
        labels = torch.from_numpy(y).repeat_interleave(MEMBERS, dim=0)
        if classes:
            loss = torch.nn.functional.cross_entropy(outputs, labels)
        else:
            loss = torch.nn.functional.mse_loss(outputs, labels)
        loss.backward()
        optimizer.step()

    def answer(x: np.ndarray) -> np.ndarray:
        model.eval()
        with torch.inference_mode():
            outputs = model(torch.from_numpy(x))
            outputs = outputs.softmax(-1) if classes else outputs
            return outputs.mean(1).numpy()

    return _train(data, seed, step, answer)
