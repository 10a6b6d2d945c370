"""
Title: A small autoencoder for each of many machines
Description: Anomaly detection: trained together, compressed together.
Accelerator: None

Run it with `pip install "keras-psp[bench]"` and any backend. `MACHINES=1000` in the
environment sets the number of machines, `EPOCHS` the most epochs of their training, and
`FOLDER` where the model is kept. README.md says how it is served and watched.
"""

import os
import time
from pathlib import Path

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

import keras_psp

num_machines = int(os.environ.get("MACHINES", "12"))
epochs = int(os.environ.get("EPOCHS", "40"))
folder = Path(os.environ.get("FOLDER", "machines"))
keras.utils.set_random_seed(0)

"""
## Machines, their seasons and their faults

Each machine has eight sensors, read every hour. They follow the time of the day and the
load, each machine in its own way, drift a little and are noisy. An example is a window
of eight hours. A fault freezes a sensor, shifts it, or lets it swing. The network is
trained on 60 days. A week follows in which the machine is watched; in about a third of
the machines a sensor breaks for some hours of it.
"""

sensors, hours, days, watched = 8, 8, 60, 7


def read_sensors(rng, mixing, phases):
    """Returns what a machine's sensors read each hour, without faults."""
    t = np.arange(24 * (days + watched))
    load = np.zeros(len(t))
    for i in range(1, len(t)):
        load[i] = 0.95 * load[i - 1] + 0.3 * rng.normal()
    seasons = [np.sin(2 * np.pi * t / 24 + p) for p in phases]
    drift = np.outer(t / len(t), 0.2 * rng.normal(size=sensors))
    noise = 0.1 * rng.normal(size=(len(t), sensors))
    return np.stack([*seasons, load], axis=1) @ mixing + drift + noise


def add_fault(rng, window):
    """Returns what the sensors read if one of them is broken."""
    window, sensor = window.copy(), rng.integers(sensors)
    kind = rng.integers(3)
    if kind == 0:
        window[:, sensor] = window[0, sensor] + rng.choice([-2.0, 2.0])
    elif kind == 1:
        window[:, sensor] += rng.choice([-2.5, 2.5])
    else:
        window[:, sensor] += 2.0 * (-1.0) ** np.arange(len(window))
    return window


def make_machine(seed):
    """Returns windows to train on, windows with and without faults, and a week.

    The week is what the sensors read, and the hours of its fault, from one to another.
    """
    rng = np.random.default_rng([1, seed])
    mixing, phases = rng.normal(size=(3, sensors)), rng.uniform(0, 6, size=2)
    series = read_sensors(rng, mixing, phases)
    before = series[: 24 * days]
    series = (series - before.mean(0)) / before.std(0)
    starts = rng.permutation(len(before) - hours)[:600]
    windows = np.stack([series[s : s + hours] for s in starts])
    faulty = np.stack([add_fault(rng, window) for window in windows[500:]])
    test = np.concatenate([windows[400:500], faulty])
    flat = [each.reshape(len(each), -1).astype("float32") for each in (windows, test)]
    week, fault = series[24 * days - hours :].astype("float32"), (0, 0)
    if rng.random() < 0.3:
        begin = int(rng.integers(hours, len(week) - 48))
        fault = begin, begin + int(rng.integers(6, 48))
        week[slice(*fault)] = add_fault(rng, week[slice(*fault)])
    return flat[0][:400], flat[1], week, fault


machines = [make_machine(seed) for seed in range(num_machines)]
labels = np.repeat([0, 1], 100)

"""
## One network for each machine, trained together

All machines begin with a network that has seen a little of every machine; `stack` holds
a copy for each. Each copy is trained by its own machine's loss alone.
"""


def build():
    layers = [keras.layers.Dense(units, "relu") for units in (32, 8, 32)]
    inputs = keras.Input((sensors * hours,), name="window")
    return keras.Sequential([inputs, *layers, keras.layers.Dense(sensors * hours)])


base = build()
base.compile(keras.optimizers.Adam(3e-3), "mse")
some = np.concatenate([train[: 20000 // num_machines + 1] for train, *_ in machines])
base.fit(some, some, epochs=10, batch_size=128, verbose=0)

names = [f"machine-{k}" for k in range(num_machines)]
many = keras_psp.stack(dict.fromkeys(names, base))
begin = time.perf_counter()
many.compile(
    keras_psp.optimizers.PerTask(keras.optimizers.Adam(2e-3), rates=1.0), "mse"
)
data = [(train[:350], train[:350]) for train, *_ in machines]
batches = keras_psp.models.TaskBatches(data, many, batch_size=32)
held_out = [(train[350:], train[350:]) for train, *_ in machines]
validation = keras_psp.models.TaskBatches(held_out, many, batch_size=50)
stop = keras_psp.evaluation.StopEachTask(validation, patience=3)
many.fit(batches, epochs=epochs, callbacks=[stop], verbose=0)
together = time.perf_counter() - begin
print(f"validation loss: {stop.losses[0].mean():.3f} -> {stop.best.mean():.3f}")

"""
## The same in a loop

Training a few machines' networks one after the other tells how long all would take.
"""

sample = min(num_machines // 6, 20)
begin = time.perf_counter()
for train, *_ in machines[:sample]:
    model = keras.models.clone_model(base)
    model.set_weights(base.get_weights())
    model.compile(keras.optimizers.Adam(2e-3), "mse")
    model.fit(
        train[:350],
        train[:350],
        validation_data=(train[350:], train[350:]),
        epochs=epochs,
        callbacks=[keras.callbacks.EarlyStopping(patience=3)],
        verbose=0,
    )
loop = (time.perf_counter() - begin) * num_machines / sample
print(
    f"training: {together:.1f} s together, {loop:.1f} s in a loop, of {sample} scaled"
)

"""
## All of them in a tenth of their memory

`superpose` keeps each network's difference from the common first one, in few bits.
"""

few = [train[:200] for train, *_ in machines]
small = keras_psp.superpose(many, base=base, data=few, budget=0.1 * num_machines)
memory = keras_psp.diagnostics.memory(small)
task = np.repeat(np.arange(num_machines), len(labels))
windows = np.concatenate([test for _, test, *_ in machines])


def measure(model):
    """Returns each machine's area under the curve, and the mean errors of windows."""
    answers = model.predict(
        {"window": windows, "task": task}, batch_size=len(labels), verbose=0
    )
    errors = np.mean((answers - windows) ** 2, axis=1).reshape(num_machines, -1)
    return np.array([roc_auc_score(labels, each) for each in errors]), errors


own, _ = measure(many)
compressed, errors = measure(small)
shared = np.mean((base.predict(windows, verbose=0) - windows) ** 2, axis=1)
shared = [roc_auc_score(labels, each) for each in shared.reshape(num_machines, -1)]
print(
    f"area under the curve, mean and worst machine: one network for all "
    f"{np.mean(shared):.4f}, {min(shared):.4f}; each its own {own.mean():.4f}, "
    f"{own.min():.4f}; in a tenth of the memory {compressed.mean():.4f}, "
    f"{compressed.min():.4f}"
)
print(f"largest loss of a machine: {100 * (own - compressed).max():.2f} points")

"""
## An alarm

The threshold of each machine is an error that 95 % of its own windows stay below. The
folder then holds the compressed model, the thresholds and the week. README.md says how
to serve the model, and how a page shows the errors of the week.
"""

normal = np.stack([x for x, _ in held_out])
answers = small.predict(
    {"window": np.concatenate(normal), "task": np.repeat(range(num_machines), 50)},
    verbose=0,
)
own_errors = np.mean((answers.reshape(normal.shape) - normal) ** 2, axis=2)
thresholds = np.quantile(own_errors, 0.95, axis=1)
accuracy = np.mean((errors > thresholds[:, None]) == labels)
print(f"average accuracy over {num_machines} tasks: {accuracy:.4f}")

folder.mkdir(exist_ok=True)
small.save(folder / "machines.keras")
weeks, faults = (np.array(each) for each in list(zip(*machines, strict=True))[2:])
np.savez(folder / "week.npz", names=names, week=weeks, fault=faults, limit=thresholds)
