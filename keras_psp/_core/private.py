"""Every private name of Keras, TensorFlow, JAX and torch that this package uses.

Each function says what it needs the name for. All of them were tried on Keras 3.15.1,
TensorFlow 2.21.0, JAX 0.10.2 and torch 2.13.0. tests/test_private.py fails with the
name when one vanishes.
"""

import contextlib
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Any

import keras
from keras.src.backend.common import global_state
from keras.src.backend.common import masking
from keras.src.backend.common.variables import AutocastScope
from keras.src.saving import serialization_lib


def replace_weight(layer: keras.layers.Layer, old: Any, add: Callable) -> None:
    """Puts the weight that `add()` makes in the place of the `old` one.

    Keras locks the variables of a built layer. Its own layers unlock them in this way
    when `quantize()` gives a weight another shape.
    """
    layer._untrack_variable(old)
    with adding_weights(layer):
        add()


@contextlib.contextmanager
def adding_weights(layer: keras.layers.Layer) -> Iterator[None]:
    """Lets weights be added to a built layer, and taken from it.

    Keras locks the variables of a built layer.
    """
    layer._tracker.unlock()
    try:
        with layer._open_name_scope():
            yield
    finally:
        layer._tracker.lock()


def flatten_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns a layer and all layers inside it, however deep."""
    return layer._flatten_layers()


def untrack_weights(layer: keras.layers.Layer, weights: Iterable[Any]) -> None:
    """Lets weights be no part any more of a layer and of the layers inside it."""
    for each in flatten_layers(layer):
        for weight in weights:
            if any(weight is own for own in own_weights(each)):
                each._untrack_variable(weight)


def seed_generators(layer: keras.layers.Layer) -> list:
    """Returns the generators of random numbers in a layer and the layers inside it."""
    found = layer._flatten_layers()
    return [each for one in found for each in one._seed_generators]


def extended_scope(values: Iterable[tuple[Any, Any]]) -> keras.StatelessScope:
    """Returns a scope in which some variables have other values.

    Of two of Keras' scopes the inner one counts alone. This one also holds what the
    outer one does.

    Args:
        values: Pairs of a variable and of its value.
    """
    scope = keras.StatelessScope(
        list(values), collect_losses=True, initialize_variables=False
    )
    outer = global_state.get_global_attribute("stateless_scope")
    if outer is not None:
        scope.state_mapping = {**outer.state_mapping, **scope.state_mapping}
    return scope


@contextlib.contextmanager
def calls_replaced(layers: Iterable[Any], around: Callable) -> Iterator[None]:
    """Lets a function run in place of the `call()` of layers.

    Keras looks it up at the layer, not at the class.

    Args:
        layers: Layers.
        around: Function of a layer, of its `call()`, and of the tuple and the
            dictionary of arguments. It returns the outputs.
    """
    layers = list(layers)

    def replace(layer: Any) -> None:
        def call(*args: Any, **kwargs: Any) -> Any:
            return around(
                layer, functools.partial(type(layer).call, layer), args, kwargs
            )

        vars(layer)["call"] = call  # No attribute for Keras to track.

    try:
        for layer in layers:
            replace(layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("call", None)


@contextlib.contextmanager
def recorded_reads(note: Callable[[Any], None]) -> Iterator[None]:
    """Calls `note(variable)` for each variable whose value is asked for.

    A stateless scope is asked for the value of every variable that is read in it.
    """

    class Scope(keras.StatelessScope):
        def get_current_value(self, variable: Any) -> Any:
            note(variable)
            return super().get_current_value(variable)

    outer = global_state.get_global_attribute("stateless_scope")
    scope = Scope(initialize_variables=False)
    if outer is not None:
        scope.state_mapping = outer.state_mapping
    with scope:
        yield


def children(layer: keras.layers.Layer) -> list:
    """Returns the layers directly inside a layer or a model, without inputs.

    Keras offers `layers` for models alone. Operations that are no layers have none.
    """
    if not isinstance(layer, keras.layers.Layer):
        return []
    found = layer._flatten_layers(include_self=False, recursive=False)
    if isinstance(layer, keras.Model):
        # What stands in attributes of a functional model, as in KerasHub's, Keras finds
        # before the others on some backends, and not at all on torch.
        inside = {id(each) for each in found}
        first = [each for each in layer.layers if id(each) in inside]
        found = list({id(each): each for each in (*first, *found)}.values())
    return [each for each in found if not isinstance(each, keras.layers.InputLayer)]


def become(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Turns a layer into another one, wherever the layer is referred to.

    A layer may stand in attributes, lists, graphs and closures of its owner. No public
    way leads to all of them. So the old object takes the class and the attributes of
    the new one, which nobody else may hold.

    Args:
        old: Built layer.
        new: Built layer that has not been called.
    """
    if old is new:
        return
    state = vars(new)
    state |= {name: vars(old)[name] for name in ("_inbound_nodes", "_outbound_nodes")}
    object.__setattr__(old, "__class__", type(new))
    # One dictionary for both: what Keras made with the new layer, such as the method
    # around `build()`, still holds that one.
    object.__setattr__(old, "__dict__", state)


def take_class(layer: keras.layers.Layer, kind: Any) -> None:
    """Gives a layer another class, which is its own with more to it.

    Keras keeps with each layer what it has put around `quantize()` of its first class.
    """
    first = type(layer)
    object.__setattr__(layer, "__class__", kind)
    if kind.quantize is not first.quantize:
        del vars(layer)["quantize"]


def pickled(layer: keras.layers.Layer) -> tuple:
    """Returns what `pickle` keeps of a layer of a class that no module has.

    Keras' own keeps a file, and a method of the layer's class that reads any file.
    """
    _, file = keras.Model.__reduce__(layer)
    return keras.Model._unpickle_model, file


def stand_where(layer: keras.layers.Layer, old: keras.layers.Layer) -> None:
    """Lets the weights of a layer, not built yet, be named as those of another one."""
    layer._parent_path = old._parent_path


def forget_parameters(layer: keras.layers.Layer) -> None:
    """Lets a layer list its parameters for torch anew.

    Keras lists them when a layer is built, those of the layers inside it too.
    """
    if "_torch_params" in getattr(layer, "_modules", {}):
        del layer._torch_params


@contextlib.contextmanager
def names_kept() -> Iterator[None]:
    """Lets what is made after this scope have the names that it has inside.

    Keras counts the layers that it names; there is no public way to count back.
    """
    counts = global_state.get_global_attribute("object_name_uids")
    before = dict(counts or {})
    try:
        yield
    finally:
        counts = global_state.get_global_attribute("object_name_uids")
        if counts is not None:
            counts.clear()
            counts.update(before)


def layout_of(variable: Any) -> Any:
    """Returns a variable's `keras.distribution.TensorLayout`, or `None`.

    Keras keeps it where it asks the distribution for it, when the variable is made.
    """
    return getattr(variable, "_layout", None)


def own_strategy(model: keras.Model) -> Any:
    """Returns TensorFlow's strategy that a model was made under, or `None`.

    Keras' `distribute_strategy` says the current one in place of `None`.
    """
    return getattr(model, "_distribute_strategy", None)


def own_weights(layer: keras.layers.Layer) -> list:
    """Returns the weights of a layer itself, without those of layers inside it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def learned_weights(layer: keras.layers.Layer) -> list:
    """Returns those weights of a layer itself that were made to be trained.

    They may be frozen now. The others are constants or statistics.
    """
    return list(layer._trainable_variables)


@contextlib.contextmanager
def without_signatures() -> Iterator[None]:
    """Keeps TensorFlow from asking each model inside a model for a signature.

    Keras asks for it, and so traces each of them alone, when it looks for the lookup
    tables of what it exports (3.15.1). Inside a converted model it would have no task.
    """
    from keras.src.backend.tensorflow.layer import TFLayer

    kept = vars(TFLayer)["_default_save_signature"]
    TFLayer._default_save_signature = None
    try:
        yield
    finally:
        TFLayer._default_save_signature = kept


class LeafLayer:
    """Mixin of the layers that Keras is to take for one, though they hold others.

    Before Keras 3.16 `Model.quantize()` passes over layers that hold others, without a
    word. It asks by calling `_flatten_layers()` without arguments; nothing else asks a
    layer in that way.
    """

    def _flatten_layers(self, include_self=True, recursive=True):
        if include_self and recursive:
            return [self]
        return super()._flatten_layers(include_self, recursive)


def is_symbolic() -> bool:
    """Whether Keras computes shapes alone, and nothing is to be trained or answered.

    A subclassed model is built in this way when its file is loaded: Keras calls it on
    floats of the saved shapes, for it does not save dtypes.
    """
    from keras.src.backend.common.symbolic_scope import in_symbolic_scope

    return in_symbolic_scope()


def give_weights_back(model: keras.Model) -> None:
    """Gives a model its weights back in the midst of Keras' `fit()` on JAX.

    The next step takes them again, whatever they are then.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


@contextlib.contextmanager
def kept_weights(model: keras.Model) -> Iterator[None]:
    """Gives a model its weights back if what is done with it fails on JAX.

    Keras takes the weights out of a model for as long as its compiled steps run, and
    puts them back at the end. It does not if the first step cannot be traced.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    variables = [*model.variables, *model.metrics_variables]
    if hasattr(getattr(model, "optimizer", None), "variables"):
        variables += model.optimizer.variables
    before = [(variable, variable._value) for variable in variables]
    try:
        yield
    except BaseException:
        model.jax_state_sync()  # What the last step that succeeded has left.
        for variable, value in before:
            if variable._value is None and value is not None and not value.is_deleted():
                variable._value = value
        raise


def autocast() -> Callable[[], Any]:
    """Returns what opens again the scope in which Keras casts variables now.

    A layer of mixed precision reads its weights in that. What is computed again behind
    it, for gradients, must read them so too.
    """
    scope = global_state.get_global_attribute("autocast_scope")
    return functools.partial(AutocastScope, getattr(scope, "dtype", None))


def trusted() -> Any:
    """Returns a scope in which Keras makes anything of a config.

    For what is in memory already: no file is read in it. Keras else refuses the modules
    of torch and the functions that a config may hold.
    """
    return serialization_lib.SafeModeScope(safe_mode=False)


def source_of(tensor: Any) -> tuple[Any, list, int]:
    """Returns what made a symbolic tensor.

    Returns:
        The layer or operation, the symbolic tensors that it was called with, and the
        tensor's place among its outputs.
    """
    operation, node, place = tensor._keras_history
    return operation, operation._inbound_nodes[node].input_tensors, place


def input_like(tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Returns a new `keras.Input` like one of a model's, which may be left out or not.

    That is known to what made the tensor alone.
    """
    optional = getattr(source_of(tensor)[0], "optional", False)
    return keras.Input(
        batch_shape=tensor.shape, dtype=tensor.dtype, name=name, optional=optional
    )


def entry_layer() -> keras.layers.Layer | None:
    """Returns the outermost layer whose call is under way, or `None`.

    Not by `Layer._get_call_context()`: where there is no context, as in JAX' training
    steps, it opens one that nobody closes. `training=False` then goes into every model
    that is built later.
    """
    context = global_state.get_global_attribute("current_call_ctx")
    return getattr(context, "entry_layer", None)


def count_writes(tensor: Any) -> int:
    """Returns how often a torch tensor has been written to."""
    return tensor._version


def map_level() -> int:
    """Returns how many of torch's `vmap()` are under way, one in the other."""
    return sys.modules["torch"]._C._functorch.maybe_current_level() or 0


def gradients_under_way() -> int | None:
    """Returns the number of the gradients that torch computes now, or `None`."""
    number = sys.modules["torch"]._C._current_graph_task_id()
    return None if number < 0 else number


def function_graph(graph: Any) -> Any:
    """Returns the graph of the `tf.function` that a graph of TensorFlow's is part of.

    Branches and loops have graphs of their own, of subclasses.
    """
    while type(graph).__name__ != "FuncGraph" and hasattr(graph, "outer_graph"):
        graph = graph.outer_graph
    return graph


def value_at_call(graph: Any, closure: Callable, spec: Any, key: Any) -> Any:
    """Returns a tensor of `graph` that has the value of `closure()` at each call.

    TensorFlow documents `capture_call_time_value()`, but exports it nowhere.
    """
    with graph.as_default():
        return graph.capture_call_time_value(closure, spec, key=key)


def trace_context() -> Any:
    """Returns JAX' context manager that a compiled function is traced anew for.

    `jax.make_user_context` came with JAX 0.8.
    """
    return sys.modules["jax"].make_user_context(None)


# Lists of an optimizer that have no slots in them.
_NO_SLOTS = {"_variables", "_trainable_variables"}


def find_slots(optimizer: Any) -> dict[str, list]:
    """Returns the optimizer's lists that hold one variable for each trained one.

    Keras does not say which of an optimizer's variables belongs to which weight. Its
    optimizers keep them as attributes: lists in the order of the weights.

    Args:
        optimizer: A built `keras.optimizers.Optimizer`.

    Returns:
        Dictionary of attribute names and lists; an item is a variable or `None`.
    """
    count = len(optimizer._trainable_variables)
    return {
        name: list(value)
        for name, value in vars(optimizer).items()
        if name not in _NO_SLOTS
        and isinstance(value, (list, tuple))
        and len(value) == count > 0
        and all(each is None or isinstance(each, keras.Variable) for each in value)
    }


def sums_over_rows(optimizer: Any, name: str, variable: Any) -> bool:
    """Whether a slot holds sums over all rows of a weight, so that none is a task's.

    Of a matrix, Adafactor keeps one for each column: that may be as many as the rows.
    """
    is_adafactor = isinstance(optimizer, keras.optimizers.Adafactor)
    return is_adafactor and name == "_c" and len(variable.shape) == 2


def find_scalars(optimizer: Any) -> dict[str, Any]:
    """Returns the variables that an optimizer keeps as attributes, by their names."""
    return {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, keras.Variable)
    }


def moving_averages(optimizer: Any) -> Any:
    """Returns the averages of the weights that `use_ema=True` keeps, or `None`."""
    return getattr(optimizer, "_model_variables_moving_average", None)


def kept_values(optimizer: Any) -> list[list]:
    """Returns the optimizer's lists of what it keeps of the weights' own values.

    These are their averages, and what `ScheduleFreeAdamW` makes the weights of.
    """
    found = [moving_averages(optimizer)]
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        found.append(optimizer._momentums)
    return [each for each in found if each is not None]


def show_averages(optimizer: Any, inner: Any) -> None:
    """Lets Keras' `SwapEMAWeights` find the averages of an optimizer inside another.

    It looks for that attribute at the model's optimizer. Keras would take what is set
    in the usual way for variables of its own.
    """
    averages = moving_averages(inner)
    if averages is not None:
        vars(optimizer)["_model_variables_moving_average"] = averages


def trained_variables(optimizer: Any) -> list:
    """Returns the variables that an optimizer was built for; `[]` before."""
    return list(optimizer._trainable_variables)


@contextlib.contextmanager
def rebuilding(optimizers: list, replaced: list[tuple[Any, Any]]) -> Iterator[None]:
    """Puts optimizers back to where `build()` can be called again.

    Keras builds an optimizer once. `iterations` and `learning_rate` stay; all other
    variables go. If the body fails, the optimizers are what they were.

    Args:
        optimizers: Built optimizers; each is the one around the next.
        replaced: Pairs of a trained variable and of the one that replaces it.
    """
    kept = [_copy_state(optimizer) for optimizer in optimizers]
    try:
        for optimizer in optimizers:
            stay = {id(optimizer._iterations), id(optimizer._learning_rate)}
            for variable in optimizer.variables:
                if id(variable) not in stay:
                    optimizer._untrack_variable(variable)
            optimizer._trainable_variables_indices = {}
            excluded = getattr(optimizer, "_exclude_from_weight_decay", None)
            if excluded:
                optimizer._exclude_from_weight_decay = excluded | {
                    optimizer._var_key(new)
                    for old, new in replaced
                    if optimizer._var_key(old) in excluded
                }
            optimizer._exclude_from_weight_decay_cache = {}
            optimizer.built = False
        yield
    except BaseException:
        for optimizer, (attributes, variables, ids) in zip(
            optimizers, kept, strict=True
        ):
            vars(optimizer).clear()
            vars(optimizer).update(attributes)
            optimizer._variables[:] = variables
            optimizer._tracker.stored_ids["variables"].clear()
            optimizer._tracker.stored_ids["variables"].update(ids)
        raise


def _copy_state(optimizer: Any) -> tuple[dict, list, set]:
    ids = set(optimizer._tracker.stored_ids["variables"])
    return dict(vars(optimizer)), list(optimizer._variables), ids


def find_shares(optimizer: keras.optimizers.MultiOptimizer) -> list[tuple[Any, list]]:
    """Returns the optimizers in a built one, each with its places among the weights."""
    chosen = [
        optimizer._var_to_optimizer_idx[optimizer._var_key(each)]
        for each in optimizer._trainable_variables
    ]
    return [
        (each, [place for place, own in enumerate(chosen) if own == i])
        for i, each in enumerate(optimizer.optimizers)
        if i in chosen
    ]


def set_shares(
    optimizer: keras.optimizers.MultiOptimizer, variables: list, chosen: list
) -> None:
    """Tells an optimizer which of those in it has which weights.

    Args:
        optimizer: The optimizer, built for other weights.
        variables: The weights.
        chosen: For each of them the optimizer that was built for it.
    """
    keys = [optimizer._var_key(variable) for variable in variables]
    places = {id(each): i for i, each in enumerate(optimizer.optimizers)}
    which = [places[id(each)] for each in chosen]
    # Keras would take what is set in the usual way for variables of its own.
    vars(optimizer).update(
        _trainable_variables=list(variables),
        _trainable_variables_indices={key: i for i, key in enumerate(keys)},
        _var_to_optimizer_idx=dict(zip(keys, which, strict=True)),
    )


@contextlib.contextmanager
def own_iterations(optimizer: Any, steps_of: Callable[[int], Any]) -> Iterator[None]:
    """Lets an optimizer count the steps of a weight's rows apart.

    An optimizer reads `iterations` where it updates a weight. There is one number for
    all weights, and no public way to another.

    Args:
        optimizer: A `keras.optimizers.Optimizer` whose `update_step()` takes a tensor
            of `iterations` that broadcasts to the weight.
        steps_of: Function of a weight's index. It returns such a tensor, or `None` for
            weights that all tasks share.
    """
    step = optimizer.update_step

    def update_step(gradient, variable, learning_rate):
        own = steps_of(optimizer._get_variable_index(variable))
        if own is None:
            return step(gradient, variable, learning_rate)
        count = optimizer._iterations
        vars(optimizer)["_iterations"] = own
        try:
            return step(gradient, variable, learning_rate)
        finally:
            vars(optimizer)["_iterations"] = count

    vars(optimizer)["update_step"] = update_step
    # torch updates many weights at once.
    at_once = getattr(optimizer, "_parallel_update_step", None)
    if at_once is not None:

        def parallel_update_step(gradients, variables, learning_rate):
            shared = []
            for pair in zip(gradients, variables, strict=True):
                if steps_of(optimizer._get_variable_index(pair[1])) is None:
                    shared.append(pair)
                else:
                    update_step(*pair, learning_rate)
            if shared:
                at_once(*map(list, zip(*shared, strict=True)), learning_rate)

        vars(optimizer)["_parallel_update_step"] = parallel_update_step
    try:
        yield
    finally:
        del vars(optimizer)["update_step"]
        vars(optimizer).pop("_parallel_update_step", None)


def compiled_loss(model: keras.Model) -> Any:
    """Returns what Keras computes a model's loss by; each `compile()` makes another."""
    return model._compile_loss


def loss_weights(model: keras.Model) -> Any:
    """Returns the `loss_weights` that a model was compiled with.

    Keras' `get_compile_config()` has them too, but fails on a loss of the user's own.
    """
    return getattr(compiled_loss(model), "_user_loss_weights", None)


def loss_arguments(loss: keras.losses.Loss) -> dict[str, Any]:
    """Returns what one of Keras' losses gives to its function.

    `get_config()` of `SparseCategoricalCrossentropy` leaves out the `axis`.
    """
    return loss._fn_kwargs


class _Recorder:
    """Stands for what reads a checkpoint; notes what would be read into what."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, str, Any]] = []

    def port_weight(
        self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None
    ) -> None:
        self.found.append((keras_variable, hf_weight_key, hook_fn))

    def get_tensor(self, hf_weight_key: str) -> None:
        raise KeyError(hf_weight_key)


def hub_weights(backbone: Any) -> list[tuple[Any, str, Any]]:
    """Returns how KerasHub reads a backbone from a checkpoint of transformers'.

    Only its own converters know the names there. Tried on keras-hub 0.32.

    Returns:
        List of a variable, the name of the weight, and a function of the weight and of
        a shape that returns the variable's value, or `None`. Empty where KerasHub has
        no converter.
    """
    package = importlib.import_module("keras_hub.src.utils.transformers")
    for each in pkgutil.iter_modules(package.__path__):
        if not each.name.startswith("convert_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{each.name}")
        kind = getattr(module, "backbone_cls", None)
        # Llama 2 is read as its subclass, Llama 3.
        if kind and (isinstance(backbone, kind) or issubclass(kind, type(backbone))):
            recorder, width = _Recorder(), getattr(backbone, "hidden_dim", None)
            config = {"n_embd": width, "hidden_size": width}
            module.convert_weights(backbone, recorder, config)
            return recorder.found
    return []


def set_mask(tensor: Any, mask: Any) -> None:
    """Marks a tensor with the mask that Keras' layers read, as a layer's `call()` may.

    `ReversibleEmbedding` does that itself: `compute_mask()` is not told `reverse`.
    """
    masking.set_keras_mask(tensor, mask)


def mask_of(tensor: Any) -> Any:
    """Returns the mask that Keras has given to a layer's output, or `None`.

    It is an attribute, but JAX's traced tensors can hold none.
    """
    return masking.get_keras_mask(tensor)
