"""Run by test_distribution.py: two processes that train together, by Keras' recipe.

https://keras.io/guides/distributed_training_with_torch/, with Keras' own optimizer. It
takes the beginning of names of files, and the names of models.
"""

import socket
import sys

import cases
import keras
import torch
from torch.nn.parallel import DistributedDataParallel

CASES = [
    ("mlp", "ewc"),
    ("mlp", "gram"),
    ("mlp", "per_task"),
    ("permuted", "sgd"),
    ("resnet18", "sgd"),
    ("encoder", "sgd"),
]


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
        if hasattr(model.optimizer, "end_task"):
            part = {key: value[:10] for key, value in x.items()}
            model.optimizer.end_task(model, (part, y[:10]))
    return losses


def work(rank, workers, port, file, names):
    torch.distributed.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers
    )
    for name, optimizer in chosen(names):
        with cases.precise(name):
            train_on_share(rank, workers, file, name, optimizer)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def train_on_share(rank, workers, file, name, optimizer):
    # Rank 0's weights become those of all, or all have drawn the same.
    sends = name != "permuted"
    keras.utils.set_random_seed(rank if sends else 0)
    model = cases.build(name)
    cases.compile_model(model, optimizer)
    parallel = DistributedDataParallel(model, init_sync=sends)
    weights = model.get_weights()
    losses = torch.tensor(train(model, parallel, name, rank, workers))
    torch.distributed.all_reduce(losses)
    state = cases.state(model)
    for value in state.values():
        if value.dtype.kind == "i":  # Torch sends none of 16 bits.
            value = value.astype("int64")
        other = torch.tensor(value)
        torch.distributed.broadcast(other, 0)
        torch.testing.assert_close(torch.tensor(value), other)
    if rank == 0:
        torch.save((weights, losses / workers, state), f"{file}-{name}-{optimizer}")


def chosen(names):
    return [case for case in CASES if case[0] in names]


def compare(file, names):
    for name, optimizer in chosen(names):
        saved = torch.load(f"{file}-{name}-{optimizer}", weights_only=False)
        weights, losses, state = saved
        with cases.precise(name):
            model = cases.build(name)
            model.set_weights(weights)
            cases.compile_model(model, optimizer)
            expected = train(model, model, name), cases.state(model)
        cases.assert_equal((losses.numpy(), state), expected)
        print(f"{name} {optimizer}: equal", flush=True)


if __name__ == "__main__":
    file, *names = sys.argv[1:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Forked from this one, which has computed nothing: an import takes longest.
    torch.multiprocessing.start_processes(
        work, (2, port, file, names), 2, start_method="fork"
    )
    compare(file, names)
