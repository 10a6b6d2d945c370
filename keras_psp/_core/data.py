"""The one reader of what users hand in as data: one code, and one set of errors.

Data come in many forms: arrays, lists and dictionaries of arrays, `(x, y)` and
`(x, y, sample_weight)`, and batches of these as a list, a generator, a
`tf.data.Dataset`, a `keras.utils.PyDataset` or a torch `DataLoader`.

```
check = InputCheck(inputs, num_tasks=None, unknown="raise", by_position=True, name="x")
check(given) -> dict of arrays         one batch, or all data as arrays; raises
with check.plain_errors(): ...         raises what it found, however Keras wraps it
checked(data, check) -> data           any form that `fit()` takes; every batch checked
check_lengths(batch, name)             raises if `y` has another length than `x`
check_batch(batch, check) -> tuple     `x`, `(x, y)` or `(x, y, sample_weight)`
read_inputs(data, inputs, limit=None, name="data") -> dict of NumPy arrays, no labels
read_examples(data, limit, name="data") -> (x, y, sample_weight), at most `limit`
```

`inputs` is a dictionary, by name, of what has a `shape` and a `dtype`, such as
`model.input`. Nothing here knows of layers or models.
"""

import contextlib
import re
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any
from typing import Literal

import keras
import numpy as np
from keras import ops

from keras_psp._core.checks import check_names
from keras_psp._core.checks import check_shape
from keras_psp._core.task_index import Removed
from keras_psp._core.task_index import TaskNames
from keras_psp._core.task_index import describe_tasks
from keras_psp._core.task_index import known_tasks
from keras_psp._core.task_index import named_index

Structure = Any  # An array, or a list, tuple or dictionary of structures.


class InputCheck:
    """Checks what a model is given, before the model sees it.

    Called with a dictionary, a list or an array, it returns a dictionary of arrays with
    the names of the model's inputs. The task column comes back as int32 indices, in
    which an index that is too large for int32 cannot become another task.

    Args:
        inputs: Dictionary, by name, of what has a `shape`, whose first dimension is the
            batch, and a `dtype`. `keras.Input`s, for example.
        num_tasks: Number of tasks, if there is an input named `"task"` to check.
        unknown: What happens to a task index outside `[0, num_tasks)`: `"raise"` an
            error, or `"mark"` it as -1, for which the model answers NaN.
        by_position: Whether a list stands for a dictionary. Keras reads a list in the
            order of sorted names, and refuses it if the model's dictionary has another.
        name: The argument's name, for messages.
        task_names: The names of the tasks in order, by which the task may be given.
        removed: Indices of tasks that were removed.

    Raises:
        TypeError: (when called) An input is no array or has a wrong dtype; the task is
            not of an integer dtype.
        ValueError: (when called) Names, shapes or numbers of examples do not fit; a
            task index is out of range.
    """

    def __init__(
        self,
        inputs: dict[str, Any],
        num_tasks: int | None = None,
        unknown: Literal["raise", "mark"] = "raise",
        by_position: bool = True,
        name: str = "x",
        task_names: TaskNames | None = None,
        removed: Removed = (),
    ) -> None:
        # Plain values alone: a `PyDataset` may send this to other processes.
        self.shapes = {key: tuple(value.shape) for key, value in inputs.items()}
        self.dtypes = {key: _dtype(value) for key, value in inputs.items()}
        self.num_tasks = num_tasks
        self.unknown = unknown
        self.by_position = by_position
        self.name = name
        self.task_names = task_names
        self.removed = removed
        self._found: Exception | None = None

    def __call__(self, given: Structure) -> dict[str, Any]:
        try:
            return self._check(given)
        except (TypeError, ValueError) as error:
            self._found = error
            raise

    @contextlib.contextmanager
    def plain_errors(self) -> Iterator[None]:
        """A context in which what was found wrong is raised as it was found.

        TensorFlow turns what is raised while it reads data into an error of its own.
        """
        try:
            yield
        except Exception as error:
            found = self._found or _found_in_graph(error)
            if found is None or found is error:
                raise
            raise found from error

    def _check(self, given: Structure) -> dict[str, Any]:
        given = self.by_name(given)
        if self._has_index:
            given = {**given, "task": named_index(given["task"], self.task_names)}
        given = {k: _as_array(k, v) for k, v in given.items()}
        self.check_types(given)
        self._check_lengths(given)
        if self._has_index and given["task"] is not None:
            index = self._check_index(given["task"])
            # Keras takes tensors or arrays, but no mixture of them.
            is_tensor = ops.is_tensor(given["task"])
            given["task"] = ops.convert_to_tensor(index) if is_tensor else index
        return given

    def by_name(self, given: Structure) -> dict[str, Any]:
        """Returns what was given as a dictionary with the names of the inputs."""
        names = list(self.shapes)
        if isinstance(given, (list, tuple)):
            if len(given) != len(names) or not self.by_position:
                how = "" if self.by_position else " as a dictionary"
                raise ValueError(
                    f"`{self.name}` must hold the inputs {names}{how}. "
                    f"Received: {describe(given)}"
                )
            given = dict(zip(names, given, strict=True))
        elif not isinstance(given, dict):
            if len(names) != 1:
                raise ValueError(
                    f"`{self.name}` must hold the inputs {names}. "
                    f"Received: {describe(given)}"
                )
            given = {names[0]: given}
        check_names(self.name, given, names)
        return {name: given[name] for name in names}

    def check_types(self, given: dict[str, Any]) -> None:
        """Checks dtypes and shapes of arrays, or of what describes them."""
        for name, value in given.items():
            if value is None:  # Keras knows which inputs may be left out.
                continue
            self._check_dtype(name, value)
            if name == "task" and self.num_tasks is not None:
                self._check_task_shape(value)
            else:
                check_shape(name, value, self.shapes[name])

    def mark_in_graph(self, given: dict[str, Any]) -> dict[str, Any]:
        """Checks task indices inside a `tf.data` pipeline, with TensorFlow."""
        if not self._has_index:
            return given
        tensorflow = sys.modules["tensorflow"]
        # A uint64 that is too large for int64 becomes negative: still no task.
        task = tensorflow.cast(given["task"], "int64")
        known = (task >= 0) & (task < self.num_tasks)
        if self.removed:
            gone = tensorflow.constant(self.removed, "int64")
            known &= tensorflow.reduce_all(task[..., None] != gone, axis=-1)
        if self.unknown == "raise":
            wrong = tensorflow.boolean_mask(
                given["task"], tensorflow.logical_not(known)
            )
            tasks = describe_tasks(*self._tasks)
            message = f"{tasks}. Received: task={{}}"
            tensorflow.debugging.Assert(
                tensorflow.reduce_all(known),
                [tensorflow.strings.format(message, wrong[:1])],
            )
        task = tensorflow.cast(tensorflow.where(known, task, -1), "int32")
        if self._has_column and task.shape.rank == 2:
            task = tensorflow.squeeze(task, 1)
        return {**given, "task": task}

    @property
    def _tasks(self) -> tuple[int, Removed]:
        return self.num_tasks or 0, self.removed

    @property
    def _has_index(self) -> bool:
        """Whether the task is an index; else there is none, or a weight for each."""
        return self.num_tasks is not None and "int" in self.dtypes["task"]

    @property
    def _has_column(self) -> bool:
        """Whether indices of shape `(batch, 1)` become those of shape `(batch,)`.

        On TensorFlow a compiled model takes one of the two, the one it was given first.
        """
        return len(self.shapes["task"]) == 1

    def _check_dtype(self, name: str, value: Any) -> None:
        if not hasattr(value, "dtype"):
            return  # A table, whose columns may differ.
        dtype, expected = _dtype(value), self.dtypes[name]
        if name == "task" and self.num_tasks is not None:
            if self._has_index and "int" not in dtype:
                raise TypeError(
                    "`task` must have an integer dtype, because it is an index. "
                    f"Received: task of dtype {dtype} and shape {_shape(value)}"
                )
            if not self._has_index and "float" not in dtype:
                raise TypeError(
                    "This model takes soft contexts, floats of shape "
                    f"(batch, {self.num_tasks}), as `task`. "
                    f"Received: task of dtype {dtype} and shape {_shape(value)}"
                )
        elif expected != "string" and not _is_number(dtype):
            raise TypeError(
                f"`{self.name}` must hold numbers, of dtype {expected}, for the input "
                f"{name!r}. Received: dtype {dtype}"
            )

    def _check_task_shape(self, value: Any) -> None:
        shape = _shape(value)
        if shape is None:
            return
        if not self._has_index:
            if len(shape) != 2 or shape[1] not in (None, self.num_tasks):
                raise ValueError(
                    "Soft contexts must have shape (batch, num_tasks), a weight for "
                    f"each of {self.num_tasks} tasks. Received: task of shape {shape}"
                )
        elif len(shape) not in (1, 2) or shape[1:] not in ((), (1,), (None,)):
            hint = ", one example without a batch" if shape == () else ""
            raise ValueError(
                "`task` must have shape (batch,) or (batch, 1), one index for each "
                f"example. Received: task of shape {shape}{hint}"
            )

    def _check_lengths(self, given: dict[str, Any]) -> None:
        shapes = {k: _shape(v) for k, v in given.items()}
        lengths = {k: shape[0] for k, shape in shapes.items() if shape}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"`{self.name}` must hold equally many examples in every input. "
                f"Received: {lengths}"
            )

    def _check_index(self, task: Any) -> np.ndarray:
        task = to_numpy(task)
        if self._has_column:
            task = task.reshape(-1)
        known = known_tasks(task, *self._tasks)
        if self.unknown == "raise" and not known.all():
            wrong = task[~known].flat[0]
            tasks = describe_tasks(*self._tasks)
            raise ValueError(f"{tasks}. Received: task={wrong}")
        index = np.where(known, task, 0).astype("int32")
        return np.where(known, index, np.int32(-1))


class BesideInputs(InputCheck):
    """Checks a task that stands beside inputs of which nothing is known.

    Called with a dictionary with a `"task"`, it returns one like it, with the task as
    int32 indices. What else it is called with it returns as it is: the task then comes
    from a scope.

    Args:
        num_tasks: Number of tasks.
        unknown: See `InputCheck`.
        task_names: See `InputCheck`.
        removed: See `InputCheck`.
    """

    def __init__(
        self,
        num_tasks: int,
        unknown: Literal["raise", "mark"],
        task_names: TaskNames | None = None,
        removed: Removed = (),
    ) -> None:
        inputs = {"task": np.zeros((0,), "int32")}
        super().__init__(
            inputs, num_tasks, unknown, False, task_names=task_names, removed=removed
        )

    def _check(self, given: Structure) -> Structure:
        return _beside(given, super()._check)

    def by_name(self, given: Structure) -> Structure:
        return given

    def check_types(self, given: Structure) -> None:
        _beside(given, super().check_types)

    def mark_in_graph(self, given: Structure) -> Structure:
        return _beside(given, super().mark_in_graph)


def _beside(given, function):
    """Applies a function to the task of inputs, if there is one."""
    if not isinstance(given, dict) or "task" not in given:
        return given
    return {**given, **(function({"task": given["task"]}) or {})}


def checked(data: Structure, check: InputCheck) -> Structure:
    """Returns data as Keras' `fit()` takes them, every batch of which is checked.

    The check runs on the host, before the batch reaches a compiled step. Arrays, and
    what is known of a dataset's elements, are checked now.

    Args:
        data: Any form of `x` that `fit()`, `evaluate()` or `predict()` takes.
        check: An `InputCheck`.

    Returns:
        Data of the same form. What is not known here is returned as it is, and left to
        Keras.

    Raises:
        TypeError: See `InputCheck`. So does what reads the batches.
        ValueError: Likewise. In a `tf.data` pipeline a task index out of range is a
            `tf.errors.InvalidArgumentError`.
    """
    if _is_dataset(data):
        return _checked_dataset(data, check)
    if isinstance(data, keras.utils.PyDataset):
        return _CheckedPyDataset(data, check)
    if _is_loader(data):
        return _checked_loader(data, check)
    if isinstance(data, Iterator):
        return _checked_iterator(data, check)
    if isinstance(data, (dict, list, tuple)) or _is_array(data):
        return check(data)
    return data


def check_batch(batch: Structure, check: InputCheck) -> tuple:
    """Checks the inputs of a batch `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`."""
    parts = _parts_of(batch)
    return (check(parts[0]), *parts[1:])


def check_lengths(batch: tuple, name: str) -> None:
    """Raises a `ValueError` if arrays `(x, y, sample_weight)` differ in examples."""
    lengths = {  # A single number is no example.
        key: sorted(
            {(*array.shape, 0)[0] for array in _leaves(part) if _is_array(array)}
        )
        for key, part in zip(("x", "y", "sample_weight"), batch, strict=False)
        if part is not None
    }
    if len({n for each in lengths.values() for n in each}) > 1:
        raise ValueError(
            f"`{name}` must hold equally many examples everywhere. Received: {lengths}"
        )


def is_empty(data: Structure) -> bool:
    """Returns whether data are arrays, and hold no example."""
    if not isinstance(data, (dict, list, tuple)) and not _is_array(data):
        return False
    arrays = _leaves(data)
    return bool(arrays) and all(
        _is_array(array) and tuple(array.shape)[:1] == (0,) for array in arrays
    )


def read_inputs(
    data: Structure,
    inputs: dict[str, Any],
    limit: int | None = None,
    name: str = "data",
) -> dict[str, np.ndarray]:
    """Reads unlabelled inputs, in whatever form they are given, as arrays.

    A tuple is read as Keras reads it: `(x, y)` or `(x, y, sample_weight)`, of which
    only `x` is used. A list holds one array for each of several inputs, or batches.

    Args:
        data: An array; a list of arrays, if there are several inputs; a dictionary of
            arrays; a tuple `(x, y)` or `(x, y, sample_weight)`; or batches of these: a
            list or other iterable, a `tf.data.Dataset`, a `keras.utils.PyDataset` or a
            torch `DataLoader`.
        inputs: Dictionary of what has a `shape` and a `dtype`, by the inputs' names.
        limit: At most how many examples are read. Defaults to all.
        name: The argument's name, for messages.

    Returns:
        Dictionary of NumPy arrays with the names and the ranks of `inputs`.

    Raises:
        TypeError: `data` is nothing of that, or holds no numbers.
        ValueError: Names, shapes or numbers of examples do not fit; `data` is empty,
            endless without a limit, not finite, or can be read in two ways.
    """
    check = InputCheck(inputs, name=name)
    if _is_dataset(data):
        check.check_types(check.by_name(_inputs_of(data.element_spec, check)))
    parts, count = [], 0
    for batch in _batches_of(data, check, limit):
        part = check(_inputs_of(batch, check))
        parts.append({k: _read_array(v, name) for k, v in part.items()})
        count += _count(tuple(parts[-1].values()))
        if limit is not None and count >= limit:
            break
    if not count:
        raise ValueError(
            f"`{name}` must hold at least one example. Received: {describe(data)}"
        )
    arrays = {}
    for key, shape in check.shapes.items():
        array = _concatenate([part[key] for part in parts], name)[:limit]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"`{name}` must be finite. Received: NaN or inf in {key!r}"
            )
        # Keras lets a last dimension of 1 go missing, or be one too many.
        arrays[key] = array.reshape((*array.shape, 1)[: len(shape)])
    return arrays


def read_examples(
    data: Structure, limit: int, name: str = "data"
) -> tuple[Structure, Structure, Structure]:
    """Reads at most `limit` labelled examples, in whatever form they are given.

    Arrays, lists of batches and `PyDataset`s may be sorted by class. If they hold more
    than `limit` examples, some are drawn, always the same ones. Of a `tf.data.Dataset`,
    a `DataLoader` or an iterator the first ones are taken.

    Args:
        data: A tuple of arrays `(x, y)` or `(x, y, sample_weight)`, in which each may
            be a list or dictionary of arrays; `x` alone, if it is an array or a
            dictionary; or batches of these, as for `read_inputs()`.
        limit: Positive integer.
        name: The argument's name, for messages.

    Returns:
        `(x, y, sample_weight)`: structures of NumPy arrays; `None` for what there is
        not.

    Raises:
        TypeError: `data` is nothing of that, or holds something else than arrays.
        ValueError: `data` is empty, numbers of examples differ, or batches do.
    """
    if isinstance(data, (dict, tuple)) or _is_array(data):
        batch = _read_batch(data, name)
        count = _count(batch)
        order = np.random.default_rng(0).permutation(count)[:limit]
        if count > limit:
            batch = _map(lambda array: array[order], batch)
    else:
        batches, count = [], 0
        for each in _some_batches(data, limit, name):
            batches.append(each)
            count += _count(each)
        for each in batches[1:]:
            if not _same_structure(batches[0], each):
                raise ValueError(
                    f"`{name}` must hold batches of one kind; give arrays with their "
                    f"labels as a tuple `(x, y)`. Received: {describe(batches[0])} and "
                    f"{describe(each)}"
                )
        if batches:
            batch = _map(lambda *arrays: _concatenate(arrays, name)[:limit], *batches)
    if not count:
        raise ValueError(
            f"`{name}` must hold at least one example. Received: {describe(data)}"
        )
    x, y, sample_weight = (*batch, None, None)[:3]
    return x, y, sample_weight


def to_numpy(value: Any) -> np.ndarray:
    """Returns an array or a tensor, of whatever library, as a NumPy array."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "detach"):  # Of torch, which is not the backend everywhere.
        return value.detach().cpu().numpy()
    if hasattr(value, "toarray"):  # Of SciPy, sparse.
        return value.toarray()
    return ops.convert_to_numpy(value)


def describe(structure: Structure) -> str:
    """Returns what data look like, for messages: types and shapes, and no values."""
    if isinstance(structure, dict):
        parts = [f"{k!r}: {describe(v)}" for k, v in structure.items()]
        return f"{{{', '.join(parts[:8])}{', ...' if len(parts) > 8 else ''}}}"
    if isinstance(structure, (list, tuple)):
        parts = [describe(each) for each in structure[:8]]
        parts += ["..."] if len(structure) > 8 else []
        kind = "a list of " if isinstance(structure, list) else "a tuple of "
        return f"{kind}{len(structure)}: ({', '.join(parts)})"
    shape = _shape(structure)
    if shape is not None:
        return f"array of shape {shape}"
    if structure is None or isinstance(structure, (bool, int, float, str)):
        return repr(structure)
    return type(structure).__name__


def _found_in_graph(error: Exception) -> ValueError | None:
    """Returns the error that `mark_in_graph()` has put into TensorFlow's."""
    found = re.search(r"(`task` must lie in .*? task=)\[(-?\d+)\]", str(error))
    return ValueError("".join(found.groups())) if found else None


# What the forms are.


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") or hasattr(value, "__array__")


def _is_dataset(data: Any) -> bool:
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(data, tensorflow.data.Dataset)


def _is_loader(data: Any) -> bool:
    loaders = sys.modules.get("torch.utils.data")
    return loaders is not None and isinstance(data, loaders.DataLoader)


def _as_array(name: str, value: Any) -> Any:
    """Returns an input as what has a shape and a dtype."""
    if value is None or (hasattr(value, "shape") and _shape(value) is not None):
        return value
    if isinstance(value, (list, tuple)) or hasattr(value, "__array__"):
        try:
            return np.asarray(value)
        except ValueError as error:  # Ragged.
            raise ValueError(
                f"The input {name!r} must hold examples of one shape. "
                f"Received: {describe(value)}"
            ) from error
    raise TypeError(
        f"The input {name!r} must be an array. Received: {describe(value)} "
        f"(of type {type(value).__name__})"
    )


def _shape(value: Any) -> tuple | None:
    """The shape of an array, or `None` if it has none or one that is not known yet."""
    shape = getattr(value, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return None
    return tuple(shape)


def _dtype(value: Any) -> str:
    dtype = value.dtype
    if isinstance(dtype, np.dtype) and dtype.kind in "OUSMm":
        return "object" if dtype.kind == "O" else str(dtype)
    return keras.backend.standardize_dtype(dtype)


def _is_number(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "int", "uint", "complex", "bool"))


def _parts_of(batch: Structure) -> tuple:
    """Returns `(x,)`, `(x, y)` or `(x, y, sample_weight)`, as Keras reads a batch."""
    parts = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
    if len(parts) not in (1, 2, 3):
        raise ValueError(
            "A batch must be `x`, `(x, y)` or `(x, y, sample_weight)`. "
            f"Received: {describe(batch)}"
        )
    return parts


# Data for Keras' trainer.


def _checked_dataset(dataset: Any, check: InputCheck) -> Any:
    spec = _parts_of(dataset.element_spec)
    check.check_types(check.by_name(spec[0]))

    def check_element(*parts):
        return (check.mark_in_graph(check.by_name(parts[0])), *parts[1:])

    return dataset.map(check_element)


class _CheckedPyDataset(keras.utils.PyDataset):
    """Another `PyDataset`, of which every batch is checked."""

    def __init__(self, dataset: keras.utils.PyDataset, check: InputCheck) -> None:
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self.dataset, self.check = dataset, check

    @property
    def num_batches(self) -> int | None:
        return self.dataset.num_batches

    def __getitem__(self, index: int) -> tuple:
        return check_batch(self.dataset[index], self.check)

    def on_epoch_begin(self) -> None:
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.dataset.on_epoch_end()


def _checked_loader(loader: Any, check: InputCheck) -> Any:
    """A copy of a `DataLoader`, whatever its class, that checks what it yields."""
    torch = sys.modules["torch"]

    base: Any = type(loader)

    class CheckedLoader(base):
        def __iter__(self):
            for batch in super().__iter__():
                x, *labels = check_batch(batch, check)
                # Keras wants tensors alone.
                yield (keras.tree.map_structure(torch.as_tensor, x), *labels)

    copied = object.__new__(CheckedLoader)
    copied.__dict__.update(loader.__dict__)
    return copied


def _checked_iterator(batches: Iterator, check: InputCheck) -> Iterator[tuple]:
    """A generator, the one kind of iterator that Keras takes."""
    empty = True
    for batch in batches:
        empty = False
        yield check_batch(batch, check)
    if empty:
        raise ValueError(
            f"`{check.name}` must hold at least one batch. "
            f"Received: an empty {type(batches).__name__}"
        )


# Inputs without labels.


def _batches_of(
    data: Structure, check: InputCheck, limit: int | None
) -> Iterable[Structure]:
    """Returns the batches of data in whatever form, arrays as one batch."""
    if isinstance(data, dict) or _is_array(data):
        return [data]
    if _are_inputs(data, check):
        return [data]
    if isinstance(data, tuple):
        if len(data) > 1 and _fits(data[1], check):
            raise ValueError(
                f"`{check.name}` can be read as two batches and as `(x, y)`: give "
                f"batches as a list, or `x` alone. Received: {describe(data)}"
            )
        return [data]
    return _iterate(data, check.name, endless=limit is not None)


def _inputs_of(batch: Structure, check: InputCheck) -> Structure:
    """Returns a batch without its labels."""
    return batch if _are_inputs(batch, check) else _parts_of(batch)[0]


def _are_inputs(data: Structure, check: InputCheck) -> bool:
    """Whether a list or tuple holds an array for each of several inputs."""
    return (
        isinstance(data, (list, tuple))
        and len(data) == len(check.shapes) > 1
        and all(map(_is_array, data))
    )


def _fits(data: Structure, check: InputCheck) -> bool:
    """Whether data could be a batch of inputs."""
    try:
        check(data)
    except (TypeError, ValueError):
        return False
    return True


def _iterate(data: Any, name: str, endless: bool) -> Iterator[Structure]:
    """Returns an iterator over batches.

    Args:
        data: What users hand in, if it is not arrays.
        name: The argument's name, for messages.
        endless: Whether there may be no end to it.
    """
    if isinstance(data, (str, bytes)) or not (
        hasattr(data, "__iter__") or hasattr(data, "__getitem__")
    ):
        raise TypeError(
            f"`{name}` must hold arrays (an array, a list or a dictionary of arrays), "
            f"or batches of these. Received: {describe(data)} "
            f"(of type {type(data).__name__})"
        )
    if not endless and _is_endless(data):
        raise ValueError(
            f"`{name}` must come to an end. Received: an endless {type(data).__name__}"
        )
    return iter(data)


def _is_endless(data: Any) -> bool:
    if _is_dataset(data):
        return bool(
            data.cardinality() == sys.modules["tensorflow"].data.INFINITE_CARDINALITY
        )
    return isinstance(data, keras.utils.PyDataset) and data.num_batches is None


def _concatenate(arrays: Iterable[np.ndarray], name: str) -> np.ndarray:
    arrays = list(arrays)
    shapes = sorted({array.shape[1:] for array in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"`{name}` must hold batches of one shape. "
            f"Received: examples of shapes {', '.join(map(str, shapes))}"
        )
    return np.concatenate(arrays)


# Examples with labels.


def _some_batches(data: Any, limit: int, name: str) -> list[tuple]:
    """Returns batches of at least `limit` examples, if there are so many."""
    order = _order_of(data)
    taken: dict[int, tuple] = {}
    batches: Iterable[tuple[int, Any]]
    if order is None:
        batches = enumerate(_iterate(data, name, endless=True))
    else:
        batches = ((int(i), data[int(i)]) for i in order)
    count = 0
    for i, batch in batches:
        taken[i] = _read_batch(batch, name)
        count += _count(taken[i])
        if count >= limit:
            break
    return [taken[i] for i in sorted(taken)]


def _order_of(data: Any) -> np.ndarray | None:
    """Returns a random order of batches that can be had in any; always the same."""
    if isinstance(data, keras.utils.PyDataset):
        number = data.num_batches
    else:
        number = len(data) if isinstance(data, list) else None
    return None if number is None else np.random.default_rng(0).permutation(number)


def _read_batch(batch: Structure, name: str) -> tuple:
    """Returns a batch's `(x,)`, `(x, y)` or `(x, y, sample_weight)` as arrays."""
    batch = _map(lambda value: _read_array(value, name), _parts_of(batch))
    check_lengths(batch, name)
    return batch


def _read_array(value: Any, name: str) -> np.ndarray:
    if not _is_array(value):
        raise TypeError(
            f"`{name}` must hold arrays, or batches of arrays. "
            f"Received: {describe(value)} (of type {type(value).__name__})"
        )
    array = to_numpy(value)
    if not array.shape:
        raise ValueError(
            f"`{name}` must hold batches of examples; call `batch()` on a dataset of "
            "single ones. Received: an array of shape ()"
        )
    return array


def _count(batch: tuple) -> int:
    return len(_leaves(batch)[0])


def _leaves(structure: Structure) -> list[np.ndarray]:
    return [each for each in keras.tree.flatten(structure) if each is not None]


def _map(function: Callable, *structures: Structure) -> Structure:
    """Maps structures; `None` stays."""
    return keras.tree.map_structure(
        lambda *leaves: None if leaves[0] is None else function(*leaves), *structures
    )


def _same_structure(a: Structure, b: Structure) -> bool:
    if type(a) is not type(b) or isinstance(a, np.ndarray) and a.ndim != b.ndim:
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same_structure(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same_structure, a, b))
    return True
