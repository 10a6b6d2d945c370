"""A bounded load test of `app.py`, on the loopback interface.

    python examples/tenants/load.py --tenants 1000 --requests 2000 --size 1

50 clients ask for random tenants. Once a second meanwhile, a tenant of another name is
added, replaced and removed. Every answer is compared with the tenant's own model.
"""

import argparse
import asyncio
import io
import socket
import tempfile
import time
from pathlib import Path

import aiohttp
import keras
import numpy as np
from app import serve
from app import start
from tenants import Tenants

SIZES = (64, 32, 8, 32, 64)


def build() -> keras.Model:
    """Returns an autoencoder with new weights."""
    layers = [keras.layers.Dense(n, "relu") for n in SIZES[1:-1]]
    last = keras.layers.Dense(SIZES[-1])
    return keras.Sequential([keras.Input(SIZES[:1], name="x"), *layers, last])


def pack(weights: list) -> bytes:
    """Returns weights as an upload."""
    file = io.BytesIO()
    np.savez(file, **{str(i): each for i, each in enumerate(weights)})
    return file.getvalue()


def answer(weights: list, x: np.ndarray) -> np.ndarray:
    """Returns what an autoencoder of these weights answers."""
    for i in range(0, len(weights), 2):
        x = x @ weights[i] + weights[i + 1]
        x = np.maximum(x, 0) if i < len(weights) - 2 else x
    return x


async def run(url: str, names: list, every: dict, hash_: str, args) -> None:
    """Sends all requests, and prints what came of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(args.size, SIZES[0])).astype("float32")
    body = {"inputs": x.round(4).tolist()}
    x = np.array(body["inputs"], "float32")
    drawn = iter(rng.choice(names, size=args.requests))
    seconds, wrong, failed, done = [], 0, 0, asyncio.Event()

    async def client(session):
        nonlocal wrong, failed
        for name in drawn:
            begin = time.perf_counter()
            async with session.post(f"{url}/{name}/predict", json=body) as response:
                if response.status != 200:
                    failed += 1
                    continue
                outputs = (await response.json())["outputs"]
            seconds.append(time.perf_counter() - begin)
            wrong += not np.allclose(outputs, answer(every[name], x), atol=1e-4)

    async def change(session):
        count = 0
        while not done.is_set():
            for _ in range(2):
                weights = [w + rng.normal(size=w.shape) for w in every[names[0]]]
                where = f"{url}/guest?architecture={hash_}"
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
        await asyncio.gather(*(client(session) for _ in range(args.clients)))
        total = time.perf_counter() - begin
        done.set()
        changes = await changing
    p50, p95, p99 = 1000 * np.percentile(seconds, (50, 95, 99))
    print(
        f"{args.tenants} tenants, batches of {args.size}: {len(seconds) / total:.0f} "
        f"requests a second, p50 {p50:.1f} ms, p95 {p95:.1f}, p99 {p99:.1f}; "
        f"{wrong} wrong, {failed} failed of {args.requests}; a tenant was added, "
        f"replaced and removed {changes} times"
    )


def main() -> None:
    """Makes tenants, serves them and asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--size", type=int, default=1)
    args = parser.parse_args()
    room = 1 << args.tenants.bit_length()
    with tempfile.TemporaryDirectory() as folder:
        base = build()
        base.save(Path(folder, "base.keras"))
        rng = np.random.default_rng(1)
        start_weights, every = base.get_weights(), {}
        tenants = Tenants(base, Path(folder, "tenants"), room=room, max_batch=1)
        for i in range(args.tenants):
            every[f"tenant-{i}"] = [
                w + 0.1 * rng.normal(size=w.shape).astype("float32")
                for w in start_weights
            ]
        hash_ = tenants.card["architecture"]
        tenants.put_many({name: pack(each) for name, each in every.items()}, hash_)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start(f"{folder}/base.keras", f"{folder}/tenants", port, room=room)
        url = f"http://127.0.0.1:{port}/tenants"
        try:
            asyncio.run(run(url, list(every), every, hash_, args))
        finally:
            serve.shutdown()


if __name__ == "__main__":
    main()
