"""Every private name that we use of another library is there; else its name is told."""

import ast
import functools
import inspect
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import BACKEND
from keras.src.backend.common import global_state
from keras.src.backend.common import masking
from keras.src.backend.common import symbolic_scope
from keras.src.saving import serialization_lib

from keras_psp._core import private


@functools.cache
def fitted_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.AdamW(weight_decay=0.1, use_ema=True), "mse")
    model.optimizer.exclude_from_weight_decay(model.trainable_variables[:1])
    model.fit(np.ones((2, 2)), np.ones((2, 2)), verbose=0)
    return model


# Whose names they are, by what makes one of these.
def adafactor():
    optimizer = keras.optimizers.Adafactor()
    optimizer.build([keras.Variable(np.ones((2, 3)))])
    return optimizer


def schedule_free():
    optimizer = keras.optimizers.ScheduleFreeAdamW()
    optimizer.build([keras.Variable(np.ones((2, 3)))])
    return optimizer


def several():
    optimizer = keras.optimizers.MultiOptimizer(lambda each: keras.optimizers.SGD())
    optimizer.build([keras.Variable(np.ones((2, 3)))])
    return optimizer


NAMES = {
    fitted_model: {"_compile_loss"},
    lambda: fitted_model().layers[0]: {
        "_flatten_layers",
        "_inbound_nodes",
        "_non_trainable_variables",
        "_open_name_scope",
        "_outbound_nodes",
        "_parent_path",
        "_seed_generators",
        "_tracker",
        "_untrack_variable",
    },
    lambda: fitted_model().layers[0]._tracker: {"lock", "stored_ids", "unlock"},
    lambda: fitted_model()._compile_loss: {"_user_loss_weights"},
    lambda: fitted_model().weights[0]: {"_layout", "_value"},
    lambda: fitted_model().optimizer: {
        "_exclude_from_weight_decay",
        "_exclude_from_weight_decay_cache",
        "_get_variable_index",
        "_iterations",
        "_learning_rate",
        "_model_variables_moving_average",
        "_tracker",
        "_trainable_variables",
        "_trainable_variables_indices",
        "_untrack_variable",
        "_var_key",
        "_variables",
        "update_step",
    },
    several: {"_var_to_optimizer_idx"},
    schedule_free: {"_momentums"},
    lambda: keras.Model: {"_unpickle_model"},
    lambda: masking: {"get_keras_mask", "set_keras_mask"},
    lambda: global_state: {"get_global_attribute"},
    lambda: serialization_lib: {"SafeModeScope"},
    lambda: keras.layers.Dense(2)(keras.Input((2,))): {"_keras_history"},
    lambda: symbolic_scope: {"in_symbolic_scope"},
    lambda: keras.losses.SparseCategoricalCrossentropy(): {"_fn_kwargs"},
    lambda: keras.layers.Conv1D(2, 2): {"_compute_causal_padding"},
    adafactor: {"_c"},
}
if BACKEND == "jax":
    import jax

    NAMES[lambda: jax] = {"make_user_context"}
    NAMES[lambda: jax.numpy.ones(())] = {"is_deleted"}
    NAMES[fitted_model] |= {"jax_state_sync"}
if BACKEND == "torch":
    import torch

    NAMES[lambda: torch.ones(())] = {"_version"}
    NAMES[lambda: torch] = {"_C"}
    NAMES[lambda: torch._C] = {"_current_graph_task_id", "_functorch"}
    NAMES[lambda: torch._C._functorch] = {"maybe_current_level"}
    NAMES[
        lambda: fitted_model().layers[0].torch_params and fitted_model().layers[0]
    ] = {
        "_modules",
        "_torch_params",
    }
    NAMES[lambda: keras.optimizers.SGD()] = {"_parallel_update_step"}
if BACKEND == "tensorflow":
    import tensorflow

    graph = tensorflow.function(lambda x: x).get_concrete_function(1.0).graph
    NAMES[lambda: graph] = {"capture_call_time_value", "outer_graph"}
    NAMES[fitted_model] |= {"_default_save_signature", "_distribute_strategy"}
# Attributes that are not the class' but are set on what it makes or marks.
ELSEWHERE = {
    "_C",
    "_current_graph_task_id",
    "_default_save_signature",
    "_distribute_strategy",
    "_functorch",
    "_modules",
    "_parallel_update_step",
    "_torch_params",
    "_version",
}


@pytest.mark.parametrize(
    "make, name", [(make, name) for make in NAMES for name in sorted(NAMES[make])]
)
def test_it_is_there(make, name):
    assert hasattr(make(), name), f"{name} has vanished"


def test_the_list_is_whole():
    tree = ast.parse(Path(inspect.getfile(private)).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.isidentifier()
    }
    private_names = {n for n in used if n.startswith("_") and not n.startswith("__")}
    assert private_names <= set.union(ELSEWHERE, *NAMES.values())


def test_a_call_is_seen():
    seen = []

    class Layer(keras.layers.Layer):
        def call(self, x):
            seen.append(private.entry_layer())
            return x

    layer = Layer()
    layer(keras.ops.ones((1, 2)))
    assert seen[-1] is layer and private.entry_layer() is None


def test_masks_are_found():
    y = keras.layers.Masking()(keras.ops.ones((1, 2, 3)))
    assert private.mask_of(y) is not None
