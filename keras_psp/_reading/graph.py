"""The graph of a model: its inputs, layers and calls, and how to build it again."""

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import keras

from keras_psp._core.private import calls_replaced
from keras_psp._core.private import input_like
from keras_psp._core.private import trusted
from keras_psp._core.task_layer import TaskLayer
from keras_psp._core.task_layer import find_task_layers
from keras_psp._reading.counterparts import copy_flags
from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.describe import get_config
from keras_psp._reading.describe import is_of_keras
from keras_psp._reading.describe import plain_state
from keras_psp._reading.same_value import same_value
from keras_psp.layers._block import Block
from keras_psp.layers._task_copies import TaskCopies
from keras_psp.models.task_model import TaskModel


def _call(layer, *args, **kwargs):
    return layer(*args, **kwargs)


class Graph:
    """A built functional or sequential model: its inputs by name, layers and calls.

    Args:
        model: Keras model.
        takes_task: Boolean, whether it has an input named `"task"`; else it must not.

    Attributes:
        model: The model.
        name: Its name.
        inputs: Its symbolic inputs by name: the names in its own dictionary or, if it
            has none, its tensors'; `"input"`, `"input_1"`, ... if they have none.
        output: Its symbolic outputs, in their structure.
        is_named: Whether it is called with a dictionary of inputs.

    Raises:
        TypeError: It is not a Keras model.
        ValueError: It has not been built, is neither functional nor sequential, or
            takes a task already.
    """

    def __init__(self, model: keras.Model, takes_task: bool = False) -> None:
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"`model` must be a Keras model. Received: model={model!r} "
                f"(of type {type(model).__name__})"
            )
        if isinstance(model, keras.Sequential) and not model.built:
            raise ValueError(
                "The model must be built, by an `Input` or a call. Received: "
                f"{model.name!r}, which is not"
            )
        if not is_graph(model):
            raise ValueError(
                "The model must be functional or sequential, with Keras' `call()`. "
                "Subclassed models have no layer graph. Received: "
                f"{model.name!r}, a {type(model).__name__}"
            )
        sequential = isinstance(model, keras.Sequential)
        self.name = model.name
        self.output = model.outputs[0] if sequential else model.output
        self.is_named = not sequential and isinstance(model.input, dict)
        if self.is_named:
            named = model.input.items()
        else:
            named = [(_name_of(x, i), x) for i, x in enumerate(model.inputs)]
        taken = {layer.name for layer in model.layers if not _is_input(layer)}
        self.inputs = {_not_among(taken, name): tensor for name, tensor in named}
        if not all(hasattr(tensor, "shape") for tensor in self.inputs.values()):
            raise ValueError(
                "A dictionary of inputs must hold tensors alone. "
                f"Received: {self.name!r} with inputs {model.input}"
            )
        if "task" in self.inputs and not takes_task:
            raise ValueError(
                "The model must not have an input named 'task' already. "
                f"Received: {self.name!r}"
            )
        self.model = model

    @functools.cached_property
    def layers(self) -> list[keras.layers.Layer]:
        """The layers, with those of the models inside, without inputs; each once."""
        return _layers(self.model)

    @property
    def names(self) -> list[str]:
        """The names of the inputs, without the task."""
        return [name for name in self.inputs if name != "task"]

    def new_inputs(self) -> dict[str, keras.KerasTensor]:
        """Returns a new `keras.Input` for each input, by name."""
        return {name: input_like(x, name) for name, x in self.inputs.items()}

    def rebuild(self, inputs, replace, call=_call, also=()):
        """Builds the model once more.

        Args:
            inputs: Dictionary of symbolic inputs, by the names of this one's.
            replace: Function of a layer that returns the layer to put in its place,
                which may be the same. It is called once for each layer.
            call: Function of the layer put in place and of the arguments of a call;
                returns the symbolic outputs. Defaults to calling the layer.
            also: More symbolic inputs, which `call` uses.

        Returns:
            The symbolic outputs.
        """
        # A plain model, of a list: Keras wants a dictionary's names to be the tensors'.
        # What is not used here has names of its own: a layer may be called as it is.
        unused = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in also]
        graph = keras.Model([*self.inputs.values(), *unused], self.output)
        given = [*(inputs[name] for name in self.inputs), *also]

        def call_by_position(layer, *args, **kwargs):
            if not args and "inputs" in kwargs:
                args = (kwargs.pop("inputs"),)
            return call(layer, *args, **kwargs)

        return keras.models.clone_model(
            graph,
            input_tensors=given,
            clone_function=replace,
            call_function=call_by_position,
        ).output

    def give(self, x: dict[str, Any]) -> Any:
        """Returns inputs, by name and without a task, as the model is called."""
        return _give(self, x)

    def name_inputs(self, given: Any) -> dict[str, Any]:
        """Returns what the model is called with, without the task, by name."""
        if isinstance(given, dict):
            return given
        return dict(zip(self.names, keras.tree.flatten(given), strict=True))


class OwnCode:
    """A built model of a class of its own: what `Graph` tells, as far as it is known.

    Args:
        model: Keras model for which `is_graph()` is false.

    Attributes:
        model: The model.
        name: Its name.
        inputs: What it is called with, symbolic and by name. A model that is not
            functional has one input, `"inputs"`.
        is_named: Whether it is called with a dictionary of inputs.
        layers: List of the model itself.

    Raises:
        ValueError: It is not built, takes a task already, or its inputs are not known.
    """

    def __init__(self, model: keras.Model) -> None:
        if not model.built:
            raise ValueError(
                "The model must be built, by a call. Received: "
                f"{model.name!r}, which is not"
            )
        if find_task_layers(model):
            raise ValueError(
                f"The model must not take a task already. Received: {model.name!r}"
            )
        self.model, self.name, self.layers = model, model.name, [model]

    @property
    def is_named(self) -> bool:
        """Whether the model is called with a dictionary of inputs."""
        known = getattr(self.model, "inputs", None) is not None
        return known and isinstance(self.model.input, dict)

    @functools.cached_property
    def inputs(self) -> dict[str, keras.KerasTensor]:
        """What the model is called with, symbolic and by name."""
        if self.is_named:
            return dict(self.model.input)
        if getattr(self.model, "inputs", None) is not None:
            return {tensor.name: tensor for tensor in self.model.inputs}
        shape = (self.model.get_build_config() or {}).get("input_shape")
        if not isinstance(shape, (list, tuple)) or not all(
            size is None or isinstance(size, int) for size in shape
        ):
            raise ValueError(
                "The model must be functional, or have one input, for its data to be "
                f"read. Received: {self.name!r}, a {type(self.model).__name__}"
            )
        return {"inputs": keras.KerasTensor((None, *shape[1:]))}

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return list(self.inputs)

    def give(self, x: dict[str, Any]) -> Any:
        """Returns inputs as the model is called with them."""
        return _give(self, x)


def read_model(model: Any) -> "Graph | OwnCode":
    """Returns what a model tells of itself: its `Graph`, if it has one."""
    if isinstance(model, keras.Model) and not is_graph(model):
        own = not isinstance(model, keras.Sequential) and type(model) is not keras.Model
        if own:
            return OwnCode(model)
    return Graph(model)


def _give(read, x):
    if read.is_named:
        return x
    values = [x[name] for name in read.names]
    return values[0] if len(values) == 1 else values


def is_graph(layer: Any) -> bool:
    """Returns whether a layer is a built functional or sequential model.

    A subclass with a `call()` of its own is not. Nor is one with a `get_config()` of
    its own, such as KerasHub's models: it can be built again by that.
    """
    return (
        isinstance(layer, keras.Model)
        and (isinstance(layer, TaskModel) or is_of_keras(type(layer).get_config))
        and getattr(layer, "inputs", None) is not None
        and (type(layer).call in _calls() or hasattr(layer, "add_tasks"))
    )


@functools.cache
def _calls():
    x = keras.Input(())
    return keras.Sequential.call, type(keras.Model(x, x)).call


def _layers(model):
    found = {}
    for layer in model.layers:
        if is_graph(layer):
            found |= {id(each): each for each in _layers(layer)}
        elif not _is_input(layer):
            found[id(layer)] = layer
    return list(found.values())


def _is_input(layer):
    return isinstance(layer, keras.layers.InputLayer)


def _name_of(tensor, position):
    if tensor.name.startswith("keras_tensor"):  # Which is numbered by the process.
        return f"input_{position}" if position else "input"
    return tensor.name


def _not_among(taken, name):
    return _not_among(taken, f"{name}_input") if name in taken else name


def copy_layer(layer: Any) -> Any:
    """Returns a layer's copy, not built.

    Operations that are no layers, functions (`Lambda`) and layers with a vocabulary are
    shared: their configs do not hold all that they are.
    """
    if (
        not isinstance(layer, keras.layers.Layer)
        or isinstance(layer, keras.layers.Lambda)
        or hasattr(layer, "get_vocabulary")
    ):
        return layer
    config = get_config(layer)
    if isinstance(layer, keras.layers.JaxLayer):  # It would look for functions by name.
        return type(layer)(**config)
    with trusted():
        return type(layer).from_config(config)


def copy_weights(layer: Any, copy: Any) -> None:
    """Gives a layer's copy its weights, once it is built.

    Raises:
        ValueError: A layer of the user's own holds what its `get_config()` leaves out.
    """
    if copy is layer or not isinstance(layer, keras.layers.Layer):
        return
    state, copied = plain_state(layer), plain_state(copy)
    for name, value in state.items():
        if not same_value(value, copied.get(name)):
            raise ValueError(
                f"A copy of the layer {layer.name!r}, made from its `get_config()`, "
                f"must be like it. Received: a {type(layer).__name__} whose attribute "
                f"`{name}` differs in the copy"
            )
    if not layer.weights:
        return
    copy.set_weights(layer.get_weights())
    copy_flags(layer.weights, copy.weights)
    if hasattr(copy, "finalize_state"):  # Of what adapts: more is made of the weights.
        copy.finalize_state()


def pair_leaf_layers(made: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Returns the pairs of `leaf_layers()` of pairs of layers; models are left out.

    An attention that is kept as it was, with copies or as a block, is one layer.
    """
    pairs: list[tuple[Any, Any]] = []
    for layer, copy in made:
        if isinstance(layer, (TaskCopies, Block)):
            pairs.append((layer, copy))
        elif not is_graph(layer):
            pairs += zip(leaf_layers([layer]), leaf_layers([copy]), strict=True)
    return pairs


def inputs_of_layers(
    graph: Graph,
) -> tuple[dict[str, keras.KerasTensor], dict[int, list[keras.KerasTensor]]]:
    """Returns what each layer is called with, those of models inside among them.

    Args:
        graph: A `Graph`.

    Returns:
        `(inputs, called)`: a dictionary of new symbolic inputs, and a dictionary that
        holds, by the `id` of each leaf layer, the list of symbolic tensors that it is
        called with.
    """
    called: dict[int, Any] = {}
    inputs = graph.new_inputs()

    def record(layer, *args, **kwargs):
        if is_graph(layer):
            inner = Graph(layer, takes_task=True)
            names, within = inputs_of_layers(inner)
            given = inner.name_inputs(args[0])
            if "task" in given:
                check_own_task(given["task"], inputs["task"], layer)
            for each, tensors in within.items():
                probed = keras.Model(names, tensors)(given)
                called.setdefault(each, []).extend(probed)
            return layer(*args, **kwargs)
        if isinstance(layer, TaskLayer) and not layer.in_block:
            check_own_task(kwargs["task"], inputs["task"], layer)
        if leaf_layers([layer]) != [layer]:
            tensors = _inputs_of_leaves(layer, *args, **kwargs)
            for leaf, tensor in zip(leaf_layers([layer]), tensors, strict=True):
                called.setdefault(id(leaf), []).append(tensor)
        elif isinstance(layer, keras.layers.Layer):
            called.setdefault(id(layer), []).extend(args[:1])
        return layer(*args, **kwargs)

    graph.rebuild(inputs, replace=lambda layer: layer, call=record)
    return inputs, called


def check_own_task(task: Any, own: Any, layer: keras.layers.Layer) -> None:
    """Raises a `ValueError` if a layer is called with another task than its model."""
    if task is not own:
        raise ValueError(
            "A layer that is called with a task other than the model's own cannot be "
            f"had for one task. Received: {layer.name!r}, called with task={task}"
        )


def _inputs_of_leaves(layer, *args, **kwargs):
    """Calls a layer, and returns what its leaf layers are called with."""
    given = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    tensors = {k: v for k, v in given.items() if isinstance(v, keras.KerasTensor)}
    options = {k: v for k, v in given.items() if k not in tensors}
    return _Listener(layer, options)(tensors)


class _Listener(keras.layers.Layer):
    """Returns what the leaf layers of a layer are called with.

    The inputs of an attention's output projection are not visible from outside. So the
    leaf layers are listened to while the attention is called.
    """

    def __init__(self, layer, options):
        super().__init__(dtype=layer.dtype_policy)
        self.layer, self.options = layer, options

    def call(self, tensors):
        heard = {}

        def hear(leaf, call, args, kwargs):
            heard[id(leaf)] = args[0]
            return call(*args, **kwargs)

        every = leaf_layers([self.layer])
        with calls_replaced(every, hear):
            self.layer(**tensors, **self.options)
        return [heard[id(leaf)] for leaf in every]

    def compute_mask(self, tensors, mask):
        return None  # The layer itself uses the masks of the inputs.
