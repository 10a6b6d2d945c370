"""Many tenants' models of one architecture in one process, changed while it answers.

`Tenants` needs Keras, keras-psp and filelock; `app.py` puts it behind HTTP. The folder
is the truth: each version of a tenant's weights is a file, and `index.json` says which
files count. Both are written beside and renamed, so that a kill or a full disk leaves
the folder as it was. Replicas that share it see a change at their next batch.
"""

import contextlib
import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import filelock
import keras
import numpy as np
from answers import FixedTenants
from answers import TenantError
from answers import check_name

import keras_psp

_NEW = ".new."  # Begins the name of a file that is being written.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, MemoryError)


class Tenants(FixedTenants):
    """One stacked model with a task for each tenant, and room for more.

    Args:
        base: Built Keras model of the tenants' architecture, with one input and one
            output.
        folder: Where the tenants' weights are kept; those that are there are loaded.
        room: Positive integer, for how many tenants to make room at first. If there are
            more, it is doubled.
        max_batch: Positive integer; see `FixedTenants`.
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
        self.keep = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        self.architecture = _describe(base)
        self._other_processes = filelock.FileLock(self.folder / ".lock")
        self._seen: tuple | None = None
        self._files: dict[str, str] = {}
        count = len(self._read_index()["tenants"])
        while room < count:
            room *= 2
        # To draw initial weights, which nobody asks for, takes JAX much memory.
        zeros = keras.models.clone_model(base, clone_function=_with_zeros)
        model = keras_psp.stack(zeros, num_tasks=room)
        self._set_model(model, max_batch, max_bytes)
        with self._lock:
            self._refresh()
            self._compile()

    @property
    def card(self) -> dict:
        """What a client must know, and the architecture's hash and weights."""
        weights = [list(weight.shape) for weight in self.base.weights]
        return {"architecture": self.architecture, "weights": weights} | super().card

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
            name = check_name(name)
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
        name = check_name(name)

        def change(tenants: dict) -> None:
            if tenants.pop(name, None) is None:
                raise TenantError(404, f"there is no tenant {name!r}")

        return self._change(change)

    def rollback(self, name: str) -> int:
        """Goes back to a tenant's previous version.

        Raises:
            TenantError: 404 there is no such tenant, 409 it has no earlier version.
        """
        name = check_name(name)

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
                self._put_in(new, changed)
            except FileNotFoundError:
                continue  # A later change has removed the file: read again.
            self._files, self._seen = new, seen
            return

    def _load(self, file: str) -> list[np.ndarray]:
        with np.load(self.folder / file, allow_pickle=False) as arrays:
            return [arrays[str(i)] for i in range(len(arrays))]

    def _put_in(self, new: dict, changed: list[str]) -> None:
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
        for name in changed:
            if name not in slots:
                slots[name] = next(free)
        if changed:  # All files are read before a weight is written.
            banks = [np.array(variable) for variable in self._model.weights]
            for name in changed:
                for bank, row in zip(banks, self._load(new[name]), strict=True):
                    bank[slots[name]] = row
            for variable, bank in zip(self._model.weights, banks, strict=True):
                variable.assign(bank)
        self._slots = slots

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
        with _temporary(body) as path:
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


def _with_zeros(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a new layer that begins with zeros where it draws initial weights."""
    drawn = {k: "zeros" for k in layer.get_config() if k.endswith("_initializer")}
    return type(layer).from_config(layer.get_config() | drawn)


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


@contextlib.contextmanager
def _temporary(body: bytes) -> Iterator[Path]:
    """Gives the path of a file with this content, as Keras reads no bytes."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            path = Path(folder, "model.keras")
            path.write_bytes(body)
        except OSError as error:
            raise TenantError(507, f"nothing was read: {error}") from error
        yield path


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
