"""Reads files of LoRA adapters, as changes of a base's kernels."""

import functools
import json
import os
import re
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras import ops

from keras_psp._core.private import flatten_layers
from keras_psp._core.private import hub_weights
from keras_psp._reading.counterparts import is_altered
from keras_psp._reading.within import copy_built

_PEFT = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_ANOTHER = "The adapter must be one of this base. Received: {}, of {!r}"

Changes = Iterator[tuple[Any, np.ndarray]]


def with_adapter(base: keras.Model, path: str | os.PathLike) -> Any:
    """Returns a model as a LoRA adapter from a file makes it.

    ```
    W_k = W_0 + s A_k B_k
    ```

    The new model can be superposed with others of the same base, or added to those:
    `superpose()` and `add_models()` call this for paths. The kernels hold what the
    adapter adds to them. `superpose(..., bits=32)` keeps that as factors of each task's
    own, exactly, beside one base.

    Args:
        base: KerasHub backbone, or a task model of one, without a LoRA. It is not
            changed.
        path: Path of what KerasHub's `backbone.save_lora_weights()` wrote, a `.lora.h5`
            file. Or of what PEFT wrote: an `adapter_model.safetensors`, with
            `adapter_config.json` beside it, or the folder of both. KerasHub must know
            how to read the base from a transformers' checkpoint.

    Returns:
        A new model of the base's class, not compiled.

    Raises:
        FileNotFoundError: There is no such file, or a PEFT file without its config.
        ImportError: A PEFT file is read without the package `safetensors`.
        TypeError: `base` is not a Keras model, or `path` is not a path.
        ValueError: The file belongs to another base, its factors are not of the rank it
            says, or it holds more than a LoRA of kernels (heads that were trained too,
            DoRA).

    Example:

    >>> import keras_hub, keras_psp, tempfile
    >>> base = keras_hub.models.BertBackbone(
    ...     vocabulary_size=9,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=4,
    ...     intermediate_dim=8,
    ... )
    >>> tuned = keras_hub.models.BertBackbone.from_config(base.get_config())
    >>> tuned.enable_lora(2)  # And train it.
    >>> path = tempfile.mkdtemp() + "/legal.lora.h5"
    >>> tuned.save_lora_weights(path)
    >>> model = keras_psp.surgery.with_adapter(base, path)
    >>> one = keras_psp.superpose([model, path], base=base, rank=4, bits=32)
    >>> one.num_tasks
    2

    Reference:
        [Hu et al., 2021](https://arxiv.org/abs/2106.09685), equation 3.
    """
    if not isinstance(base, keras.Model):
        raise TypeError(
            "`base` must be a Keras model. Received: "
            f"base={base!r} (of type {type(base).__name__})"
        )
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"`path` must be a path. Received: path={path!r} (of type "
            f"{type(path).__name__})"
        )
    altered = [each.name for each in flatten_layers(base) if is_altered(each)]
    if altered:
        raise ValueError(
            "`base` must have neither a LoRA nor quantized layers. "
            f"Received: {base.name!r} with {altered[0]!r}"
        )
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no adapter at {str(path)!r}.")
    model = copy_built(base)
    backbone = getattr(model, "backbone", model)
    read = _read_keras if path.suffix == ".h5" else _read_peft
    for variable, change in list(read(backbone, path)):
        variable.assign(ops.convert_to_numpy(variable) + change)
    return model


def as_models(models: Any, base: Any) -> Any:
    """Returns a list of models with those that paths of adapters stand for.

    Raises:
        TypeError: There are paths and no base.
    """
    if not isinstance(models, (list, tuple)):
        return models
    paths = [each for each in models if isinstance(each, (str, os.PathLike))]
    if paths and base is None:
        raise TypeError(
            "Each must be a Keras model, or with a `base` the path of an adapter. "
            f"Received: {paths[0]!r} and base=None"
        )
    read = functools.partial(with_adapter, base)
    return [
        read(each) if isinstance(each, (str, os.PathLike)) else each for each in models
    ]


def _read_keras(backbone: Any, path: Path) -> Changes:
    """Yields the changes that `save_lora_weights()` wrote.

    It numbers the layers that have weights, in the order in which Keras lists them.
    """
    layers = [each for each in flatten_layers(backbone)[1:] if each.weights]
    with h5py.File(path) as file:
        if "lora" not in file:
            raise ValueError(
                "The file must be one that `save_lora_weights()` wrote. "
                f"Received: {str(path)!r}"
            )
        rank = int(file["lora/vars/rank"][()])
        numbers = sorted(int(name) for name in file["lora"] if name.isdigit())
        for number in numbers:
            held = file[f"lora/{number}/vars"]
            a, b = (np.array(held[f"lora_kernel_{side}"]) for side in "ab")
            what = f"factors {a.shape} and {b.shape} of layer {number}"
            _check_rank(what, rank, a.shape[-1], b.shape[0])
            kernel = None
            if number < len(layers):
                kernel = getattr(layers[number], "kernel", None)
            change = a @ b
            if kernel is None or change.shape != tuple(kernel.shape):
                raise ValueError(_ANOTHER.format(what, backbone.name))
            yield kernel, change


def _read_peft(backbone: Any, path: Path) -> Changes:
    """Yields the changes that PEFT wrote.

    Of which kernels they are tells what KerasHub would read into these from a file of
    the transformers package.
    """
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    config_file = file.with_name("adapter_config.json")
    for each in (file, config_file):
        if not each.exists():
            raise FileNotFoundError(
                "PEFT writes `adapter_model.safetensors` and `adapter_config.json`. "
                f"Received: {str(path)!r}, without {each.name!r}"
            )
    config = json.loads(config_file.read_text())
    changes = dict(_read_changes(_load(file), config))
    known = hub_weights(backbone)
    if not known:
        raise ValueError(
            "KerasHub must know how to read `base` from a transformers' checkpoint. "
            f"Received: {backbone.name!r}, a {type(backbone).__name__}"
        )
    used = set()
    for variable, name, hook in known:
        for module in _of_weight(name, changes):
            used.add(module)
            yield variable, _fitted(variable, changes[module], hook, module)
    left = sorted(set(changes) - used)
    if left:
        raise ValueError(_ANOTHER.format(f"an adapter of {left[0]!r}", backbone.name))


def _load(file: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ImportError(
            "PEFT's adapters are read by a package that is not installed. Install it "
            "with: pip install safetensors"
        ) from error
    return load_file(file)


def _read_changes(
    tensors: dict[str, np.ndarray], config: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the modules that an adapter changes, with the change of the weight."""
    factors: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        found = _PEFT.fullmatch(key)
        if found is None or config.get("use_dora"):
            raise ValueError(
                "An adapter must hold nothing but the factors of a LoRA. "
                f"Received: {key!r} (use_dora={config.get('use_dora', False)})"
            )
        factors.setdefault(found[1], {})[found[2]] = value.astype("float32")
    for module, sides in factors.items():
        if set(sides) != {"A", "B"}:
            raise ValueError(
                "An adapter must hold both factors of a LoRA. "
                f"Received: {module!r} with {sorted(sides)} alone"
            )
        a, b = sides["A"], sides["B"]
        rank = _value_of(module, config["r"], config.get("rank_pattern"))
        _check_rank(f"factors of {module!r}", rank, a.shape[0], b.shape[-1])
        alpha = _value_of(module, config["lora_alpha"], config.get("alpha_pattern"))
        scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        change = scale * (b @ a)
        yield module, change.T if config.get("fan_in_fan_out") else change


def _value_of(module: str, value: Any, patterns: dict[str, Any] | None) -> Any:
    """A module's own value, of the first pattern of PEFT's that its name ends with."""
    for pattern, own in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return own
    return value


def _check_rank(what: str, rank: int, *sizes: int) -> None:
    if any(size != rank for size in sizes):
        raise ValueError(
            f"The adapter says that it is of rank {rank}. Received: {what}, of rank "
            f"{sizes[0]} and {sizes[1]}"
        )


def _of_weight(name: str, modules: Any) -> list[str]:
    """The modules of which a weight in a checkpoint is. Either may have a prefix."""
    own = name.removesuffix(".weight")
    return [
        each
        for each in modules
        if each == own or each.endswith(f".{own}") or own.endswith(f".{each}")
    ]


def _fitted(
    variable: Any, change: np.ndarray, hook: Callable | None, module: str
) -> np.ndarray:
    """Returns the change of a variable, as KerasHub would read the weight into it."""
    shape = tuple(variable.shape)
    try:
        found = change if hook is None else np.asarray(hook(change, list(shape)))
    except ValueError:  # It cannot be reshaped.
        found = change
    if found.shape != shape:
        what = f"a change of shape {change.shape} of {module!r}"
        raise ValueError(_ANOTHER.format(what, variable.path))
    return found
