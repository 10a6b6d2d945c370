"""Many tenants' models of one architecture in one process, changed while it answers.

`Tenants` needs Keras, keras-psp and filelock; `app.py` puts it behind HTTP. The folder
is the truth: each version of a tenant's weights is a file, and `index.json` says which
files count. Both are written beside and renamed, so that a kill or a full disk leaves
the folder as it was. Replicas that share it see a change at their next batch.
"""

import hashlib
import io
import json
import os
import tempfile
import threading
import unicodedata
import zipfile
import zlib
from pathlib import Path

import filelock
import keras
import numpy as np
from keras import ops

import keras_psp

_NEW = ".new."  # Begins the name of a file that is being written.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, MemoryError)


class TenantError(Exception):
    """A request that cannot be answered; `status` is that of HTTP."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Tenants:
    """One stacked model with a task for each tenant, and room for more.

    Args:
        base: Built Keras model of the tenants' architecture, with one input and one
            output.
        folder: Where the tenants' weights are kept; those that are there are loaded.
        room: Positive integer, for how many tenants to make room at first. If there are
            more, it is doubled.
        max_batch: Positive integer, a power of two: how many examples are computed at
            once. Batches are padded to powers of two, which are compiled beforehand.
        keep: Positive integer, how many versions of a tenant to keep for a rollback.
        max_bytes: Positive integer, the largest body of an upload.
    """

    def __init__(
        self,
        base: keras.Model,
        folder: str | os.PathLike,
        room: int = 16,
        max_batch: int = 64,
        keep: int = 3,
        max_bytes: int = 16 << 20,
    ) -> None:
        self.base, self.folder = base, Path(folder)
        self.max_batch, self.keep, self.max_bytes = max_batch, keep, max_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.architecture = _describe(base)
        self._lock = threading.Lock()
        self._other_processes = filelock.FileLock(self.folder / ".lock")
        self._seen: tuple | None = None
        self._files: dict[str, str] = {}
        self._slots: dict[str, int] = {}
        count = len(self._read_index()["tenants"])
        while room < count:
            room *= 2
        self._model = keras_psp.stack(base, num_tasks=room)
        (self._input,) = (name for name in self._model.input if name != "task")
        self._shape = tuple(self._model.input[self._input].shape[1:])
        with self._lock:
            self._refresh()
            self._compile()

    @property
    def card(self) -> dict:
        """What a client must know: the architecture's hash, shapes and numbers."""
        return {
            "architecture": self.architecture,
            "input": list(self._shape),
            "output": list(self.base.output_shape[1:]),
            "weights": [list(weight.shape) for weight in self.base.weights],
            "tenants": len(self._slots),
            "room": self._model.num_tasks,
            "keras": keras.__version__,
            "keras_psp": keras_psp.__version__,
        }

    @property
    def names(self) -> list[str]:
        """The names of the tenants that there are."""
        with self._lock:
            self._refresh()
            return sorted(self._slots)

    def predict(self, name: str, x: np.ndarray) -> np.ndarray:
        """Returns a tenant's answers to examples, or raises a `TenantError`."""
        (answer,) = self.predict_many([(name, x)])
        if isinstance(answer, TenantError):
            raise answer
        return answer

    def predict_many(self, requests: list[tuple[str, np.ndarray]]) -> list:
        """Answers requests of many tenants as one batch.

        Args:
            requests: List of a name, and examples of shape `(n, *input)`.

        Returns:
            List of an array, or a `TenantError`, for each request.
        """
        checked = [self._check(name, x) for name, x in requests]
        with self._lock:
            self._refresh()
            answers: list = []
            for each in checked:
                if not isinstance(each, TenantError) and each[0] not in self._slots:
                    each = TenantError(404, f"there is no tenant {each[0]!r}")
                answers.append(each)
            there = [each for each in answers if not isinstance(each, TenantError)]
            if not there:
                return answers
            x = np.concatenate([x for _, x in there])
            slots = [self._slots[name] for name, _ in there]
            task = np.repeat(slots, [len(x) for _, x in there]).astype("int32")
            outputs = self._compute(x, task)
        shares = iter(np.split(outputs, np.cumsum([len(x) for _, x in there])[:-1]))
        for i, each in enumerate(answers):
            if not isinstance(each, TenantError):
                answers[i] = next(shares)
                if not np.isfinite(answers[i]).all():
                    message = "the model's answers to these inputs are not finite"
                    answers[i] = TenantError(422, message)
        return answers

    def put(self, name: str, body: bytes, architecture: str | None = None) -> int:
        """Adds a tenant, or replaces its weights.

        Args:
            name: The tenant's name.
            body: A `.keras` file; or an `.npz` file of the weights, named `"0"`, `"1"`,
                ... in Keras' order.
            architecture: The hash in the `card` that the weights were made for; it must
                be given with an `.npz` file.

        Returns:
            The generation of the folder, which each change increases.

        Raises:
            TenantError: 409 another architecture, 413 too large, 422 not a file of the
                two kinds or a bad name, 507 the disk is full. Nothing has changed then.
        """
        return self.put_many({name: body}, architecture)

    def put_many(
        self, bodies: dict[str, bytes], architecture: str | None = None
    ) -> int:
        """Adds or replaces many tenants, all of them or none; see `put()`."""
        files, contents = {}, {}
        for name, body in bodies.items():
            name = _check_name(name)
            if len(body) > self.max_bytes:
                raise TenantError(
                    413, f"a file must have at most {self.max_bytes} bytes"
                )
            packed = io.BytesIO()
            weights = self._read_upload(body, architecture)
            np.savez(packed, **{str(i): each for i, each in enumerate(weights)})
            files[name] = hashlib.sha256(packed.getvalue()).hexdigest() + ".npz"
            contents[files[name]] = packed.getvalue()

        def change(tenants: dict) -> None:
            for name, file in files.items():
                versions = [each for each in tenants.get(name, ()) if each != file]
                tenants[name] = [file, *versions][: self.keep]

        return self._change(change, contents)

    def delete(self, name: str) -> int:
        """Removes a tenant and its versions; raises a `TenantError` 404 if unknown."""
        name = _check_name(name)

        def change(tenants: dict) -> None:
            if tenants.pop(name, None) is None:
                raise TenantError(404, f"there is no tenant {name!r}")

        return self._change(change)

    def rollback(self, name: str) -> int:
        """Goes back to a tenant's previous version.

        Raises:
            TenantError: 404 there is no such tenant, 409 it has no earlier version.
        """
        name = _check_name(name)

        def change(tenants: dict) -> None:
            if name not in tenants:
                raise TenantError(404, f"there is no tenant {name!r}")
            if len(tenants[name]) < 2:
                raise TenantError(409, f"{name!r} has no earlier version")
            tenants[name] = tenants[name][1:]

        return self._change(change)

    # The folder.

    def _read_index(self) -> dict:
        try:
            index = json.loads((self.folder / "index.json").read_text())
        except FileNotFoundError:
            return {
                "architecture": self.architecture,
                "generation": 0,
                "tenants": {},
            }
        if index["architecture"] != self.architecture:
            raise ValueError(
                f"The tenants in {str(self.folder)!r} are of another architecture. "
                f"Received: {index['architecture']}, expected: {self.architecture}"
            )
        return index

    def _change(self, change, files=None) -> int:
        with self._other_processes:
            index = self._read_index()
            change(index["tenants"])
            index["generation"] += 1
            try:
                for file, content in (files or {}).items():
                    if not (self.folder / file).exists():
                        _write(self.folder / file, content)
                _write(self.folder / "index.json", json.dumps(index).encode())
            except OSError as error:
                self._remove_what_does_not_count(self._read_index())
                raise TenantError(507, f"nothing was saved: {error}") from error
            self._remove_what_does_not_count(index)
        with self._lock:
            self._refresh()
        return index["generation"]

    def _remove_what_does_not_count(self, index: dict) -> None:
        """Removes versions that are gone, and what a kill or a full disk left."""
        counted = {file for each in index["tenants"].values() for file in each}
        for path in [*self.folder.glob("*.npz"), *self.folder.glob(f"{_NEW}*")]:
            if path.name not in counted:
                path.unlink(missing_ok=True)

    def _refresh(self) -> None:
        """Takes over what has changed in the folder; the lock is held."""
        path = self.folder / "index.json"
        while True:
            try:
                stat = path.stat()
            except FileNotFoundError:
                return
            seen = stat.st_mtime_ns, stat.st_ino, stat.st_size
            if seen == self._seen:
                return
            index = self._read_index()["tenants"]
            new = {name: versions[0] for name, versions in index.items()}
            changed = [k for k in new if new[k] != self._files.get(k)]
            try:
                loaded = {name: self._load(new[name]) for name in changed}
            except FileNotFoundError:
                continue  # A later change has removed the file: read again.
            self._put_in(new, loaded)
            self._files, self._seen = new, seen
            return

    def _load(self, file: str) -> list[np.ndarray]:
        with np.load(self.folder / file, allow_pickle=False) as arrays:
            return [arrays[str(i)] for i in range(len(arrays))]

    def _put_in(self, new: dict, loaded: dict) -> None:
        """Gives changed tenants their rows of the model's weights."""
        slots = {name: slot for name, slot in self._slots.items() if name in new}
        room = self._model.num_tasks
        grown = room
        while grown < len(new):
            grown *= 2
        if grown > room:
            self._model.add_tasks(grown - room)
            self._compile()
        free = iter(sorted(set(range(grown)) - set(slots.values())))
        for name in loaded:
            if name not in slots:
                slots[name] = next(free)
        if loaded:
            rows = [slots[name] for name in loaded]
            every = zip(*loaded.values(), strict=True)
            for variable, values in zip(self._model.weights, every, strict=True):
                bank = ops.convert_to_numpy(variable).copy()
                bank[rows] = np.stack(values)
                variable.assign(bank)
        self._slots = slots

    # The model.

    def _compile(self) -> None:
        """Compiles the model for every size of a batch."""
        size = 1
        while size <= self.max_batch:
            self._compute(
                np.zeros((size, *self._shape), "float32"), np.zeros(size, int)
            )
            size *= 2

    def _compute(self, x: np.ndarray, task: np.ndarray) -> np.ndarray:
        outputs = []
        for i in range(0, len(x), self.max_batch):
            share = slice(i, i + self.max_batch)
            number = len(task[share])
            size = 1 << (number - 1).bit_length()
            rest = size - number
            pads = [(0, rest)] + [(0, 0)] * len(self._shape)
            given = {
                self._input: np.pad(x[share], pads),
                "task": np.pad(task[share], (0, rest)).astype("int32"),
            }
            outputs.append(self._model.predict_on_batch(given)[:number])
        return np.concatenate(outputs)

    def _check(self, name, x):
        try:
            name = _check_name(name)
        except TenantError as error:
            return error
        x = np.asarray(x)
        if x.dtype.kind not in "iuf" or x.shape[1:] != self._shape or not len(x):
            return TenantError(
                422,
                f"the inputs must be numbers of shape (n, {self._shape}), at least one "
                f"example; received shape {x.shape} of dtype {x.dtype}",
            )
        with np.errstate(over="ignore"):
            x = x.astype("float32")
        if not np.isfinite(x).all():
            return TenantError(422, "the inputs must be finite")
        return name, x

    def _read_upload(self, body, architecture):
        if architecture is not None and architecture != self.architecture:
            raise TenantError(409, f"the architecture must be {self.architecture}")
        names = _names_in(body, self.max_bytes)
        if "config.json" in names:
            weights = self._read_model(body).get_weights()
        else:
            if architecture is None:
                raise TenantError(422, "with weights, `architecture` must be given")
            weights = _read_arrays(body)
        shapes = [weight.shape for weight in weights]
        expected = [tuple(weight.shape) for weight in self.base.weights]
        if shapes != expected:
            raise TenantError(409, f"the weights must be {expected}, not {shapes}")
        if not all(np.isfinite(weight).all() for weight in weights):
            raise TenantError(422, "the weights must be finite")
        return [weight.astype("float32") for weight in weights]

    def _read_model(self, body):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.keras")
            path.write_bytes(body)
            try:
                # Nothing in the file is run: `safe_mode` refuses code.
                model = keras.models.load_model(path, compile=False, safe_mode=True)
            except Exception as error:  # Keras raises whatever its reader meets.
                version = _keras_version(body)
                if version not in (None, keras.__version__):
                    raise TenantError(
                        409,
                        f"a file of Keras {version}, which Keras {keras.__version__} "
                        f"cannot read: {error}",
                    ) from error
                raise TenantError(422, f"not a .keras file: {error}") from error
        try:
            keras_psp.stack([self.base, model])
        except (TypeError, ValueError) as error:
            raise TenantError(409, f"another architecture: {error}") from error
        return model


def _describe(model: keras.Model) -> str:
    """Returns a hash of an architecture: its layers' arguments and weights' shapes."""

    def layer(each):
        config = {
            k: v for k, v in each.get_config().items() if k not in ("name", "seed")
        }
        shapes = [list(weight.shape) for weight in each.weights]
        return type(each).__name__, shapes, json.dumps(config, default=str)

    text = json.dumps([list(map(str, layer(each))) for each in model.layers])
    text = "".join(text.split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_name(name: str) -> str:
    """Returns a tenant's name in one form, or raises a `TenantError`."""
    name = unicodedata.normalize("NFC", name)
    fits = 0 < len(name.encode("utf-8", "replace")) <= 200 and name.isprintable()
    if not fits or set(name) & set("/\\\ufffd"):  # The last: it was no UTF-8.
        raise TenantError(
            422, "a name must have 1 to 200 bytes that can be printed, without slashes"
        )
    return name


def _names_in(body: bytes, most: int) -> set[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as file:
            if sum(each.file_size for each in file.infolist()) > most:
                raise TenantError(
                    413, f"unpacked, a file must have at most {most} bytes"
                )
            return set(file.namelist())
    except zipfile.BadZipFile as error:
        raise TenantError(422, "the body must be a .keras or an .npz file") from error


def _keras_version(body: bytes) -> str | None:
    """Returns the version of Keras that wrote a file, if the file tells."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as file:
            return json.loads(file.read("metadata.json"))["keras_version"]
    except (KeyError, ValueError, zipfile.BadZipFile):
        return None


def _read_arrays(body: bytes) -> list[np.ndarray]:
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            return [np.asarray(arrays[str(i)]) for i in range(len(arrays))]
    except (*_UNREADABLE, KeyError, ValueError, OSError) as error:
        raise TenantError(422, f"not an .npz file of weights: {error}") from error


def _write(path: Path, content: bytes) -> None:
    """Writes a file beside and renames it, so that it is there whole or not at all."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_NEW)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
