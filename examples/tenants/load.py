"""A bounded load test of `app.py`, on the loopback interface.

    python examples/tenants/load.py --tenants 1000 --requests 2000 --size 1

50 clients ask for random tenants. Once a second meanwhile, a tenant of another name is
added, replaced and removed. Every answer is compared with the tenant's own model.
"""

import argparse
import asyncio
import io
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import keras
import numpy as np
import ray
from app import serve
from app import start
from tenants import Tenants

SIZES = (64, 32, 8, 32, 64)
Weights = list[np.ndarray]


def build() -> keras.Model:
    """Returns an autoencoder with new weights."""
    layers = [keras.layers.Dense(n, "relu") for n in SIZES[1:-1]]
    last = keras.layers.Dense(SIZES[-1])
    return keras.Sequential([keras.Input(SIZES[:1], name="x"), *layers, last])


def make_tenants(base: keras.Model, number: int) -> dict[str, Weights]:
    """Returns weights of many tenants by name."""
    rng = np.random.default_rng(1)
    start_weights = base.get_weights()
    return {
        f"tenant-{i}": [
            w + 0.1 * rng.normal(size=w.shape).astype("float32") for w in start_weights
        ]
        for i in range(number)
    }


def fill(base: keras.Model, folder: str, every: dict[str, Weights]) -> str:
    """Writes all tenants into a folder, and returns the hash of their architecture."""
    tenants = Tenants(base, folder, room=1, max_batch=1)
    hash_ = tenants.card["architecture"]
    tenants.put_many({name: pack(each) for name, each in every.items()}, hash_)
    return hash_


def pack(weights: Weights) -> bytes:
    """Returns weights as an upload."""
    file = io.BytesIO()
    np.savez(file, **{str(i): each for i, each in enumerate(weights)})
    return file.getvalue()


def answer(weights: Weights, x: np.ndarray) -> np.ndarray:
    """Returns what an autoencoder of these weights answers."""
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        x = np.maximum(x, 0) if i < len(weights) - 2 else x
    return x


def is_free(port: int) -> bool:
    """Whether nobody listens on a port."""
    with closing(socket.socket()) as found:
        return found.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def serving(folder: str, base: keras.Model, direct: bool, **options: Any) -> Iterator:
    """Starts the server of a folder's tenants; gives the address of the replica.

    Args:
        folder: With the tenants in `tenants`.
        base: Of the tenants' architecture.
        direct: Whether to ask the replica itself, or by Ray's proxy.
        **options: Of `app.start()`.
    """
    base.save(Path(folder, "base.keras"))
    # Below those that the system gives out, to Ray's processes too.
    ports = range(20_000, 30_000, 100)
    port = next(port for port in ports if is_free(port) and is_free(port + 1))
    paths = f"{folder}/base.keras", f"{folder}/tenants"
    start(*paths, port, direct=direct, **options)
    try:
        yield f"http://127.0.0.1:{port + direct}/tenants"
    finally:
        serve.shutdown()
        ray.shutdown()


async def ask(
    url: str,
    every: dict[str, Weights],
    requests: int,
    seconds: float = 1e9,
    clients: int = 50,
    size: int = 1,
    architecture: str | None = None,
) -> dict[str, Any]:
    """Sends requests for random tenants, and says what came of them.

    Args:
        url: What `serving()` gives.
        every: The tenants that are asked for, and their weights.
        requests: How many to send.
        seconds: After so long no more are sent.
        clients: How many ask at once.
        size: Examples in a request.
        architecture: If given, a tenant of another name is added, replaced and removed
            every second meanwhile, with weights of this architecture.
    """
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(16, size, SIZES[0])).round(4).astype("float32")
    bodies = [json.dumps({"inputs": x.tolist()}).encode() for x in inputs]
    names = list(every)
    sizes = len(names), len(bodies)
    drawn = (map(int, rng.integers(sizes)) for _ in range(requests))
    answers: dict[str, list] = {name: [] for name in names}
    times, failed, done = [], [], asyncio.Event()
    end = time.perf_counter() + seconds

    async def client(session):
        for i, j in drawn:
            begin = time.perf_counter()
            if begin > end:
                return
            where = f"{url}/{names[i]}/predict"
            try:
                async with session.post(where, data=bodies[j]) as response:
                    text = await response.read()
            except aiohttp.ClientError as error:
                failed.append(repr(error))
                continue
            times.append(time.perf_counter() - begin)
            if response.status == 200:
                outputs = np.array(json.loads(text)["outputs"], "float32")
                answers[names[i]].append((j, outputs))
            else:
                failed.append(text.decode())

    async def change(session):
        count = 0
        while architecture and not done.is_set():
            for _ in range(2):
                weights = [w + rng.normal(size=w.shape) for w in every[names[0]]]
                where = f"{url}/guest?architecture={architecture}"
                async with session.put(where, data=pack(weights)) as response:
                    response.raise_for_status()
            async with session.delete(f"{url}/guest") as response:
                response.raise_for_status()
            count += 1
            await asyncio.sleep(1)
        return count

    async with aiohttp.ClientSession() as session:
        changing = asyncio.create_task(change(session))
        begin = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        total = time.perf_counter() - begin
        done.set()
        changes = await changing
    if not times:
        raise RuntimeError(f"Nothing was answered: {failed[:3]}")
    wrong = 0
    for name, found in answers.items():
        for j, outputs in found:
            right = answer(every[name], inputs[j])
            wrong += outputs.shape != right.shape or not np.allclose(
                outputs, right, atol=1e-4
            )
    p50, p95, p99 = 1000 * np.percentile(times, (50, 95, 99))
    return {
        "asked": len(names),
        "size": size,
        "clients": clients,
        "requests": len(times),
        "rate": len(times) / total,
        **{"p50": p50, "p95": p95, "p99": p99},
        "wrong": int(wrong),
        "failed": len(failed),
        "failures": failed[:3],
        "changes": changes,
    }


def main() -> None:
    """Makes tenants, serves them and asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--direct", action="store_true", help="without Ray's proxy")
    args = parser.parse_args()
    base = build()
    every = make_tenants(base, args.tenants)
    with tempfile.TemporaryDirectory() as folder:
        hash_ = fill(base, f"{folder}/tenants", every)
        room = args.tenants + 1
        with serving(folder, base, args.direct, room=room) as url:
            given = {"clients": args.clients, "size": args.size, "architecture": hash_}
            found = asyncio.run(ask(url, every, args.requests, **given))
    print(
        f"{args.tenants} tenants, batches of {args.size}: {found['rate']:.0f} requests "
        f"a second, p50 {found['p50']:.1f} ms, p95 {found['p95']:.1f}, "
        f"p99 {found['p99']:.1f}; {found['wrong']} wrong, {found['failed']} failed of "
        f"{found['requests']}; a tenant was added, replaced and removed "
        f"{found['changes']} times"
    )


if __name__ == "__main__":
    main()
