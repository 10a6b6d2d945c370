"""Writes the golden files of a release; the tests of all later ones read them.

    KERAS_BACKEND=jax python tests/golden/write.py tests/golden/0.1.0

Run it once per release and per backend, from the release's own code. Never rewrite the
files of an old release. What is here stays as it is: `MODELS` build what old files hold
the weights of. A later release adds models of its own.

OUTPUT holds `public_names.json`, and a folder for each backend with

- `NAME.keras` or `NAME.weights.h5`, with inputs and answers in `NAME.npz`;
- `consolidation/`: models compiled with a consolidation, after two tasks;
- `benchmarks/`: runs that have ended, and in `half` one that has not;
- `cards/`: what exported models say of themselves.

Only the public API is used here.
"""

import functools
import importlib
import json
import os
import pkgutil
import sys
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_psp
from keras_psp import consolidation
from keras_psp import contexts
from keras_psp.contexts import Binary
from keras_psp.contexts import FastRotation
from keras_psp.contexts import Hadamard
from keras_psp.contexts import Householder
from keras_psp.layers import PSPComplexDense
from keras_psp.layers import PSPConv1D
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPConv3D
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPEinsumDense
from keras_psp.layers import PSPGroupQueryAttention
from keras_psp.layers import PSPMultiHeadAttention
from keras_psp.layers import TaskBatchNormalization
from keras_psp.layers import TaskDense
from keras_psp.layers import TaskDepthwiseConv1D
from keras_psp.layers import TaskDepthwiseConv2D
from keras_psp.layers import TaskLayerNormalization
from keras_psp.models import TaskModel

NUM_TASKS = 3
EXAMPLES = 6
# Families whose contexts can be trained.
LEARNABLE = ("binary", "hadamard", "complex", "powers", "fast_rotation", "householder")


def task_inputs(*shape):
    """Returns the two inputs of most models."""
    return keras.Input(shape, name="image"), keras.Input((), dtype="int32", name="task")


def of_contexts():
    """Every family, bare, with every storage and learned."""
    image, task = task_inputs(6)
    found = {name: contexts.get(name, NUM_TASKS, seed=7) for name in contexts.FAMILIES}
    for name in LEARNABLE:
        found[f"{name}_learnable"] = contexts.get(name, NUM_TASKS, 8, learnable=True)
    for storage in ("bits", "seed"):
        found[f"binary_{storage}"] = Binary(NUM_TASKS, seed=9, storage=storage)
        found[f"fast_rotation_{storage}"] = FastRotation(
            NUM_TASKS, seed=9, storage=storage
        )
    found["hadamard_bits"] = Hadamard(NUM_TASKS, seed=9, storage="bits")
    found["householder_2"] = Householder(NUM_TASKS, seed=9, reflections=2)
    outputs = {}
    for name, context in found.items():
        config = {**context.get_config(), "name": f"context_{name}"}
        outputs[name] = type(context).from_config(config)(image, task)
    return fill(TaskModel({"image": image, "task": task}, outputs))


def of_families():
    """A dense layer with each family's contexts, made from its name."""
    image, task = task_inputs(6)
    outputs = {
        name: PSPDense(2, NUM_TASKS, context=name, name=f"dense_{name}")(image, task)
        for name in contexts.FAMILIES
    }
    return fill(TaskModel({"image": image, "task": task}, outputs))


def of_products():
    """Dense layers of all kinds, with and without what tasks share."""
    image, task = task_inputs(4, 6)
    complex_context = contexts.get("complex", NUM_TASKS, seed=3)
    own = {"num_tasks": NUM_TASKS, "base": True, "bias_per_task": True}
    made = {
        "dense": PSPDense(3, context=complex_context, activation="tanh", name="dense"),
        "base": PSPDense(3, NUM_TASKS, base=True, use_bias=False, name="base_dense"),
        "bias": PSPDense(3, NUM_TASKS, bias_per_task=True, name="bias_dense"),
        "complex": PSPComplexDense(2, NUM_TASKS, name="complex_dense"),
        "complex_binary": PSPComplexDense(
            2, NUM_TASKS, "binary", activation="relu", name="complex_binary_dense"
        ),
        "task": TaskDense(3, NUM_TASKS, activation="relu", name="task_dense"),
        "split": PSPEinsumDense(
            "btd,dnh->btnh", (4, 2, 3), NUM_TASKS, bias_axes="nh", name="split_dense"
        ),
        "split_base": PSPEinsumDense(
            *("btd,dh->bth", (4, 3)), bias_axes="h", name="split_base_dense", **own
        ),
        "norm": TaskLayerNormalization(NUM_TASKS, name="layer_norm"),
        "norm_scale": TaskLayerNormalization(
            NUM_TASKS, center=False, name="layer_norm_scale"
        ),
        "batch_norm": TaskBatchNormalization(NUM_TASKS, name="batch_norm"),
        "batch_norm_affine": TaskBatchNormalization(
            NUM_TASKS, affine_per_task=True, name="batch_norm_affine"
        ),
    }
    outputs = {name: layer(image, task) for name, layer in made.items()}
    return fill(TaskModel({"image": image, "task": task}, outputs))


def of_attention():
    """Attention to itself and to others, with shared keys, a base and biases."""
    image, task = task_inputs(4, 6)
    relu = layers.ReLU(name="value")(image)
    outputs = {
        "multi_head": PSPMultiHeadAttention(2, 2, NUM_TASKS, name="multi_head")(
            image, relu, task=task, use_causal_mask=True
        ),
        "group_query": PSPGroupQueryAttention(
            2, 2, 1, NUM_TASKS, "permutation", base=True, bias_per_task=True, name="gqa"
        )(image, image, image, task=task),
    }
    return fill(TaskModel({"image": image, "task": task}, outputs))


def of_convolutions():
    """Convolutions of all ranks over kernels and channels, and depthwise ones."""
    image, task = task_inputs(4, 4, 4, 2)
    square = layers.Reshape((8, 8, 2), name="square")(image)
    line = layers.Reshape((16, 8), name="line")(image)
    over_channels = {"context_over": "channels"}
    both = {"base": True, "bias_per_task": True}
    made = {
        "conv1d": (line, PSPConv1D(2, 3, NUM_TASKS, padding="causal", name="conv1d")),
        "conv1d_channels": (
            line,
            PSPConv1D(
                *(2, 2, NUM_TASKS, "fast_rotation"),
                **{"strides": 2, "name": "conv1d_channels", **over_channels},
            ),
        ),
        "conv2d": (
            square,
            PSPConv2D(2, 3, NUM_TASKS, strides=2, padding="same", name="conv2d"),
        ),
        "conv2d_channels": (
            square,
            PSPConv2D(2, 3, NUM_TASKS, strides=2, name="conv2d_c", **over_channels),
        ),
        "conv2d_groups": (
            square,
            PSPConv2D(2, 3, NUM_TASKS, strides=2, groups=2, name="conv2d_groups"),
        ),
        "conv2d_base": (
            square,
            PSPConv2D(2, 3, NUM_TASKS, dilation_rate=2, name="conv2d_base", **both),
        ),
        "conv2d_channels_base": (
            square,
            PSPConv2D(
                *(2, 3, NUM_TASKS, "permutation"),
                **{"strides": 2, "name": "conv2d_c_base", **over_channels, **both},
            ),
        ),
        "conv3d": (image, PSPConv3D(2, 2, NUM_TASKS, activation="relu", name="conv3d")),
        "conv3d_channels": (
            image,
            PSPConv3D(2, 2, NUM_TASKS, name="conv3d_channels", **over_channels),
        ),
        "depthwise1d": (
            line,
            TaskDepthwiseConv1D(2, NUM_TASKS, strides=2, name="depthwise1d"),
        ),
        "depthwise2d": (
            square,
            TaskDepthwiseConv2D(
                3, NUM_TASKS, strides=2, depth_multiplier=2, name="depthwise2d"
            ),
        ),
    }
    outputs = {name: layer(x, task) for name, (x, layer) in made.items()}
    return fill(TaskModel({"image": image, "task": task}, outputs))


def mlp(**options):
    options = {"units": 5, "depth": 1, "seed": 4, **options}
    return fill(keras_psp.models.mlp((2, 3), 3, NUM_TASKS, **options))


def resnet18(size=8, **options):
    options = {"width": 0.03, "seed": 4, **options}
    model = keras_psp.models.resnet18((size, size, 1), 2, NUM_TASKS, **options)
    return fill(model)


def plain(seed):
    """A small Keras model, of layers that surgery knows."""
    image = keras.Input((5, 5, 1), name="image")
    x = layers.Conv2D(2, 3, name="conv")(image)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.DepthwiseConv2D(2, name="depthwise")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(4, activation="tanh", name="hidden")(x)
    x = layers.LayerNormalization(name="layer_norm")(x)
    return fill(keras.Model(image, layers.Dense(3, name="head")(x), name="plain"), seed)


def attentive():
    inputs = keras.Input((3, 4), name="image")
    x = layers.MultiHeadAttention(2, 2, name="attention")(inputs, inputs)
    x = layers.GroupQueryAttention(2, 2, 1, name="groups")(x, x)
    x = layers.EinsumDense("btd,dh->bth", (3, 2), bias_axes="h", name="product")(x)
    x = layers.Conv1D(2, 2, name="conv")(x)
    return fill(keras.Model(inputs, layers.Flatten(name="flatten")(x), name="plain"))


def superposed(with_base=False, with_data=False, **options):
    models = [plain(seed) for seed in range(NUM_TASKS)]
    if with_base:
        options["base"] = plain(NUM_TASKS)
    if with_data:
        rng = np.random.default_rng(5)
        options["data"] = [
            rng.normal(size=(20, 5, 5, 1)).astype("float32") for _ in models
        ]
    return keras_psp.superpose(models, **options)


def added():
    """Three tasks by superposing two models and adding one."""
    one = keras_psp.superpose([plain(0), plain(1)], base=plain(3))
    return keras_psp.surgery.add_models(one, [plain(2)])


def fill(model, seed=0):
    """Changes all weights but fixed contexts, so that none is as it was made."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.dtype != "float32":
            continue
        if not weight.trainable and "context" in weight.path:
            continue
        noise = 0.1 * rng.normal(size=weight.shape)
        if "variance" in weight.path:
            noise = np.abs(noise)
        weight.assign(keras.ops.convert_to_numpy(weight) + noise)
    return model


EVERY = ("jax", "tensorflow", "torch")
# By name: what builds it, what is kept of it, and the backends that write it. The
# large ones are shared out.
MODELS = {
    "contexts": (of_contexts, ".keras", EVERY),
    "families": (of_families, ".weights.h5", EVERY),
    "products": (of_products, ".keras", EVERY),
    "attention": (of_attention, ".keras", EVERY),
    "convolutions": (of_convolutions, ".keras", EVERY),
    "mlp": (mlp, ".keras", EVERY),
    "mlp_learnable": (
        functools.partial(mlp, learnable=True, context="complex"),
        ".weights.h5",
        EVERY,
    ),
    "mlp_multi": (functools.partial(mlp, head="multi"), ".keras", ("jax",)),
    "mlp_shared": (functools.partial(mlp, head="shared"), ".keras", ("torch",)),
    "mlp_complex": (
        functools.partial(mlp, complex_valued=True, context="complex"),
        ".keras",
        EVERY,
    ),
    "mlp_soft": (functools.partial(mlp, soft=True), ".keras", EVERY),
    "resnet18": (resnet18, ".keras", ("tensorflow",)),
    "resnet18_batch": (
        functools.partial(resnet18, norm="batch", context_over="channels"),
        ".keras",
        ("jax",),
    ),
    "resnet18_shared": (
        functools.partial(
            *(resnet18, 16),
            **{"norm": "shared", "stem": "imagenet", "head": "multi"},
            **{"learnable": True, "context_over": "channels"},
        ),
        ".keras",
        ("torch",),
    ),
    "resnet18_group": (
        functools.partial(resnet18, context=None, norm="group", head="shared"),
        ".weights.h5",
        ("tensorflow",),
    ),
    "converted": (lambda: keras_psp.convert(plain(0), NUM_TASKS), ".keras", EVERY),
    "converted_attentive": (
        lambda: keras_psp.convert(attentive(), NUM_TASKS, context="rotation"),
        ".keras",
        ("torch",),
    ),
    "superposed": (superposed, ".keras", ("jax",)),
    "superposed_base": (
        functools.partial(superposed, with_base=True, context="rotation"),
        ".keras",
        ("tensorflow",),
    ),
    "superposed_data": (
        functools.partial(superposed, with_base=True, with_data=True),
        ".keras",
        EVERY,
    ),
    "added": (added, ".keras", ("torch",)),
    "extracted": (
        lambda: keras_psp.extract(keras_psp.convert(plain(0), NUM_TASKS), 1),
        ".keras",
        ("jax",),
    ),
}


def draw_inputs(model):
    """Returns a batch with every task in it."""
    rng = np.random.default_rng(1)
    drawn = {}
    for tensor in model.inputs:
        if tensor.dtype == "int32":
            drawn[tensor.name] = np.array([2, 0, 1, 1, 0, 2], "int32")
        elif tensor.name == "task":  # Soft contexts.
            drawn["task"] = rng.uniform(size=(EXAMPLES, NUM_TASKS)).astype("float32")
        else:
            shape = (EXAMPLES, *tensor.shape[1:])
            drawn[tensor.name] = rng.normal(size=shape).astype("float32")
    return drawn


def answer(model, inputs):
    """Returns a model's outputs by their names, as arrays."""
    given = inputs if isinstance(model.input, dict) else [*inputs.values()][0]
    outputs = model(given, training=False)
    if not isinstance(outputs, dict):
        outputs = {"output": outputs}
    return {name: keras.ops.convert_to_numpy(y) for name, y in outputs.items()}


def save_arrays(path, inputs, answers):
    """Writes the arrays, those that were given and those that were answered."""
    given = {f"input:{name}": value for name, value in inputs.items()}
    expected = {f"answer:{name}": value for name, value in answers.items()}
    np.savez_compressed(path, **given, **expected)


def load_arrays(path):
    """Returns what `save_arrays()` has written: inputs and answers."""
    with np.load(path) as arrays:
        return [
            {
                name.removeprefix(kind): arrays[name]
                for name in arrays.files
                if name.startswith(kind)
            }
            for kind in ("input:", "answer:")
        ]


def save(model, path):
    """Saves a model as `.keras`, and compresses the archive: its files stay equal."""
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_models(folder):
    backend = keras.backend.backend()
    for name, (make, suffix, backends) in MODELS.items():
        if backend not in backends:
            continue
        keras.utils.set_random_seed(0)
        model = make()
        inputs = draw_inputs(model)
        save_arrays(folder / f"{name}.npz", inputs, answer(model, inputs))
        if name == "mlp":  # One archive is exactly what Keras has written.
            model.save(folder / "mlp.keras")
        elif suffix == ".keras":
            save(model, folder / f"{name}.keras")
        else:
            model.save_weights(folder / f"{name}.weights.h5")


def rate():
    return consolidation.CosineEachTask(0.05, steps=4)


# `end_task()` draws labels at random, unless they are the data's.
CONSOLIDATIONS = {
    "ewc": lambda: consolidation.EWC(keras.optimizers.Adam(rate()), strength=2.0),
    "ewc_per_task": lambda: consolidation.EWC(
        keras.optimizers.SGD(0.05), decay=None, labels="data"
    ),
    "gram": lambda: consolidation.Gram(keras.optimizers.RMSprop(rate()), every=2),
    "si": lambda: consolidation.SynapticIntelligence(
        keras.optimizers.SGD(rate(), momentum=0.9), damping=0.2
    ),
}


def draw_task(task):
    """Returns the inputs and the labels of one task, a batch."""
    rng = np.random.default_rng(task)
    image = rng.normal(size=(16, 2, 3)).astype("float32")
    labels = rng.integers(3, size=16).astype("int32")
    return {"image": image, "task": np.full(16, task, "int32")}, labels


def one_step(model):
    """Takes a training step and returns what has become of a compiled model."""
    inputs, labels = draw_task(0)
    model.train_on_batch(inputs, labels)
    return state(model)


def state(model):
    """Returns what a compiled model answers, its penalty and its learning rate."""
    return {
        "output": answer(model, draw_inputs(model))["output"],
        "penalty": keras.ops.convert_to_numpy(model.optimizer.penalty()),
        "rate": np.float32(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
    }


def write_consolidations(folder):
    folder.mkdir(exist_ok=True)
    for name, make in CONSOLIDATIONS.items():
        keras.utils.set_random_seed(0)
        model = mlp()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(make(), loss)
        for task in range(2):
            data = draw_task(task)
            model.fit(*data, batch_size=4, epochs=1, shuffle=False, verbose=0)
            model.optimizer.end_task(model, data)
        one_step(model)  # The penalty of the weights at a task's end is 0.
        save(model, folder / f"{name}.keras")
        answers = state(model)
        after = {f"{k}_after": v for k, v in one_step(model).items()}
        save_arrays(folder / f"{name}.npz", {}, {**answers, **after})


def small_runs():
    """The configs of the runs, by name. They need what `keras_psp[bench]` brings."""
    from keras_psp import benchmarks

    small = {"tasks": 2, "steps": 5, "batch_size": 8}
    runs = {
        "half": benchmarks.PermutedConfig(
            **small, units=3, depth=1, consolidation="ewc", optimizer="adam"
        ),
        "permuted": benchmarks.PermutedConfig(
            **small, units=3, depth=1, learnable=True, context="complex"
        ),
        "rotating": benchmarks.RotatingConfig(**small, units=3, depth=1),
        "incremental": benchmarks.IncrementalConfig(
            **small, source="digits", classes_per_task=2, width=0.03
        ),
    }
    return runs


class Stop(keras.callbacks.Callback):
    """Ends a run at the end of its second task, before anything is made of it."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def write_runs(folder):
    from keras_psp import benchmarks

    for name, config in small_runs().items():
        if name == "incremental" and keras.backend.backend() != "torch":
            continue  # It takes minutes to compile.
        (folder / name).mkdir(parents=True, exist_ok=True)
        if name == "half":
            try:
                benchmarks.run(
                    config, folder / name, overwrite=True, callbacks=[Stop()]
                )
            except KeyboardInterrupt:
                pass
            # What the run would have come to.
            whole = benchmarks.run(config).accuracy_matrix
            save_arrays(folder / "half.npz", {}, {"matrix": whole})
        else:
            benchmarks.run(config, folder / name, overwrite=True)


def write_cards(folder):
    folder.mkdir(exist_ok=True)
    keras.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory() as path:
        card = keras_psp.export(mlp(), os.path.join(path, "mlp"), tasks=[1])
    (folder / "mlp.json").write_text(json.dumps(card, indent=1))


def public_names():
    """Returns the names in `__all__` of the package and of all packages in it."""
    packages = ["keras_psp"] + [
        module.name
        for module in pkgutil.walk_packages(keras_psp.__path__, "keras_psp.")
        if module.ispkg
    ]
    modules = {name: importlib.import_module(name) for name in packages}
    return {name: sorted(module.__all__) for name, module in modules.items()}


def main(output):
    folder = Path(output) / keras.backend.backend()
    folder.mkdir(parents=True, exist_ok=True)
    names = json.dumps(public_names(), indent=1)
    (Path(output) / "public_names.json").write_text(names + "\n")
    write_models(folder)
    write_consolidations(folder / "consolidation")
    write_runs(folder / "benchmarks")
    write_cards(folder / "cards")


if __name__ == "__main__":
    main(sys.argv[1])
