"""Run by test_distribution.py: two processes of TensorFlow that train together.

It takes the ports of both. TensorFlow sends no bytes between workers, so the contexts
are computed from their seed. Keras' `fit()` fails under this strategy: it trains by a
loop, as TensorFlow's guide has it.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import sys

import cases
import keras
import tensorflow as tf


def train(model, run, index, workers):
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
        x, y = cases.data("seeded", seed=seed)
        for start in range(0, len(y), 16):
            share = slice(start + index, start + 16, workers)
            inputs = {key: tf.constant(each[share]) for key, each in x.items()}
            losses.append(run(step, (inputs, tf.constant(y[share]))))
        part = {key: value[:10] for key, value in x.items()}
        model.optimizer.end_task(model, (part, y[:10]))
    return losses


def work(index, ports):
    addresses = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    os.environ["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": addresses}, "task": task}
    )
    strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def run_on_both(step, arguments):
        return float(strategy.reduce("SUM", strategy.run(step, arguments), axis=None))

    keras.utils.set_random_seed(0)
    one = cases.build("seeded")
    with strategy.scope():
        model = cases.build("seeded")
        model.set_weights(one.get_weights())
        cases.compile_model(model, "ewc")
        model.optimizer.build(model.trainable_variables)
    found = train(model, run_on_both, index, 2), cases.state(model)
    cases.compile_model(one, "ewc")
    one.optimizer.build(one.trainable_variables)
    alone = train(one, lambda step, arguments: float(step(*arguments)), 0, 1)
    cases.assert_equal(found, (alone, cases.state(one)))
    print("equal", flush=True)


if __name__ == "__main__":
    # Forked from this one, which computes nothing: an import takes longest.
    fork = multiprocessing.get_context("fork")
    workers = [
        fork.Process(target=work, args=(index, sys.argv[1:]), daemon=True)
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
