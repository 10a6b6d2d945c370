"""`examples/tenants/tenants.py`, what its server does, without Ray."""

import errno
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

import filelock
import keras
import numpy as np
import pytest

import keras_psp

FOLDER = Path(__file__).parent.parent / "examples" / "tenants"


@pytest.fixture
def tenants_module(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("tenants")
    for name in ("tenants", "answers"):
        sys.modules.pop(name, None)


def build(units=3):
    return keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.Dense(units, "relu"),
            keras.layers.Dense(2),
        ]
    )


def saved(model, folder):
    path = folder / "upload.keras"
    model.save(path)
    return path.read_bytes()


def packed(weights):
    file = io.BytesIO()
    np.savez(file, **{str(i): each for i, each in enumerate(weights)})
    return file.getvalue()


def status_of(call, *args):
    with pytest.raises(Exception) as found:
        call(*args)
    return found.value.status


X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


def test_it_serves_and_changes_and_starts_again(tenants_module, tmp_path):
    base, models = build(), {name: build() for name in ("ä", "b", "c")}
    folder = tmp_path / "folder"
    tenants = tenants_module.Tenants(base, folder, room=2, max_batch=2)
    other = tenants_module.Tenants(base, folder, room=2, max_batch=2)  # A replica.
    hash_ = tenants.card["architecture"]
    for i, (name, model) in enumerate(models.items()):
        body = saved(model, tmp_path) if i else packed(model.get_weights())
        assert tenants.put(name, body, hash_) == i + 1
    assert tenants.names == other.names == ["b", "c", "ä"]
    assert tenants.card["room"] == 4  # Doubled for the third.
    answers = tenants.predict_many([("b", X), ("ä", X[:1]), ("no", X), ("c", X)])
    assert answers[2].status == 404
    for name, answer in zip(("b", "ä", None, "c"), answers, strict=True):
        if name is not None:
            expected = models[name].predict(X[: len(answer)], verbose=0)
            np.testing.assert_allclose(answer, expected, atol=1e-5)
    before = {name: tenants.predict(name, X) for name in ("b", "c")}
    new = [weight + 1 for weight in models["ä"].get_weights()]
    tenants.put("ä", packed(new), hash_)
    changed = tenants.predict("ä", X)
    assert abs(changed - models["ä"].predict(X, verbose=0)).max() > 0.1
    np.testing.assert_array_equal(other.predict("ä", X), changed)
    tenants.rollback("ä")
    assert status_of(tenants.rollback, "ä") == 409
    expected = models["ä"].predict(X, verbose=0)
    np.testing.assert_allclose(tenants.predict("ä", X), expected, atol=1e-5)
    tenants.delete("ä")
    assert status_of(tenants.predict, "ä", X) == status_of(tenants.delete, "ä") == 404
    for name, answer in before.items():
        np.testing.assert_array_equal(tenants.predict(name, X), answer)
    again = tenants_module.Tenants(base, folder, room=1, max_batch=2)
    assert again.names == ["b", "c"] and again.card["room"] == 2
    np.testing.assert_allclose(again.predict("c", X), before["c"], atol=1e-6)
    with pytest.raises(ValueError, match="another architecture"):
        tenants_module.Tenants(build(5), folder)


def test_others_answer_alike_while_tenants_come_and_go(tenants_module, tmp_path):
    base = build()
    tenants = tenants_module.Tenants(base, tmp_path, room=4, max_batch=2)
    hash_ = tenants.card["architecture"]
    for name in "ab":
        tenants.put(name, packed(build().get_weights()), hash_)
    expected = {name: tenants.predict(name, X) for name in "ab"}
    wrong, done = [], threading.Event()

    def client(name):
        while not done.is_set():
            if not np.array_equal(tenants.predict(name, X), expected[name]):
                wrong.append(name)

    clients = [threading.Thread(target=client, args=(name,)) for name in "ab"]
    for each in clients:
        each.start()
    for i in range(6):
        tenants.put("c", packed([w + i for w in base.get_weights()]), hash_)
        tenants.predict("c", X)
        tenants.delete("c")
    done.set()
    for each in clients:
        each.join()
    assert not wrong


def test_nothing_is_traced_anew_but_where_it_grows(tenants_module, tmp_path):
    if keras.backend.backend() == "torch":
        pytest.skip("Torch runs a model's code each time.")
    traced = []

    @keras.saving.register_keras_serializable("test_tenants")
    class Counts(keras.layers.Layer):
        def call(self, x):
            traced.append(x.shape)
            return x

    base = keras.Sequential([keras.Input((4,), name="x"), Counts()])
    base.add(keras.layers.Dense(2))
    tenants = tenants_module.Tenants(base, tmp_path, room=2, max_batch=4)
    hash_, weights = tenants.card["architecture"], packed(base.get_weights())
    number = len(traced)
    for name in "ab":
        tenants.put(name, weights, hash_)
    for count in (1, 3, 8, 20):
        tenants.predict_many([(name, X[:1]) for name in "ab" * count])
    tenants.delete("a")
    tenants.put("c", weights, hash_)
    assert len(traced) == number
    tenants.put("d", weights, hash_)
    assert len(traced) > number


@pytest.mark.once
def test_tasks_of_a_compressed_model_are_served(tenants_module, tmp_path):
    base, models = build(), {name: build() for name in ("a", "ä/b", "c")}
    with pytest.raises(tenants_module.TenantError, match="without slashes"):
        tenants_module.FixedTenants(keras_psp.stack(models), max_batch=2)
    models["ä"] = models.pop("ä/b")
    data = [np.random.default_rng(1).normal(size=(50, 4)).astype("float32")] * 3
    small = keras_psp.superpose(models, base=base, data=data, budget=2.0)
    tenants = tenants_module.FixedTenants(small, max_batch=8)
    assert tenants.names == ["a", "c", "ä"] and tenants.card["tenants"] == 3
    for name, answer in zip(
        ("c", "a"), tenants.predict_many([("c", X), ("a", X)]), strict=True
    ):
        task = np.full(len(X), small.task_index(name))
        expected = small.predict({"x": X, "task": task}, verbose=0)
        np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert status_of(tenants.predict, "b", X) == 404
    for change in (tenants.delete, tenants.rollback):
        assert status_of(change, "a") == 405
    assert status_of(tenants.put, "a", packed(base.get_weights())) == 405
    with pytest.raises(ValueError, match="must have tasks with names"):
        tenants_module.FixedTenants(base)
    assert small.task_index("a") == 0
    small.remove_task("a")
    tenants = tenants_module.FixedTenants(small, max_batch=8)
    assert tenants.names == ["c", "ä"]
    task = np.full(len(X), small.task_index("c"))
    expected = small.predict({"x": X, "task": task}, verbose=0)
    np.testing.assert_allclose(tenants.predict("c", X), expected, atol=1e-5)


@pytest.mark.once
def test_what_is_refused(tenants_module, tmp_path, monkeypatch):
    base = build()
    tenants = tenants_module.Tenants(
        base, tmp_path / "f", max_batch=1, max_bytes=50_000
    )
    hash_, weights = tenants.card["architecture"], base.get_weights()
    good = packed(weights)
    tenants.put("a", good, hash_)
    answer = tenants.predict("a", X)
    bad = weights[0].copy()
    bad[0, 0] = np.nan
    for status, body, given in [
        (409, good, "another"),
        (409, saved(build(5), tmp_path), None),
        (409, packed(build(5).get_weights()), hash_),
        (413, bytes(50_001), hash_),
        (422, good, None),
        (422, b"nothing", hash_),
        (422, good[:300], hash_),
        (422, packed([bad, *weights[1:]]), hash_),
        (409, packed([]), hash_),
    ]:
        assert status_of(tenants.put, "a", body, given) == status
        assert status_of(tenants.put, "b", body, given) == status
    for name in ("", "a/b", "a" * 10_000, "a\n", "..\\a", "\ud800"):
        assert status_of(tenants.put, name, good, hash_) == 422
        assert status_of(tenants.predict, name, X) == 422
    for x in (
        X[:, :3],
        X[0],
        X[:0],
        np.full((1, 4), np.nan),
        [["a"] * 4],
        1e300 * X.astype(float),
    ):
        assert status_of(tenants.predict, "a", x) == 422

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    files, file = sorted(os.listdir(tmp_path / "f")), saved(build(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(tenants_module.os, "replace", full)
        other = packed([weight + 1 for weight in weights])
        assert status_of(tenants.put, "a", other, hash_) == 507
        assert status_of(tenants.delete, "a") == 507

    with monkeypatch.context() as patch:
        patch.setattr(tenants_module.tempfile, "tempdir", str(tmp_path / "none"))
        assert status_of(tenants.put, "a", file, None) == 507

    def full_later(path, content):  # There is room for the file, not for the index.
        if path.name == "index.json":
            full()
        path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(tenants_module, "_write", full_later)
        assert status_of(tenants.put, "a", other, hash_) == 507
    assert sorted(os.listdir(tmp_path / "f")) == files
    assert tenants.names == ["a"]
    np.testing.assert_array_equal(tenants.predict("a", X), answer)


@pytest.mark.once
def test_a_kill_leaves_the_old_version_or_the_new(tenants_module, tmp_path):
    if keras.backend.backend() == "jax":
        pytest.skip("A process with JAX cannot be forked.")
    base = build()
    tenants = tenants_module.Tenants(base, tmp_path, max_batch=1)
    hash_, weights = tenants.card["architecture"], base.get_weights()
    versions = [packed([weight + i for weight in weights]) for i in range(2)]
    answers = []
    for body in versions:
        tenants.put("a", body, hash_)
        tenants.put("b", body, hash_)
        answers.append(tenants.predict("a", X))

    def put_until(number):
        """Replaces `a` in a fork of this process, which ends at an operation."""
        count = 0

        def watch(operation):
            def watched(*args, **kwargs):
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*args, **kwargs)

            return watched

        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for name in ("fdopen", "fsync", "replace"):
            setattr(os, name, watch(getattr(os, name)))
        try:
            # Of its own, as those of a process that starts are.
            tenants._other_processes = filelock.FileLock(tmp_path / ".lock")
            tenants._refresh = lambda: None  # No thread of the model's is here.
            tenants.put("a", packed([weight + 7 for weight in weights]), hash_)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    for number in range(1, 7):
        assert put_until(number) == -signal.SIGKILL
        np.testing.assert_array_equal(tenants.predict("a", X), answers[1])
        np.testing.assert_array_equal(tenants.predict("b", X), answers[1])
        tenants.put("b", versions[0], hash_)
        tenants.put("b", versions[1], hash_)
        names = {path.name for path in tmp_path.iterdir()} - {".lock", "index.json"}
        assert len(names) == 2 and all(name.endswith(".npz") for name in names)
    assert put_until(99) == 0
    assert abs(tenants.predict("a", X) - answers[1]).max() > 0.1
    np.testing.assert_array_equal(tenants.predict("b", X), answers[1])
