"""Run by test_distribution.py: two processes of TensorFlow that train together.

TensorFlow sends no bytes between workers, so the contexts are computed from their seed.
Keras' `fit()` fails under this strategy: it trains by a loop, as TensorFlow's guide has
it. It writes a row for each case into a file: `python on_workers.py FILE mlp-ewc ...`.
"""

import contextlib
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import socket
import sys

import cases
import keras
import tensorflow as tf


def train(model, name, run, index, workers):
    """Trains on this worker's share of each batch."""
    weights, losses = model.trainable_weights, []

    @tf.function
    def step(inputs, targets):
        with tf.GradientTape() as tape:
            # Keras has divided it by the number of workers.
            loss = model.loss(targets, model(inputs, training=True))
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        model.optimizer.apply(gradients, weights)
        return loss

    for seed in range(2):
        x, y = cases.data(name, seed=seed)
        for start in range(0, len(y), 16):
            share = slice(start + index, start + 16, workers)
            inputs = {key: tf.constant(each[share]) for key, each in x.items()}
            losses.append(run(step, (inputs, tf.constant(y[share]))))
        cases.end_task(model, x, y)
    return losses


def train_on_both(strategy, index, name, optimizer):
    """Trains in one process and in both; returns what differs."""

    def run_on_both(step, arguments):
        return float(strategy.reduce("SUM", strategy.run(step, arguments), axis=None))

    def predict(model, x):
        return strategy.run(tf.function(model), (x,)).numpy()

    keras.utils.set_random_seed(0)
    one = cases.build(name, "seed")
    with strategy.scope():
        model = cases.build(name, "seed")
        model.set_weights(one.get_weights())
        cases.compile_model(model, optimizer)
        model.optimizer.build(model.trainable_variables)
    found = train(model, name, run_on_both, index, 2), cases.state(model)
    alone = cases.is_unknown_alone(model, name, predict)
    cases.compile_model(one, optimizer)
    one.optimizer.build(one.trainable_variables)
    losses = train(one, name, lambda step, given: float(step(*given)), 0, 1)
    return cases.compare(found, (losses, cases.state(one)), alone)


def work(index, ports, file, names):
    addresses = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": addresses}, "task": task}
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    train_on = functools.partial(train_on_both, strategy, index)
    if index == 0:
        cases.run({"MultiWorkerMirroredStrategy, 2 processes": train_on}, file, *names)
        return
    for name, optimizer in cases.choose(names):
        with cases.precise(name):
            cases.check(train_on(name, optimizer))


if __name__ == "__main__":
    file, *names = sys.argv[1:]
    ports = []
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            free = stack.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    # Forked from this one, which computes nothing: an import takes longest.
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=work, args=(index, ports, file, names), daemon=True)
        for index in range(2)
    ]
    for worker in workers:
        worker.start()
    waiting = {worker.sentinel: worker for worker in workers}
    while waiting:  # If one fails, the other would wait for it.
        for sentinel in multiprocessing.connection.wait(list(waiting)):
            worker = waiting.pop(sentinel)
            worker.join()
            if worker.exitcode:
                sys.exit(1)
