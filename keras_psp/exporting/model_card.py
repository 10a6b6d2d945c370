"""The model card of a model, for the Hugging Face Hub."""

from collections import Counter
from typing import Any

import keras

from keras_psp.exporting._card import describe
from keras_psp.exporting.export import _output_names
from keras_psp.exporting.export import _with_named_inputs
from keras_psp.models._takes_tasks import TakesTasks

_CARD = """\
---
library_name: keras
tags:
- keras-psp
- parameter-superposition
---

# {name}

{num_tasks} tasks in one set of weights, by [keras-psp]({url}).

```python
import keras
import keras_psp

model = keras.saving.load_model("hf://USER/{name}")  # Or the path of this folder.
outputs = model.predict({{{example}}})
```

Each example names its task, beside its inputs. `keras_psp.extract(model, task)` gives
one task back as a plain Keras model.

| | |
|---|---|
{rows}

Written by keras-psp {version}, Keras {keras_version}, on {backend}.
"""
_URL = "https://github.com/keras-psp/keras-psp"


def model_card(model: keras.Model) -> str:
    """Returns the README.md of a model's repository on the Hugging Face Hub.

    It says what the card of `export()` says: tasks, inputs, outputs, contexts and
    versions. `model.save(folder, zipped=False)` writes what the Hub is to hold beside
    it, and `keras.saving.load_model("hf://USER/NAME")` reads it.

    Args:
        model: `keras_psp.models.TaskModel`.

    Returns:
        Text in Markdown, which begins with the metadata that the Hub reads.

    Raises:
        TypeError: `model` takes no task.

    Example:

    >>> import pathlib, tempfile
    >>> import keras, keras_psp
    >>> model = keras_psp.models.mlp((4,), 3, num_tasks=["paris", "tokyo"], units=8)
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> model.save(folder, zipped=False)
    >>> count = (folder / "README.md").write_text(keras_psp.exporting.model_card(model))
    >>> keras.saving.load_model(folder).task_names
    ('paris', 'tokyo')
    """
    if not isinstance(model, TakesTasks):
        raise TypeError(
            "`model` must be a `TaskModel`, which takes a task. Received: "
            f"model={model!r} (of type {type(model).__name__})"
        )
    model = _with_named_inputs(model)
    card = describe(model, None, _output_names(model), [])
    names, present = model.task_names, model.present_tasks
    families = Counter(context["class_name"] for context in card["contexts"].values())
    rows = {
        "tasks": ", ".join(str(k if names is None else names[k]) for k in present),
        "inputs": _say(card["inputs"]),
        "outputs": _say(card["outputs"]),
        "contexts": ", ".join(f"{x} in {n} layers" for x, n in families.items())
        or "none",
        "numbers": f"{model.count_params():,}",
    }
    return _CARD.format(
        name=card["name"],
        num_tasks=len(present),
        url=_URL,
        example=", ".join(f'"{x}": {x}' for x in card["inputs"]),
        rows="\n".join(f"| {what} | {text} |" for what, text in rows.items()),
        version=card["versions"]["keras_psp"],
        keras_version=card["versions"]["keras"],
        backend=card["backend"],
    )


def _say(tensors: dict[str, dict[str, Any]]) -> str:
    found = []
    for name, tensor in tensors.items():
        sizes = ", ".join("any" if x is None else str(x) for x in tensor["shape"])
        found.append(f"`{name}` {tensor['dtype']} ({sizes})")
    return ", ".join(found)
