"""What all models have in common that take a task beside their inputs."""

import contextlib
import inspect
import json
import re
import weakref
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import Literal
from typing import Self

import keras
import numpy as np

from keras_psp._core.backend import compiled_with
from keras_psp._core.checks import check_fewer_tasks
from keras_psp._core.checks import check_list
from keras_psp._core.data import InputCheck
from keras_psp._core.data import check_batch
from keras_psp._core.data import check_lengths
from keras_psp._core.data import checked
from keras_psp._core.data import is_empty
from keras_psp._core.data import to_numpy
from keras_psp._core.distribution import check_built_under_strategy
from keras_psp._core.one_thread import one_thread
from keras_psp._core.private import entry_layer
from keras_psp._core.private import give_weights_back
from keras_psp._core.private import kept_weights
from keras_psp._core.task_index import Removed
from keras_psp._core.task_index import TaskNames
from keras_psp._core.task_index import check_num_tasks
from keras_psp._core.task_index import check_strings
from keras_psp._core.task_index import check_task
from keras_psp._core.task_index import check_task_names
from keras_psp._core.task_index import in_order
from keras_psp._core.task_index import named_index
from keras_psp._core.task_layer import find_task_layers
from keras_psp._core.task_layer import task_layers_in
from keras_psp.layers._task_units import TaskUnits
from keras_psp.models._whole_steps import WholeSteps
from keras_psp.optimizers._advise import advise
from keras_psp.optimizers._advise import advise_of_earlier_tasks
from keras_psp.optimizers._advise import note_trained
from keras_psp.optimizers._grow import check_can_grow
from keras_psp.optimizers._grow import grow_optimizer
from keras_psp.optimizers._grow import moved_along
from keras_psp.optimizers._grow import part_averages

if TYPE_CHECKING:
    from typing import Any as KerasModel  # What stands behind the mixin.
else:
    KerasModel = object


class TakesTasks(KerasModel):
    """Mixin of the models that take a task: growing, training and answering.

    It stands before a Keras model among the bases. That says where the task is in what
    the model is called with, and how this is checked, by `_task_in()` and `_check()`.
    """

    # Whether the kernels are the least squares solution of `superpose(..., data=)`: a
    # model that is added without data then disturbs them. It is saved with the weights.
    fitted_to_data: bool = False
    _class_names: tuple[TaskNames | None, ...] | None = None

    @property
    def num_tasks(self) -> int:
        """How many tasks the model's layers hold."""
        layers = self._task_layers()
        if not layers:
            raise ValueError(f"No layer of {self.name!r} takes a task.")
        return min(layer.num_tasks for layer in layers)

    @property
    def task_names(self) -> TaskNames | None:
        """The names of the tasks in order, or `None` if they have only indices.

        They can be set to a list of strings, one for each task. The name of a task that
        was removed is empty.
        """
        return vars(self).get("_task_names")

    @task_names.setter
    def task_names(self, names: Sequence[str] | None) -> None:
        if names is not None:
            names = check_strings(names)
            if len(names) != self.num_tasks:
                raise ValueError(
                    f"`task_names` must hold {self.num_tasks} names, one for each "
                    f"task. Received: task_names={names!r}"
                )
            removed = self.removed_tasks
            check_task_names([x for k, x in enumerate(names) if k not in removed])
            names = tuple("" if k in removed else x for k, x in enumerate(names))
        for each in (self, *self._task_layers()):
            vars(each)["_task_names"] = names
        self._forget_compiled()

    @property
    def class_names(self) -> tuple[TaskNames | None, ...] | None:
        """The names of each task's outputs, in order, or `None` if none are known.

        They can be set to a list of lists of strings, one for each task, or to a
        dictionary of these by the tasks' names. A task without any has `None`.
        """
        return self._class_names

    @class_names.setter
    def class_names(self, names: Any) -> None:
        if names is not None:
            names = in_order("class_names", names, self.task_names)
            what = "a list of names for each task"
            names = check_list("class_names", names, what)
            if len(names) != self.num_tasks:
                raise ValueError(
                    f"`class_names` must hold {self.num_tasks} lists, one for each "
                    f"task. Received: {len(names)} lists"
                )
            names = tuple(each and check_strings(each) for each in names)
            for task, each in enumerate(names):
                units = self._units_of(task)
                if each and units not in (None, len(each)):
                    raise ValueError(
                        f"Task {task} has {units} outputs, which must have as many "
                        f"names. Received: {each!r}"
                    )
            names = names if any(names) else None
        self._class_names = names

    def _units_of(self, task: int) -> int | None:
        """How many outputs a task has, if that is known."""
        heads = [each for each in self._task_layers() if isinstance(each, TaskUnits)]
        cut = [each for each in heads if each.units_per_task is not None]
        if len(cut) == 1:
            return cut[0].units_of(task)
        outputs = keras.tree.flatten(getattr(self, "outputs", None) or [])
        return outputs[0].shape[-1] if len(outputs) == 1 and not cut else None

    @property
    def removed_tasks(self) -> Removed:
        """The indices of tasks that were removed and have not been given out again."""
        layers = self._task_layers()
        return layers[0].removed_tasks if layers else ()

    @removed_tasks.setter
    def removed_tasks(self, removed: Iterable[int]) -> None:
        for layer in task_layers_in(self):
            layer.removed_tasks = removed
        self._forget_compiled()

    @property
    def present_tasks(self) -> list[int]:
        """The indices of the tasks that the model has."""
        removed = self.removed_tasks
        return [k for k in range(self.num_tasks) if k not in removed]

    def task_index(self, task: int | str) -> int:
        """Returns the index of a task that is given by its index or its name.

        Raises:
            TypeError: `task` is neither an integer nor a string.
            ValueError: There is no such task, or the tasks have no names.
        """
        index = named_index(task, self.task_names)
        index = check_task(index, self.num_tasks, self.removed_tasks)
        if not isinstance(index, int):
            raise TypeError(
                "`task` must be an integer, or a name if the tasks have names. "
                f"Received: task={task!r}"
            )
        return index

    def add_tasks(self, n: int | Sequence[str]) -> Self:
        """Adds `n` tasks beside the present ones, which stay exactly as they are.

        The indices of tasks that were removed are given out first, in their order; the
        others follow the present ones. The model need not be compiled again. The
        optimizer keeps what it knows of the present tasks, and so does a consolidation.
        Models that contain this one, or share its layers, follow.

        Args:
            n: Positive integer; or a list of their names, if the tasks have names.

        Returns:
            The model itself.

        Raises:
            TypeError: `n` is neither an integer nor a list of strings.
            ValueError: `n` is not positive, a layer cannot hold so many tasks, or
                the model takes soft contexts, whose number is that of an input; the
                present tasks have names and the new ones have none, or the other way
                round; a name is there already.
        """
        number, new = check_num_tasks(n, "n")
        names = self.task_names
        if (names is None) != (new is None):
            raise ValueError(
                "Either all tasks of a model have names or none has. Received: "
                f"n={n!r} for a model with task_names={names!r}"
            )
        if names is not None:
            check_task_names((*filter(None, names), *(new or ())))
        self.check_can_change(number)
        self.check_can_hold(self.num_tasks + number)
        places = self.next_tasks(number)
        reused = [k for k in places if k < self.num_tasks]
        total = max(self.num_tasks, places[-1] + 1)
        rows: list[int | None] = list(range(total))
        for k in places:
            rows[k] = None

        def change() -> None:
            for layer in self._task_layers():
                for k in reused:
                    layer.reuse_task(k)
            self._resize(total)

        self._change(rows, change)
        if names is not None:
            every = dict(enumerate(names)) | dict(zip(places, new or (), strict=True))
            self.task_names = list(every.values())
        return self

    def next_tasks(self, n: int) -> list[int]:
        """Returns the indices that `add_tasks(n)` will give to the new tasks."""
        free = self.removed_tasks[:n]
        first = self.num_tasks
        return [*free, *range(first, first + n - len(free))]

    def remove_task(self, task: int | str) -> Self:
        """Removes one task, wherever it stands. The others stay exactly as they are.

        They keep their indices and their answers, bit for bit. The index of the removed
        task is refused like one outside `[0, num_tasks)`, until `add_tasks()` gives it
        out again. `num_tasks` still counts it.

        What the task has of its own (biases, scales, low rank, its context, and what
        the optimizer keeps of these) becomes zero. What it has written into shared
        kernels stays there as noise, because taking it out would change the others. It
        cannot be read: its context is gone, and the index gets a new one when it is
        given out again. (`"identity"` contexts are all alike, so there it can.)
        `keras_psp.surgery.remove_models()` takes models out of the kernels if they are
        at hand.

        Args:
            task: Integer, or the task's name.

        Returns:
            The model itself.

        Raises:
            TypeError: `task` is neither an integer nor a name.
            ValueError: There is no such task, no other would be left, or the model
                takes soft contexts.

        Example:

        >>> import keras_psp
        >>> names = ["paris", "tokyo", "berlin"]
        >>> model = keras_psp.models.mlp((4,), num_classes=2, num_tasks=names)
        >>> model = model.remove_task("tokyo")
        >>> model.task_names, model.removed_tasks
        (('paris', '', 'berlin'), (1,))
        >>> model.add_tasks(["rome"]).task_names
        ('paris', 'rome', 'berlin')
        """
        index = self.task_index(task)
        self._check_leaves_one([index])
        self.check_can_change(1)
        rows = [k if k != index else None for k in range(self.num_tasks)]

        def change() -> None:
            for layer in self._task_layers():
                layer.remove_task(index)

        self._change(rows, change)
        if self.task_names is not None:
            self.task_names = self.task_names  # Of which this one is empty now.
        return self

    def remove_tasks(self, *, n: int) -> Self:
        """Removes the last `n` tasks; the others stay exactly as they are.

        It undoes `add_tasks()`: what the tasks have of their own goes, and what they
        have written into shared weights stays.

        Args:
            n: Positive integer, less than the number of tasks. By keyword alone: it
                is no task's index.

        Returns:
            The model itself.

        Raises:
            TypeError: `n` is not an integer.
            ValueError: `n` is not positive, no task would be left, or the model takes
                soft contexts.
        """
        total = self.num_tasks - check_fewer_tasks(n, self.num_tasks)
        self._check_leaves_one(range(total, self.num_tasks))
        self.check_can_change(n)
        names = self.task_names
        self._change(list(range(total)), lambda: self._resize(total))
        self.task_names = names and names[:total]
        return self

    def check_can_change(self, n: int) -> None:
        """Raises a `ValueError` if `n` tasks cannot be added to the model, or removed.

        It takes soft contexts, or an optimizer cannot follow.
        """
        if self._is_soft():
            raise ValueError(
                "A model that takes soft contexts has an input of `num_tasks` weights "
                f"and can neither grow nor shrink. Received: n={n}"
            )
        for model, variables in self._trained():
            check_can_grow(model.optimizer, variables)

    def check_can_hold(self, num_tasks: int) -> None:
        """Raises a `ValueError` if a layer's context cannot hold `num_tasks`."""
        for layer in self._task_layers():
            layer.check_can_hold(num_tasks)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _models.add(self)
        with one_thread(self):
            return super().__call__(*args, **kwargs)

    # What is given is checked before Keras sees it: Keras casts it, and on JAX a step
    # that cannot be traced costs a model its weights.

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})  # Of KerasHub's models.
        check = self._check("raise")
        given["x"] = checked(given.get("x"), check)
        if given.get("validation_data") is not None:
            given["validation_data"] = self._check_validation(given["validation_data"])
        callbacks, steps = given.get("callbacks"), WholeSteps()
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [*(keras.tree.flatten(callbacks or [])), steps]
        given["callbacks"] = callbacks
        optimizer, tasks = getattr(self, "optimizer", None), self._tasks_in(given["x"])
        advise(self, optimizer)
        advise_of_earlier_tasks(self, optimizer, tasks)
        part_averages(optimizer)
        try:
            with check.plain_errors(), self._guarded():
                history = super().fit(**given)
        finally:
            steps.restore()
        note_trained(self, tasks)
        return history

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        check = self._check(self._unknown)
        if not kwargs.get("_use_cached_eval_dataset"):  # Which `fit()` has checked.
            x = checked(x, check)
        with check.plain_errors(), self._guarded():
            return super().evaluate(x, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        check = self._check(self._unknown)
        x = checked(x, check)
        if is_empty(x):  # Of which Keras makes no batch.
            return self.predict_on_batch(x)
        with check.plain_errors(), self._guarded():
            return super().predict(x, *args, **kwargs)

    def check_inputs(self, x: Any) -> Any:
        """Returns a batch's inputs as the model's `call()` takes them, checked.

        Raises:
            TypeError, ValueError: They are not the model's, or a task is unknown.
        """
        return self._check("raise")(x)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        x = self.check_inputs(x)
        with self._guarded():
            return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        x = self._check(self._unknown)(x)
        with self._guarded():
            return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        x = self._check(self._unknown)(x)
        with self._guarded():
            return super().predict_on_batch(x)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        before = [np.array(w) for w in self.get_weights()]
        marks, names, fitted = _marks_of(self), self.task_names, self.fitted_to_data
        try:
            return super().load_weights(filepath, *args, **kwargs)
        except Exception:
            # Keras loads layer after layer, and may find only then that one of them
            # is of another family, or size.
            self.set_weights(before)
            _set_marks(marks)
            self.task_names, self.fitted_to_data = names, fitted
            raise

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.fitted_to_data:
            store["fitted_to_data"] = np.array(1)
        if self.removed_tasks:
            store["removed_tasks"] = np.array(self.removed_tasks)
        if self.task_names:  # As numbers, for files of weights hold these alone.
            encoded = json.dumps(self.task_names).encode()
            store["task_names"] = np.frombuffer(encoded, "uint8")

    def load_own_variables(self, store: Any) -> None:
        values = {name: store[name] for name in store.keys()}
        encoded = values.pop("task_names", None)
        names = None
        if encoded is not None and self.task_names is not None:
            names = json.loads(np.array(encoded).tobytes())
            self._check_same_names(names)
        self.fitted_to_data = bool(values.pop("fitted_to_data", self.fitted_to_data))
        removed = tuple(np.array(values.pop("removed_tasks", ())).astype(int).tolist())
        if removed != self.removed_tasks:
            self.removed_tasks = removed
        if names is not None:
            self.task_names = names  # Those of removed tasks are others now.
        super().load_own_variables(values)

    def quantize(
        self, mode: Any = None, config: Any = None, filters: Any = None, **kwargs: Any
    ) -> None:
        """Quantizes the model as Keras does; see `keras.Model.quantize()`.

        Superposed kernels and base kernels become integers. Biases, norms and contexts
        stay as they are.

        Raises:
            ValueError: A layer with kernels cannot be quantized in this mode. Nothing
                has changed then; leave it out by `filters`.
        """
        name = mode if config is None else config.mode
        refused = [
            layer.name
            for layer in self._task_layers()
            if _is_chosen(layer, filters) and not layer.can_quantize(name)
        ]
        if refused:
            raise ValueError(
                f"These layers cannot be quantized to {name!r}; leave them out by "
                f"`filters`. Received: layers {refused}"
            )
        super().quantize(name, config=config, filters=filters, **kwargs)

    def _check_same_names(self, names: Sequence[str]) -> None:
        """Raises a `ValueError` if a file's tasks have other names than the model's."""
        pairs = zip(names, self.task_names or (), strict=False)
        if any(theirs and ours and theirs != ours for theirs, ours in pairs):
            raise ValueError(
                "The tasks of a file must have the names of the model's, in their "
                "order: one would answer for another. Set `task_names` to load it. "
                f"Received: a file of {list(names)} for {list(self.task_names or ())}"
            )

    def _check_leaves_one(self, indices: Iterable[int]) -> None:
        gone = {*self.removed_tasks, *indices}
        if len(gone) == self.num_tasks:
            raise ValueError(
                "A model must keep at least one task. Received: tasks to remove "
                f"{sorted(indices)}, the last ones of {self.name!r}"
            )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.removed_tasks:
            config["removed_tasks"] = list(self.removed_tasks)
        if self.class_names:
            config["class_names"] = [each and list(each) for each in self.class_names]
        return config | ({"task_names": self.task_names} if self.task_names else {})

    @classmethod
    def from_config(cls, config: dict[str, Any], *args: Any, **kwargs: Any) -> Self:
        config = dict(config)
        names = config.pop("task_names", None)
        removed = config.pop("removed_tasks", None)
        class_names = config.pop("class_names", None)
        model = super().from_config(config, *args, **kwargs)
        if removed:
            model.removed_tasks = removed
        if names:
            model.task_names = names
        model.class_names = class_names
        return model

    def _change(self, rows: list[int | None], change: Callable[[], None]) -> None:
        """Changes the tasks of all layers, and what optimizers keep of them.

        Args:
            rows: For each task after that the one that it was, or `None` for another.
            change: Function that does it.
        """
        for model in self._models_around():
            give_weights_back(model)  # A callback may change tasks.
        before, values, marks = self.num_tasks, self.get_weights(), _marks_of(self)
        trained = self._trained()
        try:
            change()
        except BaseException:
            self._resize(before)
            self.set_weights(values)
            _set_marks(marks)
            raise
        self._forget_compiled()
        if self.class_names:
            known = self.class_names
            kept = tuple(None if k is None else known[k] for k in rows)
            self._class_names = kept if any(kept) else None
        for model, variables in trained:
            grow_optimizer(model.optimizer, variables, model.trainable_variables, rows)

    @contextlib.contextmanager
    def weights_moved(self) -> Iterator[None]:
        """Where weights of tasks that there are change otherwise than by training."""
        for model in self._models_around():
            give_weights_back(model)
        with contextlib.ExitStack() as stack:
            for model, variables in self._trained():
                stack.enter_context(moved_along(model.optimizer, variables))
            yield

    def _trained(self) -> list[tuple[Any, list]]:
        """The models around this one that have an optimizer, with what it trains."""
        return [
            (model, list(model.trainable_variables))
            for model in self._models_around()
            # A probe is made anew where the variables are others.
            if model.compiled and not getattr(model, "is_probe", False)
        ]

    def _forget_compiled(self) -> None:
        """Lets all be compiled anew that has the old weights and tasks in it."""
        for model in self._models_around():
            is_trained = model.train_function is not None
            model.train_function = model.test_function = model.predict_function = None
            if is_trained:  # Perhaps now: `fit()` asks for it at each step.
                model.make_train_function(force=True)
            if hasattr(model, "generate_function"):  # Of KerasHub's.
                model.generate_function = None

    def _models_around(self) -> list:
        """This model, those that hold some of its layers, and what contains them."""
        own = {id(layer) for layer in self._task_layers()}
        sharing = [
            model
            for model in list(_models)
            if any(id(layer) in own for layer in model._task_layers())
        ]
        found = [each for one in (self, *sharing) for each in (one, *one._callers)]
        return list({id(model): model for model in found}.values())

    def _note_caller(self) -> None:
        """Notes the model in whose call this one runs: it compiles variables in."""
        caller = entry_layer()
        if isinstance(caller, keras.Model) and caller is not self:
            self._callers.add(caller)

    def _resize(self, total: int) -> None:
        for layer in self._task_layers():  # Which may share a context.
            if layer.num_tasks < total:
                layer.add_tasks(total - layer.num_tasks)
            elif layer.num_tasks > total:
                layer.remove_tasks(n=layer.num_tasks - total)

    def _task_layers(self) -> list:
        return find_task_layers(self)

    def _is_soft(self) -> bool:
        """Whether the task is a weight for each, to mix contexts with."""
        return False

    def _task_in(self, inputs: Any) -> Any:
        """Returns the task in what the model is called with, or `None`."""
        raise NotImplementedError

    def _tasks_in(self, x: Any) -> set[int]:
        """Returns the indices of the tasks in arrays; none, where that is not known."""
        task = self._task_in(x) if isinstance(x, dict) else None
        if task is None or self._is_soft():
            return set()
        return set(np.unique(to_numpy(task)).tolist())

    def _check(self, unknown: Literal["raise", "mark"]) -> InputCheck:
        """Returns what checks the inputs before the model sees them."""
        raise NotImplementedError

    @property
    def _unknown(self) -> Literal["raise", "mark"]:
        """What becomes of an unknown task where nothing is trained."""
        torch = keras.backend.backend() == "torch"
        eager = self.run_eagerly or (torch and not self.jit_compile)
        return "raise" if eager else "mark"

    def _check_validation(self, data: Any) -> Any:
        check = self._check(self._unknown)
        if isinstance(data, (tuple, list)):
            batch = check_batch(tuple(data), check)
            check_lengths(batch, "validation_data")
            return batch
        return checked(data, check)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Where Keras' compiled steps run."""
        check_built_under_strategy(self)
        xla = bool(self.jit_compile)
        with one_thread(self), kept_weights(self), compiled_with(xla):
            yield


# What layers know of their tasks that is no weight.
_MARKS = ("_removed_tasks", "_numbers", "_next_number", "seed")


def _marks_of(model: keras.layers.Layer) -> list[tuple[Any, dict[str, Any]]]:
    return [
        (layer, {name: vars(layer).get(name) for name in _MARKS if name in vars(layer)})
        for layer in task_layers_in(model)
    ]


def _set_marks(marks: list[tuple[Any, dict[str, Any]]]) -> None:
    for layer, held in marks:
        vars(layer).pop("_removed_tasks", None)
        vars(layer).update(held)


def _is_chosen(layer: keras.layers.Layer, filters: Any) -> bool:
    """Whether Keras' `quantize()` takes a layer with these filters."""
    if filters is None:
        return True
    if callable(filters):
        return bool(filters(layer))
    each = [filters] if isinstance(filters, str) else filters
    return any(re.search(pattern, layer.name) for pattern in each)


# All models that were called: when one grows, others may hold its layers.
_models: weakref.WeakSet = weakref.WeakSet()
