"""What all models have in common that take a task beside their inputs."""

import contextlib
import inspect
import re
import weakref
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
from keras_psp._core.data import InputCheck
from keras_psp._core.data import check_batch
from keras_psp._core.data import check_lengths
from keras_psp._core.data import checked
from keras_psp._core.data import is_empty
from keras_psp._core.distribution import check_built_under_strategy
from keras_psp._core.one_thread import one_thread
from keras_psp._core.private import children
from keras_psp._core.private import kept_weights
from keras_psp._core.task_index import TaskNames
from keras_psp._core.task_index import check_num_tasks
from keras_psp._core.task_index import check_task
from keras_psp._core.task_index import check_task_names
from keras_psp._core.task_index import named_index
from keras_psp._core.task_layer import find_task_layers
from keras_psp.contexts.context import Context
from keras_psp.models._whole_steps import WholeSteps
from keras_psp.optimizers._advise import advise
from keras_psp.optimizers._grow import check_can_grow
from keras_psp.optimizers._grow import grow_optimizer

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

        They can be set to a list of strings, one for each task.
        """
        return vars(self).get("_task_names")

    @task_names.setter
    def task_names(self, names: Sequence[str] | None) -> None:
        if names is not None:
            names = check_task_names(names)
            if len(names) != self.num_tasks:
                raise ValueError(
                    f"`task_names` must hold {self.num_tasks} names, one for each "
                    f"task. Received: task_names={names!r}"
                )
        for each in (self, *self._task_layers()):
            vars(each)["_task_names"] = names
        self._forget_compiled()

    def task_index(self, task: int | str) -> int:
        """Returns the index of a task that is given by its index or its name.

        Raises:
            TypeError: `task` is neither an integer nor a string.
            ValueError: There is no such task, or the tasks have no names.
        """
        index = check_task(named_index(task, self.task_names), self.num_tasks)
        if not isinstance(index, int):
            raise TypeError(
                "`task` must be an integer, or a name if the tasks have names. "
                f"Received: task={task!r}"
            )
        return index

    def add_tasks(self, n: int | Sequence[str]) -> Self:
        """Adds `n` tasks behind the present ones, which stay exactly as they are.

        The model need not be compiled again. The optimizer keeps what it knows of the
        present tasks, and so does a consolidation. Models that contain this one, or
        share its layers, follow.

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
            new = check_task_names((*names, *(new or ())))
        total = self.num_tasks + number
        self._check_can_change(number)
        self.check_can_hold(total)
        self._change_to(total)
        self.task_names = new
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
        self._check_can_change(n)
        names = self.task_names
        self._change_to(total)
        self.task_names = names and names[:total]
        return self

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
        advise(self, getattr(self, "optimizer", None))
        try:
            with check.plain_errors(), self._guarded():
                return super().fit(**given)
        finally:
            steps.restore()

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
        seeds = [(context, context.seed) for context in _contexts_in(self)]
        try:
            return super().load_weights(filepath, *args, **kwargs)
        except Exception:
            # Keras loads layer after layer, and may find only then that one of them
            # is of another family, or size.
            self.set_weights(before)
            for context, seed in seeds:
                context.seed = seed
            raise

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.fitted_to_data:
            store["fitted_to_data"] = np.array(1)

    def load_own_variables(self, store: Any) -> None:
        values = {name: store[name] for name in store.keys()}
        self.fitted_to_data = bool(values.pop("fitted_to_data", self.fitted_to_data))
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

    def _check_can_change(self, n: int) -> None:
        if self._is_soft():
            raise ValueError(
                "A model that takes soft contexts has an input of `num_tasks` weights "
                f"and can neither grow nor shrink. Received: n={n}"
            )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return config | ({"task_names": self.task_names} if self.task_names else {})

    @classmethod
    def from_config(cls, config: dict[str, Any], *args: Any, **kwargs: Any) -> Self:
        config = dict(config)
        names = config.pop("task_names", None)
        model = super().from_config(config, *args, **kwargs)
        if names:
            model.task_names = names
        return model

    def _change_to(self, total: int) -> None:
        before, values = self.num_tasks, self.get_weights()
        models = self._models_around()
        trained = [list(model.trainable_variables) for model in models]
        rows = [k if k < before else None for k in range(total)]
        for model, variables in zip(models, trained, strict=True):
            if model.compiled:
                check_can_grow(model.optimizer, variables)
        try:
            self._resize(total)
        except BaseException:
            self._resize(before)
            self.set_weights(values)
            raise
        self._forget_compiled()
        for model, variables in zip(models, trained, strict=True):
            if model.compiled:
                grow_optimizer(
                    model.optimizer, variables, model.trainable_variables, rows
                )

    def _forget_compiled(self) -> None:
        """Lets all be compiled anew that has the old weights and tasks in it."""
        for model in self._models_around():
            model.train_function = model.test_function = model.predict_function = None
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


def _contexts_in(layer: keras.layers.Layer) -> Iterator[Context]:
    for child in children(layer):
        if isinstance(child, Context):
            yield child
        else:
            yield from _contexts_in(child)


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
