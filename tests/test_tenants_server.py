"""`examples/tenants/app.py`: what its running server answers to bad requests."""

import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import numpy as np
import pytest
from test_tenants import FOLDER
from test_tenants import X
from test_tenants import build
from test_tenants import packed
from test_tenants import saved

pytestmark = pytest.mark.once


class Client:
    """Asks the server; an answer is its status and what its JSON holds."""

    def __init__(self, port):
        self.port = port

    def __call__(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        kind = response.headers.get("content-type", "")
        return response.status, json.loads(text) if "json" in kind else text

    def predict(self, name, x=X):
        body = json.dumps({"inputs": np.asarray(x).tolist()})
        status, answer = self("POST", f"/tenants/{quote(name, '')}/predict", body)
        return status, answer.get("outputs", answer)

    def put(self, name, body, **query):
        query = "&".join(f"{k}={v}" for k, v in query.items())
        return self("PUT", f"/tenants/{quote(name, '')}?{query}", body)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    # A disk that can be full, where this process may mount one.
    disk = folder / "tenants"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if shutil.which("mount"):
        subprocess.run(mount, capture_output=True)
    base = build()
    base.save(folder / "base.keras")
    port = 18000 + os.getpid() % 10_000
    command = [sys.executable, str(FOLDER / "app.py"), "base.keras", "tenants"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--room", "8"],
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    client = Client(port)
    for _ in range(600):
        try:
            if client("GET", "/tenants")[0] == 200:
                break
        except OSError:
            pass
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.2)
    yield client, base, folder
    process.terminate()  # An interrupt is ignored by what runs in the background.
    assert process.wait(60) == 0
    if os.path.ismount(disk):
        subprocess.run(["umount", str(disk)], check=True)


def test_bad_requests_disturb_nobody(server, tmp_path):
    client, base, folder = server
    hash_ = client("GET", "/tenants")[1]["card"]["architecture"]
    weights = base.get_weights()
    good = packed(weights)
    assert client.put("stays", good, architecture=hash_) == (200, {"generation": 1})
    stays = client.predict("stays")[1]
    np.testing.assert_allclose(stays, base.predict(X, verbose=0), atol=1e-5)

    # Files of another architecture, base or library version, and no files.
    other = io.BytesIO(saved(build(), tmp_path))
    with zipfile.ZipFile(other) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    metadata = json.loads(parts["metadata.json"]) | {"keras_version": "9.0.0"}
    config = parts["config.json"].replace(b"Dense", b"DenseOfKeras9")
    newer = io.BytesIO()
    with zipfile.ZipFile(newer, "w") as file:
        for name, content in parts.items():
            if name == "metadata.json":
                content = json.dumps(metadata)
            file.writestr(name, config if name == "config.json" else content)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.npy", bytes(50 << 20))
    flipped = bytearray(good)
    flipped[200] ^= 255
    nan = [np.full_like(weights[0], np.nan), *weights[1:]]
    for status, body, query in [
        (409, saved(build(5), tmp_path), {}),
        (409, good, {"architecture": "of-another-base"}),
        (409, packed(build(5).get_weights()), {"architecture": hash_}),
        (409, newer.getvalue(), {}),
        (413, bytes(100 << 20), {"architecture": hash_}),
        (413, bomb.getvalue(), {"architecture": hash_}),
        (422, b"", {"architecture": hash_}),
        (422, good, {}),
        (422, bytes(flipped), {"architecture": hash_}),
        (422, packed(nan), {"architecture": hash_}),
    ]:
        found = client.put("bad", body, **query)
        assert found[0] == status, (status, len(body), query, found)
    # A body that is too long and does not say so.
    chunks = (bytes(1 << 20) for _ in range(100))
    assert client("PUT", "/tenants/bad", chunks)[0] == 413
    assert client("POST", "/tenants/stays/predict", bytes(100 << 20))[0] == 413

    # Names.
    for name in ("ä/../b", "a/b", "\\", "x" * 10_240, "a\nb", "a\u202eb", ""):
        assert client.put(name, good, architecture=hash_)[0] in (404, 405, 422), name
        assert client.predict(name)[0] in (404, 405, 422), name
    for path in ("%ff", "%00", "..%2f..%2fetc", "a%2Fb"):
        assert client("PUT", f"/tenants/{path}?architecture={hash_}", good)[0] == 422
    names = ["日本 ☂", "%41", "100%", "a+b", "?#&;", "predict", "rollback"]
    for i, name in enumerate(names):
        body = packed([weight + i for weight in weights])
        assert client.put(name, body, architecture=hash_)[0] == 200
    assert client("GET", "/tenants")[1]["tenants"] == sorted([*names, "stays"])
    answers = [client.predict(name) for name in names]
    assert [status for status, _ in answers] == [200] * len(names)
    assert len({json.dumps(answer) for _, answer in answers}) == len(names)
    metrics = client("GET", "/metrics")[1].decode()
    assert 'tenant_requests_total{status="200",tenant="日本 ☂"} 1.0' in metrics
    for name in names:
        assert client("DELETE", f"/tenants/{quote(name, '')}")[0] == 200
    assert "☂" not in client("GET", "/metrics")[1].decode()

    # Examples that are none.
    for x in (np.full((1, 4), np.nan), X[:, :3], X[0], [[]], [["a"] * 4]):
        assert client.predict("stays", x)[0] == 422
    for body in (b"", b"{", b"[]", b'{"inputs": [[1, 2, 3, Infinity]]}', b"[" * 10**5):
        assert client("POST", "/tenants/stays/predict", body)[0] == 422
    # Answers that are none.
    large = packed([1e30 * weight for weight in weights])
    assert client.put("large", large, architecture=hash_)[0] == 200
    assert client.predict("large", 1e30 * np.ones((1, 4)))[0] == 422
    assert client("POST", "/tenants/large/rollback")[0] == 409
    assert client("DELETE", "/tenants/large")[0] == 200

    assert client.predict("stays") == (200, stays)
    assert client("GET", "/tenants")[1]["tenants"] == ["stays"]
    assert len(list(folder.glob("tenants/*.npz"))) == 1


def test_changes_at_once(server):
    client, base, _ = server
    card = client("GET", "/tenants")[1]["card"]
    weights = base.get_weights()
    bodies = [packed([weight + i for weight in weights]) for i in range(3)]

    def put(name, i):
        return client.put(name, bodies[i], architecture=card["architecture"])[0]

    assert put("stays", 0) == 200
    right = []
    for i in range(3):
        assert put("one", i) == 200
        right.append(client.predict("one")[1])
    stays = client.predict("stays")[1]
    with ThreadPoolExecutor(12) as pool:
        for _ in range(3):
            puts = [pool.submit(put, "one", i) for i in (0, 1, 2, 1)]
            asked = [pool.submit(client.predict, "one") for _ in range(4)]
            removed = pool.submit(client, "DELETE", "/tenants/one")
            others = [pool.submit(client.predict, "stays") for _ in range(4)]
            assert {each.result() for each in puts} == {200}
            assert removed.result()[0] in (200, 404)
            for each in asked:  # Whole, or not there.
                status, answer = each.result()
                assert status == 404 or answer in right, (status, answer)
            for each in others:
                status, answer = each.result()
                assert status == 200
                np.testing.assert_allclose(answer, stays, atol=1e-5)
    assert put("one", 2) == put("one", 1) == 200
    assert client("POST", "/tenants/one/rollback")[0] == 200
    np.testing.assert_allclose(client.predict("one")[1], right[2], atol=1e-5)


def test_a_full_disk(server):
    client, base, folder = server
    disk = folder / "tenants"
    if not os.path.ismount(disk):
        pytest.skip("This process may not mount a small disk.")
    hash_ = client("GET", "/tenants")[1]["card"]["architecture"]
    old, new = (packed([w + i for w in base.get_weights()]) for i in range(2))
    for name in ("stays", "other"):
        assert client.put(name, old, architecture=hash_)[0] == 200
    before = client.predict("stays")
    names = client("GET", "/tenants")[1]["tenants"]
    index = (disk / "index.json").read_bytes()
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="space"):
        while True:
            file.write(bytes(4096))
    statuses = []
    while 200 not in statuses:  # Page by page there is room for a file, then for both.
        statuses.append(client.put("stays", new, architecture=hash_)[0])
        if statuses[-1] == 507:
            assert client.predict("stays") == before
            assert client("GET", "/tenants")[1]["tenants"] == names
            assert (disk / "index.json").read_bytes() == index
            assert not [*disk.glob(".new.*")]
            os.truncate(filler, filler.stat().st_size - 4096)
    assert len(statuses) > 2 and set(statuses[:-1]) == {507}
    after = client.predict("stays")
    assert after[0] == 200 and after != before
    assert client.predict("other") == before
    filler.unlink()
    assert client("POST", "/tenants/stays/rollback")[0] == 200
    assert client.predict("stays") == before
