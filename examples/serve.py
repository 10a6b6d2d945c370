"""
Title: Ten tasks behind one server
Description: An exported model behind Ray Serve, which batches requests of mixed tasks.
Accelerator: None

Run it with `pip install "keras-psp[serve]"` and any backend. It serves on the loopback
interface and ends by itself after a fixed number of requests.
"""

import asyncio
import json
import os
import socket
import tempfile
import time
from pathlib import Path

import aiohttp
import keras
import numpy as np
from starlette.responses import JSONResponse

import keras_psp
from keras_psp import datasets

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Nothing leaves this machine.
# A machine that is busy takes more than Ray's five seconds to start its proxy.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
import ray  # noqa: E402
from ray import serve  # noqa: E402

"""
## A model of ten tasks, exported

The exported model needs TensorFlow alone. Its card, a file inside it, names the shapes
and dtypes of its inputs and the number of tasks.
"""

num_tasks = 10
tasks = datasets.permuted("digits", num_tasks=num_tasks, seed=0)
model = keras_psp.models.mlp(
    tasks.image_shape, tasks.num_classes, num_tasks, units=256, depth=2
)
model.compile(
    optimizer=keras.optimizers.RMSprop(1e-3),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
)
model.fit(
    tasks.stream(200, batch_size=64),
    epochs=num_tasks,
    steps_per_epoch=200,
    shuffle=False,
    verbose=0,
)
folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "digits", "1")  # TensorFlow Serving's: name and version.
path.parent.mkdir()
keras_psp.export(model, path)

"""
## Requests

They have the form of TensorFlow Serving's REST requests: `{"inputs": {"image": [...],
"task": [...]}}`, with up to 64 examples. A request that does not fit the card, or is
too large, is refused before anything is computed. A request without an example gets an
answer without an output.
"""


class TooLarge(ValueError):
    """A request's body is too large to be read."""


async def read(request, limit=1 << 20):
    """Returns a request's body, or raises `TooLarge`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:  # What a client says of its length may be wrong.
            raise TooLarge(f"a request must have at most {limit} bytes")
    return bytes(body)


def parse(body):
    """Returns the JSON value of a body, or raises a `ValueError`."""
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("the JSON must not be nested so deeply") from error


def check(body, card, limit=64):
    """Returns the arrays of a request, or raises a `ValueError`."""
    inputs = body.get("inputs") if isinstance(body, dict) else None
    if not isinstance(inputs, dict) or inputs.keys() != card["inputs"].keys():
        raise ValueError(f'"inputs" must hold {", ".join(card["inputs"])}')
    arrays = {}
    for name, spec in card["inputs"].items():
        if inputs[name] == []:
            shape = [size or 0 for size in spec["shape"]]
            arrays[name] = np.empty([0, *shape[1:]], spec["dtype"])
            continue
        try:
            array = np.array(inputs[name])
        except ValueError as error:
            raise ValueError(f"{name!r} must not be ragged") from error
        if array.dtype.kind not in ("i" if spec["dtype"].startswith("int") else "if"):
            raise ValueError(f"{name!r} must hold numbers of dtype {spec['dtype']}")
        shape = array.shape[:1] + tuple(
            have if free is None else free
            for have, free in zip(array.shape[1:], spec["shape"][1:], strict=False)
        )
        if array.ndim != len(spec["shape"]) or array.shape != shape:
            raise ValueError(
                f"{name!r} must be of shape {spec['shape']}, not {list(array.shape)}"
            )
        arrays[name] = array
    if len({len(array) for array in arrays.values()}) > 1:
        raise ValueError("all inputs must hold the same number of examples")
    if len(arrays["task"]) > limit:
        raise ValueError(f"a request must hold at most {limit} examples")
    num_tasks = card["num_tasks"]
    unknown = arrays["task"][(arrays["task"] < 0) | (arrays["task"] >= num_tasks)]
    if unknown.size:
        raise ValueError(f"'task' must be in [0, {num_tasks}), not {unknown[0]}")
    # Numbers too large for the dtype become infinite.
    with np.errstate(over="ignore"):
        arrays = {
            name: array.astype(card["inputs"][name]["dtype"])
            for name, array in arrays.items()
        }
    if not np.isfinite(arrays["image"]).all():
        raise ValueError("'image' must be finite")
    return arrays


"""
## The server

The server needs neither Keras nor keras-psp. Ray Serve calls `answer` with all requests
that arrived during the last call. The model answers them as one batch, whatever their
tasks.
The model computes in a thread of its own, so that the server reads and refuses requests
meanwhile.
"""


@serve.deployment(max_ongoing_requests=256, logging_config={"enable_access_log": False})
class Tasks:
    def __init__(self, path):
        import tensorflow as tf

        self.model = tf.saved_model.load(str(path))
        card = path / "assets.extra" / "keras_psp.json"
        self.card = json.loads(card.read_text())

    def reconfigure(self, config):
        self.answer.set_max_batch_size(config["max_batch_size"])

    async def __call__(self, request):
        if request.method != "POST":
            return JSONResponse(self.card)
        try:
            inputs = check(parse(await read(request)), self.card)
        except ValueError as error:
            status = 413 if isinstance(error, TooLarge) else 400
            return JSONResponse({"error": str(error)}, status_code=status)
        if not len(inputs["task"]):
            return {"outputs": []}
        return {"outputs": (await self.answer(inputs)).tolist()}

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.002)
    async def answer(self, requests):
        batch = {
            name: np.concatenate([inputs[name] for inputs in requests])
            for name in requests[0]
        }
        outputs = await asyncio.to_thread(self.compute, batch)
        ends = np.cumsum([len(inputs["task"]) for inputs in requests])
        return np.split(outputs, ends[:-1])

    def compute(self, batch):
        (outputs,) = self.model.signatures["serve"](**batch).values()
        return outputs.numpy()


"""
## A load test

32 clients send one example after the other, each of a random task, 400 in all.
"""

rng = np.random.default_rng(0)
tests = [next(iter(tasks.test(task, 200))) for task in range(num_tasks)]
drawn = [(task, rng.integers(200)) for task in rng.integers(num_tasks, size=400)]
requests = [
    {
        "inputs": {
            "image": np.array(tests[task][0]["image"][i : i + 1]).tolist(),
            "task": [int(task)],
        }
    }
    for task, i in drawn
]
labels = [int(tests[task][1][i]) for task, i in drawn]


async def load(url, num_clients=32, seconds=60):
    """Returns the answers, the seconds that each took, and the seconds in all."""
    answers, latencies = [None] * len(requests), []
    waiting = iter(range(len(requests)))

    async def client(session):
        for i in waiting:
            start = time.perf_counter()
            async with session.post(url, json=requests[i]) as response:
                response.raise_for_status()
                answers[i] = np.argmax((await response.json())["outputs"][0])
            latencies.append(time.perf_counter() - start)

    async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
        start = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(num_clients)))
        return answers, latencies, time.perf_counter() - start


async def ask(url, body):
    """Returns the status and the content of the answer to one body."""
    async with aiohttp.ClientSession() as session:
        async with session.post(url, data=body) as response:
            return response.status, await response.json()


with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": port})
url = f"http://127.0.0.1:{port}/v1/models/digits:predict"
try:
    for size in (1, 32):
        server = Tasks.options(user_config={"max_batch_size": size}).bind(path)
        serve.run(server, route_prefix="/v1/models/digits:predict")
        asyncio.run(load(url))  # To warm up.
        answers, latencies, seconds = asyncio.run(load(url))
        p50, p95, p99 = 1000 * np.percentile(latencies, (50, 95, 99))
        print(
            f"batches of up to {size}: {len(answers) / seconds:.0f} requests a second, "
            f"latency {p50:.1f} ms (95 %: {p95:.1f}, 99 %: {p99:.1f})"
        )
    accuracy = np.mean(np.equal(answers, labels))
    print(f"average accuracy over {num_tasks} tasks: {accuracy:.4f}")
    good = requests[0]["inputs"]
    for expected, body in (
        (400, json.dumps({"inputs": {**good, "task": [num_tasks]}})),
        (400, json.dumps({"inputs": {**good, "task": [0.5]}})),
        (400, json.dumps({"inputs": {**good, "task": 0}})),
        (400, json.dumps({"inputs": {**good, "task": []}})),
        (400, json.dumps({"inputs": {**good, "image": [[1, 2], [3]]}})),
        (400, json.dumps({"inputs": {**good, "label": [0]}})),
        (400, "[" * 100_000),
        (413, " " * 2_000_000),
    ):
        status, answer = asyncio.run(ask(url, body))
        print(f"refused, {status}: {answer['error']}")
        assert status == expected
    nothing = json.dumps({"inputs": {"image": [], "task": []}})
    assert asyncio.run(ask(url, nothing)) == (200, {"outputs": []})
finally:
    serve.shutdown()
    ray.shutdown()
    folder.cleanup()
