"""Files of LoRA adapters, of KerasHub and of PEFT."""

import json

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from conftest import once
from keras import ops
from safetensors.numpy import save_file

import keras_psp
from keras_psp.surgery import add_models
from keras_psp.surgery import with_adapter

WIDTH, RANK = 8, 2


def bert(width=WIDTH):
    return keras_hub.models.BertBackbone(
        vocabulary_size=11,
        num_layers=2,
        num_heads=2,
        hidden_dim=width,
        intermediate_dim=12,
        max_sequence_length=4,
    )


def gpt2():
    return keras_hub.models.GPT2Backbone(
        vocabulary_size=11,
        num_layers=1,
        num_heads=2,
        hidden_dim=WIDTH,
        intermediate_dim=4 * WIDTH,
        max_sequence_length=4,
    )


def llama():
    return keras_hub.models.LlamaBackbone(
        vocabulary_size=11,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=WIDTH,
        intermediate_dim=12,
    )


def ask(model, task=None):
    ids = np.random.default_rng(0).integers(0, 11, (3, 4))
    ones = np.ones((3, 4), "int32")
    x = {"token_ids": ids, "padding_mask": ones}
    if "segment_ids" in [tensor.name for tensor in model.inputs]:
        x["segment_ids"] = 0 * ones
    if task is not None:
        x["task"] = np.full(3, task)
    outputs = model.predict(x, verbose=0)
    return outputs["sequence_output"] if isinstance(outputs, dict) else outputs


def tuned(base, seed, path):
    """A copy of a base with a LoRA that is saved at a path."""
    model = type(base).from_config(base.get_config())
    model.set_weights(base.get_weights())
    model.enable_lora(RANK)
    rng = np.random.default_rng(seed)
    factors = [each for each in model.trainable_weights if "lora" in each.path]
    for weight in factors:
        weight.assign(2.0 * rng.normal(size=weight.shape))
    model.save_lora_weights(path)
    return model


# By KerasHub.
@pytest.mark.filterwarnings("ignore:.compile... was not called as part")
@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        # Two heads of rank 2 each.
        ({"rank": 2 * RANK, "bits": 32}, 1e-4),
        once({"bits": 8}, 0.05),
    ],
)
def test_what_keras_hub_saved_is_superposed_and_added(options, allowed, tmp_path):
    base = bert()
    paths = [tmp_path / f"{k}.lora.h5" for k in range(3)]
    models = [tuned(base, k, path) for k, path in enumerate(paths)]
    expected = [ask(model) for model in models]
    before = ask(base)
    found = ask(with_adapter(base, paths[1]))
    np.testing.assert_allclose(found, expected[1], atol=1e-4)
    named = {"legal": paths[0], "medical": str(paths[1])}
    one = keras_psp.superpose(named, base=base, **options)
    add_models(one, {"other": paths[2]}, base=base)
    assert one.task_names == ("legal", "medical", "other")
    for k, y in enumerate(expected):
        assert np.abs(y - before).max() > 0.5
        np.testing.assert_allclose(ask(one, k), y, atol=allowed)
    np.testing.assert_array_equal(ask(base), before)
    one.remove_task("medical")
    add_models(one, {"again": paths[1]}, base=base)
    np.testing.assert_allclose(ask(one, 1), expected[1], atol=allowed)
    np.testing.assert_allclose(ask(one, 2), expected[2], atol=allowed)


def write_peft(folder, modules, seed=0, **options):
    """Writes an adapter as PEFT does, of modules with their inputs and outputs."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (inputs, outputs) in modules.items():
        for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
            key = f"base_model.model.{name}.lora_{side}.weight"
            tensors[key] = rng.normal(size=shape).astype("float32")
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, **options}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return {
        name: tensors[f"base_model.model.{name}.lora_B.weight"]
        @ tensors[f"base_model.model.{name}.lora_A.weight"]
        for name in modules
    }


CASES = {
    "bert": (
        bert,
        {
            "bert.encoder.layer.1.attention.self.query": (WIDTH, WIDTH),
            "bert.encoder.layer.1.attention.output.dense": (WIDTH, WIDTH),
            "bert.encoder.layer.0.intermediate.dense": (WIDTH, 12),
            "bert.encoder.layer.0.output.dense": (12, WIDTH),
        },
        {},
    ),
    "gpt2": (
        gpt2,
        {"transformer.h.0.attn.c_attn": (WIDTH, 3 * WIDTH)},
        {"fan_in_fan_out": True},
    ),
    "llama": (
        llama,
        {
            "model.layers.0.self_attn.q_proj": (WIDTH, WIDTH),
            "model.layers.0.self_attn.v_proj": (WIDTH, WIDTH // 2),
            "model.layers.0.mlp.down_proj": (12, WIDTH),
        },
        {"use_rslora": True},
    ),
}


def kernels(model, name):
    """The kernels of a module of PEFT's, side by side, as `(outputs, inputs)`."""
    parts = name.split(".")
    number = next(int(part) for part in parts if part.isdigit())
    block = model.get_layer(f"transformer_layer_{number}")
    attention = getattr(block, "_self_attention_layer", None)
    names = {
        "query": [lambda: attention.query_dense],
        "q_proj": [lambda: attention._query_dense],
        "v_proj": [lambda: attention._value_dense],
        "c_attn": [
            lambda: attention.query_dense,
            lambda: attention.key_dense,
            lambda: attention.value_dense,
        ],
        "down_proj": [lambda: block._feedforward_output_dense],
        "intermediate": [lambda: block._feedforward_intermediate_dense],
        "output": [lambda: block._feedforward_output_dense],
    }
    if parts[-3:] == ["attention", "output", "dense"]:
        found = [attention.output_dense]
    else:
        key = parts[-2] if parts[-1] == "dense" else parts[-1]
        found = [each() for each in names[key]]
    is_output = parts[-3:] == ["attention", "output", "dense"]
    rows = []
    for layer in found:
        kernel = ops.convert_to_numpy(layer.kernel)
        shape = (-1, WIDTH) if is_output else (kernel.shape[0], -1)
        rows.append(kernel.reshape(shape).T)
    return np.concatenate(rows)


@pytest.mark.once
@pytest.mark.parametrize("name", CASES)
def test_what_peft_saved(name, tmp_path):
    make, modules, options = CASES[name]
    base = make()
    changes = write_peft(tmp_path / "peft", modules, **options)
    model = with_adapter(base, tmp_path / "peft")
    scale = 6 / RANK**0.5 if options.get("use_rslora") else 6 / RANK
    moved = sum(
        not np.array_equal(*map(ops.convert_to_numpy, pair))
        for pair in zip(model.weights, base.weights, strict=True)
    )
    assert moved == (3 if name == "gpt2" else len(modules))
    for module, change in changes.items():
        difference = kernels(model, module) - kernels(base, module)
        np.testing.assert_allclose(difference, scale * change, atol=1e-4)
    file = tmp_path / "peft" / "adapter_model.safetensors"
    np.testing.assert_array_equal(ask(with_adapter(base, file)), ask(model))


@pytest.mark.once
def test_ranks_and_alphas_of_modules(tmp_path):
    (module,) = ["encoder.layer.0.attention.self.value"]
    change = write_peft(
        *(tmp_path / "peft", {module: (WIDTH, WIDTH)}),
        **{"r": 5, "rank_pattern": {"self.value": RANK}, "alpha_pattern": {"value": 3}},
    )
    model, base = bert(), bert()
    model.set_weights(base.get_weights())
    found = with_adapter(base, tmp_path / "peft")
    layer = found.get_layer("transformer_layer_0")._self_attention_layer.value_dense
    plain = base.get_layer("transformer_layer_0")._self_attention_layer.value_dense
    difference = ops.convert_to_numpy(layer.kernel) - ops.convert_to_numpy(plain.kernel)
    expected = 1.5 * change[module].T.reshape(difference.shape)
    np.testing.assert_allclose(difference, expected, atol=1e-5)


@pytest.mark.once
def test_adapters_that_do_not_fit(tmp_path):
    base = bert()
    good = tmp_path / "good.lora.h5"
    tuned(base, 0, good)
    folder = tmp_path / "peft"
    query = "encoder.layer.0.attention.self.query"

    def refuse(error, message, path=folder, model=base):
        with pytest.raises(error, match=message):
            with_adapter(model, path)

    refuse(ValueError, "one of this base", good, bert(width=4))
    refuse(ValueError, "one of this base", good, gpt2())
    with h5py.File(good, "a") as file:
        file["lora/vars/rank"][()] = 7
    refuse(ValueError, "of rank 7. Received.*of rank 2", good)
    with h5py.File(tmp_path / "other.h5", "w"):
        pass
    refuse(ValueError, "`save_lora_weights..` wrote", tmp_path / "other.h5")
    refuse(FileNotFoundError, "no adapter at", tmp_path / "none")
    write_peft(folder, {query: (WIDTH, WIDTH)}, r=3)
    refuse(ValueError, "of rank 3. Received.*of rank 2")
    write_peft(folder, {query: (WIDTH, WIDTH + 2)})
    refuse(ValueError, "one of this base.*10, 8.*query")
    write_peft(folder, {"encoder.layer.7.attention.self.query": (WIDTH, WIDTH)})
    refuse(ValueError, "one of this base.*layer.7")
    write_peft(folder, {query: (WIDTH, WIDTH)}, use_dora=True)
    refuse(ValueError, "nothing but the factors.*use_dora=True")
    save_file({"classifier.weight": np.ones(2)}, folder / "adapter_model.safetensors")
    refuse(ValueError, "nothing but the factors.*classifier.weight")
    (folder / "adapter_config.json").unlink()
    refuse(FileNotFoundError, "without 'adapter_config.json'")
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    write_peft(folder, {query: (WIDTH, WIDTH)})
    refuse(ValueError, "KerasHub must know how", folder, plain)
    refuse(TypeError, "`base` must be", folder, 3)
    refuse(TypeError, "`path` must be", 3)
    base.enable_lora(2)
    refuse(ValueError, "neither a LoRA nor quantized", folder)
    with pytest.raises(TypeError, match="with a `base` the path of an adapter"):
        keras_psp.superpose([good, good])
    for options in ({"bits": 32}, {"bits": 32, "rank": "full"}):
        with pytest.raises(ValueError, match="needs a `base` and a `rank`"):
            keras_psp.superpose([bert(), bert()], base=bert(), **options)
    with pytest.raises(ValueError, match="factors alone"):
        keras_psp.superpose([bert()] * 2, base=bert(), rank=2, bits=32, core=2)
    one = keras_psp.superpose([bert(), bert()], context="fast_rotation")
    with pytest.raises(TypeError, match="with a `base` the path of an adapter"):
        add_models(one, [good])
