"""HTTP for `Tenants`: FastAPI in front, behind Ray Serve.

    python examples/tenants/app.py MODEL.keras FOLDER --port 8000

`MODEL.keras` tells the architecture. `FOLDER` holds the tenants' weights; all replicas
share it. Without `FOLDER`, `MODEL.keras` has tasks with names, which are the tenants,
and they cannot be changed. Authentication is the deployer's: a reverse proxy in front,
or a FastAPI dependency of the routes that change something.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
import unicodedata
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Nothing leaves this machine.
# A machine that is busy takes more than Ray's five seconds to start its proxy.
os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")

import numpy as np  # noqa: E402
import prometheus_client as prometheus  # noqa: E402
from answers import FixedTenants  # noqa: E402
from answers import TenantError  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from fastapi import Request  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from fastapi.responses import PlainTextResponse  # noqa: E402
from ray import serve  # noqa: E402
from tenants import Tenants  # noqa: E402

MOST_INPUT = 1 << 20  # Bytes of a request for answers.
app = FastAPI()


@app.exception_handler(TenantError)
async def answer_error(request: Request, error: TenantError) -> JSONResponse:
    """Returns the status and the message of what cannot be answered."""
    return JSONResponse({"error": str(error)}, status_code=error.status)


async def read_body(request: Request, most: int) -> bytes:
    """Returns a request's body; what a client says of its length may be wrong."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise TenantError(413, f"the body must have at most {most} bytes")
    return bytes(body)


def parse(body: bytes) -> np.ndarray:
    """Returns the examples of a request's JSON, `{"inputs": [...]}`."""
    try:
        return np.array(json.loads(body)["inputs"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        message = 'the body must be JSON, {"inputs": [example, ...]}'
        raise TenantError(422, message) from error


@serve.deployment(max_ongoing_requests=256, logging_config={"enable_access_log": False})
@serve.ingress(app)
class Server:
    """Answers for all tenants; every replica has the same folder."""

    def __init__(
        self, kind: type, model: str, folder: str | None, options: dict[str, Any]
    ) -> None:
        import keras

        given = [] if folder is None else [folder]
        self.tenants = kind(keras.models.load_model(model), *given, **options)
        self.labels: set[str] = set()
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "tenant_requests", "Requests", ("tenant", "status"), registry=self.registry
        )
        self.seconds = prometheus.Histogram(
            "tenant_seconds", "Time of an answer", ("tenant",), registry=self.registry
        )

    @app.post("/tenants/{name:path}/predict")
    async def predict(self, name: str, request: Request) -> JSONResponse:
        """Answers `{"inputs": [...]}` with `{"outputs": [...]}`."""
        start, status, label = time.perf_counter(), 500, "(unknown)"
        try:
            x = parse(await read_body(request, MOST_INPUT))
            answer = await self.answer((name, x))
            if isinstance(answer, TenantError):
                raise answer
            status, label = 200, unicodedata.normalize("NFC", name)
            self.labels.add(label)
            return JSONResponse({"outputs": answer.tolist()})
        except TenantError as error:
            status = error.status
            raise
        finally:  # Names that nobody has get no series of their own.
            self.requests.labels(label, status).inc()
            if status == 200:
                self.seconds.labels(label).observe(time.perf_counter() - start)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def answer(self, requests: list) -> list:
        """Answers all requests that have come during the last answer, as one batch."""
        return await asyncio.to_thread(self.tenants.predict_many, requests)

    @app.put("/tenants/{name:path}")
    async def put(
        self, name: str, request: Request, architecture: str | None = None
    ) -> dict[str, Any]:
        """Adds or replaces a tenant, by a `.keras` file or an `.npz` of weights."""
        body = await read_body(request, self.tenants.max_bytes)
        put = self.tenants.put
        return {"generation": await asyncio.to_thread(put, name, body, architecture)}

    @app.post("/tenants/{name:path}/rollback")
    async def rollback(self, name: str) -> dict[str, Any]:
        """Goes back to a tenant's version before."""
        return {"generation": await asyncio.to_thread(self.tenants.rollback, name)}

    @app.delete("/tenants/{name:path}")
    async def delete(self, name: str) -> dict[str, Any]:
        """Removes a tenant."""
        return {"generation": await asyncio.to_thread(self.tenants.delete, name)}

    @app.get("/tenants")
    async def names(self) -> dict[str, Any]:
        """Lists the tenants, and what a client must know of the architecture."""
        names = await asyncio.to_thread(lambda: self.tenants.names)
        return {"card": self.tenants.card, "tenants": names}

    @app.get("/metrics")
    async def metrics(self) -> PlainTextResponse:
        """Counters and latencies of this replica, in Prometheus' format."""
        names = await asyncio.to_thread(lambda: set(self.tenants.names))
        for gone in self.labels - names:  # Tenants come and go; series must too.
            for metric in (self.requests, self.seconds):
                metric.remove_by_labels({"tenant": gone})
        self.labels &= names
        text = prometheus.generate_latest(self.registry)
        return PlainTextResponse(text, media_type=prometheus.CONTENT_TYPE_LATEST)


def start(
    model: str,
    folder: str | None,
    port: int,
    replicas: int = 1,
    direct: bool = False,
    kind: type = Tenants,
    **options: Any,
) -> None:
    """Starts Ray and the server, on the loopback interface.

    Args:
        model: Path of a `.keras` file, which tells the architecture.
        folder: Where the tenants' weights are, if `kind` takes a folder.
        port: Of Ray's proxy.
        replicas: How many processes answer.
        direct: Whether each replica also listens itself, on the ports behind `port`:
            for a load balancer. Ray's proxy costs several times what an answer does.
        kind: `Tenants`, or another class that answers as it does.
        **options: Of the class.
    """
    import ray

    variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if direct:
        os.environ |= {
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(port + 1),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(port + 100),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        }
    ray.init(
        num_cpus=replicas + 1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    folder = None if folder is None else os.path.abspath(folder)
    server = Server.options(num_replicas=replicas).bind(
        kind, os.path.abspath(model), folder, options
    )
    serve.run(server, route_prefix="/")


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a .keras file")
    parser.add_argument("folder", nargs="?", help="of the tenants' weights")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--room", type=int, default=16, help="for so many tenants")
    listens = "each replica listens itself too, on the ports behind PORT"
    parser.add_argument("--direct", action="store_true", help=listens)
    given = vars(parser.parse_args())
    if given["folder"] is None:
        del given["room"]
        given["kind"] = FixedTenants
    start(**given)
    for each in (signal.SIGINT, signal.SIGTERM):  # At which Ray would abort.
        signal.signal(each, lambda *_: sys.exit())
    try:
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
