"""Run by test_distribution.py: two processes that train together, by Keras' recipe.

https://keras.io/guides/distributed_training_with_torch/, with Keras' own optimizer. It
writes a row for each case into a file: `python on_torch.py FILE mlp-ewc ...`.
"""

import socket
import sys
import tempfile

import cases
import keras
import torch
from torch.nn.parallel import DistributedDataParallel


def train(model, call, name, rank=0, workers=1):
    """Trains on this worker's share of each batch, and returns the worker's losses."""
    losses = []
    for seed in range(2):
        x, y = cases.data(name, seed=seed)
        for start in range(0, len(y), 16):
            share = slice(start + rank, start + 16, workers)
            inputs = {key: torch.tensor(each[share]) for key, each in x.items()}
            model.zero_grad()
            loss = model.loss(torch.tensor(y[share]), call(inputs, training=True))
            loss.backward()
            weights = model.trainable_weights
            with torch.no_grad():
                model.optimizer.apply([v.value.grad for v in weights], weights)
            losses.append(float(loss.detach()))
        cases.end_task(model, x, y)
    return losses


def work(rank, workers, port, folder, chosen):
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    for name, optimizer in chosen:
        with cases.precise(name):
            train_on_share(rank, workers, folder, name, optimizer)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def train_on_share(rank, workers, folder, name, optimizer):
    # Rank 0's weights become those of all, or all have drawn the same.
    sends = name != "permuted"
    keras.utils.set_random_seed(rank if sends else 0)
    model = cases.build(name)
    cases.compile_model(model, optimizer)
    parallel = DistributedDataParallel(model, init_sync=sends)
    weights = model.get_weights()
    losses = train(model, parallel, name, rank, workers)
    losses = torch.tensor(losses, dtype=torch.float64)
    torch.distributed.all_reduce(losses)
    states = cases.state(model)
    for value in (value for part in states for value in part):
        if value.dtype.kind == "i":  # Torch sends none of 16 bits.
            value = value.astype("int64")
        other = torch.tensor(value)
        torch.distributed.broadcast(other, 0)
        torch.testing.assert_close(torch.tensor(value), other)
    if rank == 0:
        alone = cases.is_unknown_alone(model, name, predict)
        found = losses / workers, states
        torch.save((weights, found, alone), f"{folder}/{name}-{optimizer}")


class Positional(torch.nn.Module):
    """A model as torch traces it."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(dict(zip(self.names, inputs, strict=True)))


def predict(model, x):
    """Answers as an exported model does: eagerly, an unknown task is an error."""
    inputs = [torch.tensor(each) for each in x.values()]
    known = [each.clamp(0, cases.TASKS - 1) for each in inputs]
    with torch.no_grad():
        traced = torch.jit.trace(Positional(model, [*x]), known, check_trace=False)
        return traced(*inputs).numpy()


def compare(folder, name, optimizer):
    """Trains in this process alone; returns what differs."""
    saved = torch.load(f"{folder}/{name}-{optimizer}", weights_only=False)
    weights, found, alone = saved
    model = cases.build(name)
    model.set_weights(weights)
    cases.compile_model(model, optimizer)
    expected = train(model, model, name), cases.state(model)
    return cases.compare(found, expected, alone)


if __name__ == "__main__":
    file, *names = sys.argv[1:]
    chosen = cases.choose(names)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        # Forked from this one, which has computed nothing: an import takes longest.
        torch.multiprocessing.start_processes(
            work, (2, port, folder, chosen), 2, start_method="fork"
        )
        for name, optimizer in chosen:
            with cases.precise(name):
                row = compare(folder, name, optimizer)
                engine = "DistributedDataParallel, 2 processes"
                cases.write(row, engine, name, optimizer, file)
