"""Layers and models of another's code, with layers in them that take a task.

A Keras layer that is not known here, such as a transformer's block, calls the layers
inside it as it always did. Some of these have become superposed where they stand, and
take their task from the scope. The block itself becomes a class of its own, so that its
file tells how to make it again: the block as it was, and the layers put into it.
"""

import functools
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import Self

import keras

from keras_psp._core import scope
from keras_psp._core.private import become
from keras_psp._core.private import forget_parameters
from keras_psp._core.private import pickled
from keras_psp._core.private import stand_where
from keras_psp._core.private import take_class
from keras_psp._core.private import trusted
from keras_psp._core.task import in_turn_of
from keras_psp._core.task_layer import TaskLayer
from keras_psp._core.task_layer import find_task_layers
from keras_psp.layers._original import Hidden
from keras_psp.layers._original import copy_assets
from keras_psp.layers._original import layers_within
from keras_psp.layers._original import own_objects
from keras_psp.layers._original import read_original
from keras_psp.layers._task_copies import TaskCopies
from keras_psp.layers._task_copies import make_copies
from keras_psp.layers.task_batch_normalization import TaskBatchNormalization

if TYPE_CHECKING:
    from typing import Any as KerasLayer  # What stands behind the mixin.
else:
    KerasLayer = object

OPTIONS = ("each_task", "frozen", "widths", "quantized")


def put_into(
    layer: keras.layers.Layer,
    new: Sequence[tuple[int, keras.layers.Layer, Any]],
    as_it_was: dict[str, Any],
    mixin: Any,
    options: Mapping[str, Any],
) -> None:
    """Puts layers that take a task into a block, in the place of those there.

    The block takes a class of its own, which its file can be read by.

    Args:
        layer: Built layer or model.
        new: List of a place among `layers_within()`, the layer there, and a built layer
            that it becomes, which may be itself.
        as_it_was: What `as_it_is()` returned.
        mixin: `Block`, or a subclass of it.
        options: Dictionary. `"each_task"`: whether a batch of several tasks is to be
            computed once for each. It must be where the block calls these layers on
            anything but one entry for each example. `"frozen"`: whether what tasks
            share is not trained. `"widths"`: the places of layers of which tasks have
            other numbers of outputs, by the arguments of the block that set these.
        `"quantized"`: modes of other layers that are to be quantized, by their places.
    """
    within = layers_within(layer)
    for _, old, each in new:
        each.in_block = True
        become(old, each)
    for each in (layer, *within):
        forget_parameters(each)
    put_in = {place: old for place, old, _ in new}
    still = {id(each) for each in layers_within(layer)} - set(map(id, put_in.values()))
    others = {i: each for i, each in enumerate(within) if id(each) in still}
    # No attributes that Keras looks into: the layers are saved where they stand.
    vars(layer)["_as_it_was"] = as_it_was
    vars(layer)["_put_in"], vars(layer)["_others"] = Hidden(put_in), Hidden(others)
    vars(layer)["_options"] = dict(options)
    kind: Any = type(layer)
    if not isinstance(layer, Block):
        take_class(layer, _class_of(mixin, kind))
    for place, (mode, config) in options.get("quantized", {}).items():
        config = keras.saving.deserialize_keras_object(config)
        quantize(others[int(place)], mode, config)
    if options.get("frozen"):
        freeze_shared(layer)


def quantize(layer: keras.layers.Layer, mode: str, config: Any) -> None:
    """Quantizes a layer by Keras' own means, unless it was made of a quantized one."""
    if layer.quantization_mode is None:
        layer.quantize(mode, type_check=False, config=config)


def freeze_shared(layer: keras.layers.Layer) -> None:
    """Lets nothing of a layer be trained but what takes a task.

    It stays so in files.
    """
    if isinstance(layer, Block):
        own = {id(w) for each in find_task_layers(layer) for w in each.weights}
        for weight in layer.trainable_weights:
            if id(weight) not in own:
                weight.trainable = False
        vars(layer)["_options"]["frozen"] = True
    elif isinstance(layer, keras.layers.Layer) and not isinstance(layer, TaskLayer):
        layer.trainable = False


def build_like(
    new: keras.layers.Layer, old: keras.layers.Layer, place: keras.layers.Layer
) -> None:
    """Builds a layer for the shapes of another one.

    Args:
        new: Layer, not built.
        old: Layer, built.
        place: The layer in whose place the new one is to stand.
    """
    stand_where(new, place)
    new.build_from_config(old.get_build_config())


class Block(KerasLayer):
    """Mixin of the classes that blocks take when layers have been put into them."""

    _as_it_was: dict
    _put_in: Hidden
    _others: Hidden
    _options: dict[str, Any]
    _mixin: Any

    @property
    def original_class(self) -> type:
        """The class of the block as it was."""
        kinds = type(self).__mro__
        return kinds[kinds.index(Block) + 1]

    def original(self, task: int | None = None) -> keras.layers.Layer:
        """Returns a new block as it was, with initial weights.

        Args:
            task: Integer, the task of whose number of outputs it is; or `None` for all.
        """
        as_it_was = self._as_it_was
        if task is not None:
            widths = {
                name: self.put_in[place].units_of(task)
                for name, place in self._options.get("widths", {}).items()
            }
            as_it_was = {**as_it_was, "config": {**as_it_was["config"], **widths}}
        with trusted():
            layer = read_original(as_it_was, own_objects(self))
        copy_assets(self, layer)
        return layer

    @property
    def put_in(self) -> dict[int, Any]:
        """The layers that were put in, by their places in the block as it was."""
        return self._put_in.values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        waiting = self.__dict__.get("_waiting")
        if waiting is None:
            return super().__call__(*args, **kwargs)
        # A call builds the layers inside, those there before, and tells the shapes.
        outputs = super().__call__(*args, **kwargs)
        del self.__dict__["_waiting"]
        _put_read(self, waiting, self._as_it_was, self._mixin, self._options)
        tensors = keras.tree.flatten(outputs)
        if any(isinstance(each, keras.KerasTensor) for each in tensors):
            return outputs
        return super().__call__(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if not self._options.get("each_task") or "_waiting" in vars(self):
            return super().call(*args, **kwargs)
        given = keras.tree.flatten((args, kwargs))
        inputs = next((x for x in given if len(getattr(x, "shape", ())) > 0), None)
        some = next(iter(self.put_in.values()))
        task = some.as_task(None, inputs)
        if isinstance(task.index, int):  # Inside, there may be more entries than tasks.
            with scope.task(task.index):
                return super().call(*args, **kwargs)
        if task.is_one:
            return super().call(*args, **kwargs)
        within = self.put_in.values()
        gathers = any(isinstance(each, TaskBatchNormalization) for each in within)
        outputs: Any = None
        for k in task.present():
            of_task, there = (args, kwargs), None
            if gathers:  # Of the task's own examples alone.
                of_task, there = task.examples_of(k, of_task)
            with scope.task(k), in_turn_of(there):
                new = super().call(*of_task[0], **of_task[1])
            outputs = new if outputs is None else task.select(k, new, outputs)
        return keras.tree.map_structure(task.mask, outputs)

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """Returns the call that computes again for gradients, in the scope of now."""
        return super().rematerialized_call(scope.keeping(layer_call), *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        layers = {
            str(place): layer.num_tasks  # The block makes what is copied again.
            if isinstance(layer, TaskCopies)
            else keras.saving.serialize_keras_object(layer)
            for place, layer in self.put_in.items()
        }
        modes = {
            str(place): [
                layer.quantization_mode,
                keras.saving.serialize_keras_object(layer.quantization_config),
            ]
            for place, layer in self._others.values.items()
            if layer.quantization_mode is not None
        }
        options = {**self._options, "quantized": modes} if modes else self._options
        return {"original": self._as_it_was, "layers": layers, **options}

    def __reduce__(self) -> tuple:
        return pickled(self)

    def get_build_config(self) -> None:
        """Returns nothing: the block as it was tells its shapes."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        read = functools.partial(
            keras.saving.deserialize_keras_object, custom_objects=custom_objects
        )
        layer = read_original(config["original"], custom_objects)
        new = {
            int(place): each if isinstance(each, int) else read(each)
            for place, each in config["layers"].items()
        }
        within = layers_within(layer)
        options = {k: v for k, v in config.items() if k in OPTIONS}
        if all(place < len(within) and within[place].built for place in new):
            _put_read(layer, new, config["original"], cls._mixin, options)
        else:
            # A block without a `build()` of its own makes its layers' weights when it
            # is called.
            vars(layer)["_as_it_was"] = config["original"]
            vars(layer)["_waiting"] = new
            vars(layer)["_options"] = options
            kind: Any = type(layer)
            take_class(layer, _class_of(cls._mixin, kind))
        return layer


def _put_read(layer, new, as_it_was, mixin, options):
    """Puts layers that have been read from a config into a block."""
    within, put_in = layers_within(layer), []
    for place, each in new.items():
        if isinstance(each, int):
            make_copies(within[place], each)
            each = within[place]
        elif not each.built:
            build_like(each, within[place], within[place])
        put_in.append((place, within[place], each))
    put_into(layer, put_in, as_it_was, mixin, options)


@functools.cache
def _class_of(mixin: Any, kind: Any) -> type:
    name = f"Task{kind.__name__}"
    made = type(name, (mixin, kind), {"__module__": mixin.__module__, "_mixin": mixin})
    # A file names the mixin. That reads the block's own class from the config.
    register = keras.saving.register_keras_serializable("keras_psp", mixin.__name__)
    return register(made)


Block._mixin = Block
keras.saving.register_keras_serializable("keras_psp")(Block)
