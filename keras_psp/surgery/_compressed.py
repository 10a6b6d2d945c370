"""K trained models -> one model in a given memory, of parts in few bits."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._core.memory import count_bytes
from keras_psp._reading.counterparts import COUNTERPARTS
from keras_psp._reading.counterparts import can_convert
from keras_psp._reading.counterparts import leaf_layers
from keras_psp._reading.counterparts import make_superposed
from keras_psp._reading.counterparts import set_new_rows
from keras_psp._reading.counterparts import set_task_weights
from keras_psp._reading.graph import Graph
from keras_psp._reading.graph import OwnCode
from keras_psp._reading.graph import copy_weights
from keras_psp._reading.listen import Listener
from keras_psp._reading.plan import Plan
from keras_psp._reading.plan import plan_models
from keras_psp._reading.plan import same_leaves
from keras_psp._reading.rows import kernel_rows
from keras_psp.layers._superposed import Superposed
from keras_psp.layers._superposed_attention import SuperposedAttention
from keras_psp.layers._task_copies import TaskCopies
from keras_psp.layers._task_depthwise_conv import TaskDepthwiseConv
from keras_psp.layers._task_low_rank import FULL
from keras_psp.layers._task_rows import TaskRows
from keras_psp.models.task_model import TaskModel
from keras_psp.surgery._budget import Choice
from keras_psp.surgery._budget import best
from keras_psp.surgery._budget import choices
from keras_psp.surgery._budget import choose
from keras_psp.surgery._build_superposed import build_superposed
from keras_psp.surgery._embeddings import round_embeddings
from keras_psp.surgery._inputs import Inputs
from keras_psp.surgery._parts import Form
from keras_psp.surgery._parts import Parts
from keras_psp.surgery._parts import Wanted
from keras_psp.surgery._parts import fit
from keras_psp.surgery._parts import fit_more
from keras_psp.surgery._sensitivity import Sensitivity
from keras_psp.surgery._sensitivity import ends_with_columns
from keras_psp.surgery.extract import build_plain

BATCH_SIZE = 256
RIDGE = 0.1
# Of the numbers of depthwise kernels: each of a few tens counts for a whole channel.
DEPTHWISE_BITS = 8


def compress(walk: "Walk", budget: float) -> TaskModel:
    """Builds the model of the least error in a memory; see `superpose()`.

    Args:
        walk: The `Walk` through the models.
        budget: Positive float, in float32 networks of one model.
    """
    menus = [best(walk.choices(group)) for group in walk.groups]
    model = walk.fit_within(menus, walk.count_model_bytes() * budget)
    if model is None:
        least = sum(menu[0].bits for menu in menus) / 8 + walk.count_other_bytes()
        least = np.ceil(1000 * least / walk.count_model_bytes()) / 1000
        raise ValueError(
            f"`budget` must be at least {float(least)} for these "
            f"models, biases and all else that each keeps of its own included. "
            f"Received: budget={budget}"
        )
    return model


def is_compressed(layer: Any) -> bool:
    """Whether a layer's kernels are in few bits, as `compress()` makes them."""
    if isinstance(layer, TaskDepthwiseConv):
        return layer.bits is not None
    if not isinstance(layer, Superposed):
        return False
    parts = [layer.base, *layer.own_kernels]
    return layer.context is None and all(
        part is None or part.bits is not None for part in parts
    )


def fit_more_models(
    pairs: Sequence[tuple[Any, Sequence[keras.layers.Layer]]],
    graphs: Sequence[Graph],
    data: Sequence[dict[str, np.ndarray]] | None,
    ridge: float | None,
) -> list[tuple[Superposed, Parts, np.ndarray | None]]:
    """Fits the own parts of more models, beside what the present tasks share.

    Args:
        pairs: List of a compressed model's layers that take a task, each with the same
            layer of every new model.
        graphs: The new models' `Graph`s.
        data: List of a dictionary of arrays for each new model, or `None`.
        ridge: Non-negative float, or `None` for 0.1.

    Returns:
        List of the compressed layers, each with the `Parts` of the new tasks and their
        biases, if these change.
    """
    whole = [plains[0] for layer, plains in pairs if isinstance(layer, TaskCopies)]
    walk = Walk(graphs, *plan_models(graphs, whole, in_parts=True), False, data, ridge)
    holder = {id(plains[0]): layer for layer, plains in pairs}
    return [
        (holder[id(leaf)], *walk.fit_more(leaf, _read(holder[id(leaf)])))
        for group in walk.groups
        for leaf in group
    ]


def hold_more(
    layer: Superposed, parts: Parts, biases: np.ndarray | None, tasks: Sequence[int]
) -> None:
    """Gives a layer's new tasks what has been fitted for them."""
    _set_biases(layer, biases, tasks)
    for part, rows in _rows_of(layer, parts):
        codes = part.get_codes()
        for name, new in rows.items():
            codes[name] = codes[name].copy()
            codes[name][tasks] = new
        part.set_codes(**codes)


def _rows_of(layer, parts):
    """Yields the parts that tasks have of their own, with their rows by name."""
    for part, codes, names in (
        (layer.core, parts.core, ("core", "core_scale")),
        (layer.low_rank, parts.rank, ("first", "second", "scale")),
    ):
        if part is not None:
            yield part, {x: codes[x] for x in names if codes[x] is not None}


def check_can_compress(alike: Sequence[tuple]) -> None:
    """Raises a `ValueError` if models have weights like NaN.

    Args:
        alike: What `plan_models()` returns.
    """
    for layers in alike:
        if not can_convert(layers[0]):
            continue
        for i, layer in enumerate(layers):
            if not all(np.isfinite(weight).all() for weight in layer.get_weights()):
                raise ValueError(
                    "Weights must be finite to be kept in a `budget`. "
                    f"Received: NaN or infinity in {layer.name!r} of model {i}"
                )


class Walk:
    """Goes through the layers of K models, from inputs to outputs.

    Each layer's kernels are fitted to the inputs that the layers before it give, which
    have been compressed already. Its biases make up for the mean errors of the outputs.
    One plain model takes all models' weights in turn.
    """

    def __init__(
        self,
        graphs: Sequence[Graph | OwnCode],
        plan: Plan,
        alike: Sequence[tuple],
        with_base: bool,
        data: Sequence[dict[str, np.ndarray]] | None,
        ridge: float | None,
    ) -> None:
        self._graph, self._plan = graphs[0], plan
        self.num_tasks = len(graphs) - int(with_base)
        self._data, self._ridge = data, RIDGE if ridge is None else ridge
        self._same = same_leaves(alike)
        self._with_base = with_base
        # Tells how kernels and inputs become rows, and has the plain model to probe.
        self._template, self._pairs = self._build(lambda layer: Form(base=8))
        self._depthwise = {
            id(layer): self._round_depthwise(layer, ours)
            for layer, ours in self._pairs
            if isinstance(ours, TaskDepthwiseConv)
        }
        self._plain, copies = build_plain(self._template, 0, is_whole=True)
        self._copies = {id(layer): copy for layer, copy in copies}
        self._superposed = {id(layer): ours for layer, ours in self._pairs}
        # Leaf layers that take one form: a layer, or an attention's projections.
        groups = [leaf_layers([x]) for x in plan.chosen if self._holds_kernels(x)]
        order = {id(layer): i for i, (layer, _) in enumerate(self._pairs)}
        self.groups = sorted(groups, key=lambda group: order[id(group[0])])
        if not self.groups:
            raise ValueError(
                "`models` must have a kernel that can be kept in few bits. "
                f"Received: {self._graph.name!r}, which has none"
            )
        self._kernels: dict[int, np.ndarray] = {}
        self._biases: dict[int, np.ndarray] = {}
        self._new_tasks: dict[int, Parts] = {}
        self._outputs = None if data is None else self._measure_outputs()
        every = [leaf for group in self.groups for leaf in group]
        self._places = {id(leaf): place for place, leaf in enumerate(every)}
        ours = [self._superposed[id(leaf)] for leaf in every]
        self._inputs = Inputs(
            Listener(self._plain),
            [(each, self._copies[id(each)]) for each in ours],
            [_batches(x) for x in data or ()],
            self._take_weights,
        )
        round_embeddings(self._template)  # As what is built of the models will be.

    def count_model_bytes(self) -> int:
        """Returns the bytes of one of the models, in float32."""
        layers = leaf_layers(self._graph.layers)
        weights = [x for layer in layers for x in getattr(layer, "weights", ())]
        return 4 * sum(int(np.prod(weight.shape)) for weight in weights)

    def count_other_bytes(self) -> int:
        """Returns the bytes of all that is no kernel of a compressed layer."""
        kernels = [
            weight
            for group in self.groups
            for leaf in group
            for weight in self._superposed[id(leaf)].base.weights
        ]
        return count_bytes(self._template.weights) - count_bytes(kernels)

    def choices(self, group: Sequence[keras.layers.Layer]) -> list[Choice]:
        """Returns what there is to choose from for leaf layers of one form."""
        return choices([self.wanted(leaf, compressed=False)[0] for leaf in group])

    def fit_within(
        self, menus: Sequence[list[Choice]], memory: float
    ) -> TaskModel | None:
        """Returns the model of the least error in so many bytes.

        Args:
            menus: What there is to choose from for each of the `groups`.
            memory: Bytes. If it is too little, `None` is returned.
        """
        found = choose(menus, 8 * (memory - self.count_other_bytes()))
        if found is None:
            return None
        return self.fit([choice.form for choice in found])

    def fit_alike(self, form: Form) -> TaskModel:
        """Returns the model whose layers are all kept in one form.

        Where a layer is too narrow for the rank it has whole kernels, and for the core
        a smaller one.

        Raises:
            ValueError: Rank or core is too large for all layers.
        """
        shapes = [self._smallest(group) for group in self.groups]
        most = self.widest()
        if form.rank not in (0, FULL) and int(form.rank) > most:
            raise ValueError(
                f"`rank` must be at most {most}, or 'full', for these models. "
                f"Received: rank={form.rank}"
            )
        largest = tuple(map(max, zip(*shapes, strict=True)))
        if form.core and (form.core[0] > largest[0] or form.core[1] > largest[1]):
            raise ValueError(
                f"`core` must be at most {largest} for these models. "
                f"Received: core={form.core}"
            )
        return self.fit([form.within(*shape) for shape in shapes])

    def widest(self) -> int:
        """Returns the largest rank that the kernels of a group can have."""
        return max(min(self._smallest(group)) for group in self.groups)

    def _smallest(self, group):
        """Returns the least numbers of rows and of columns of a group's kernels."""
        shapes = [
            self._superposed[id(leaf)].kernel_rows(leaf.kernel).shape for leaf in group
        ]
        return tuple(map(min, zip(*shapes, strict=True)))

    def fit(self, forms: Sequence[Form]) -> TaskModel:
        """Returns the model of these forms, one for each of the `groups`."""
        fitted = {
            id(leaf): self._fit(leaf, form)
            for group, form in zip(self.groups, forms, strict=True)
            for leaf in group
        }
        return self._build_fitted(forms, fitted)

    def _fit(self, leaf, form):
        """Fits a leaf layer's parts, and goes on with what they give."""
        wanted, means = self.wanted(leaf, compressed=True)
        parts = fit(form, wanted)
        if self._with_base:
            base = self.base_rows(leaf)
            # A new task has the base's biases: the means of the inputs count too.
            here = means[1] if means is not None else np.zeros((1, len(base)))
            gram = wanted.mean_gram + here.T @ here / len(here)
            new = (base[None].astype("float32"), gram[None].astype("float32"))
            new = Wanted(*new, wanted.mean_outputs[None])
            self._new_tasks[id(leaf)] = fit_more(parts, new)
        self._go_on(leaf, parts, means)
        return parts

    def base_rows(self, leaf: keras.layers.Layer) -> Any:
        """Returns the base's kernel of a layer, as rows `(M, N)`."""
        return kernel_rows(self._superposed[id(leaf)], self._same[id(leaf)][-1].kernel)

    def fit_more(
        self, leaf: keras.layers.Layer, shared: Parts
    ) -> tuple[Parts, np.ndarray | None]:
        """Fits a leaf layer's parts beside those that other tasks have already.

        Returns:
            The `Parts`, and the biases if these change.
        """
        wanted, means = self.wanted(leaf, compressed=True)
        parts = fit_more(shared, wanted)
        self._go_on(leaf, parts, means)
        return parts, self._biases.get(id(leaf))

    def _go_on(self, leaf, parts, means):
        """Goes on with what has been fitted for a leaf layer."""
        kernels = parts.kernels()
        self.keep(leaf, kernels)
        if means is not None:
            layers = self._same[id(leaf)][: self.num_tasks]
            ours, biases = self._superposed[id(leaf)], []
            for layer, own, here, kernel in zip(layers, *means, kernels, strict=True):
                lost = own @ kernel_rows(ours, layer.kernel) - here @ kernel
                bias = ops.convert_to_numpy(layer.bias)
                biases.append(bias + lost.reshape(bias.shape))
            self._biases[id(leaf)] = np.stack(biases).astype("float32")

    def keep(self, leaf: keras.layers.Layer, kernels: np.ndarray) -> None:
        """Goes on with these kernels, rows `(K, M, N)`, in place of a layer's own."""
        self._kernels[id(leaf)] = kernels.astype("float32")
        self._biases.pop(id(leaf), None)
        self._inputs.forget_fitted(but=self._beside(leaf))

    def own(self, task: int) -> keras.Model:
        """Returns the one plain model, with the weights of a task's own model."""
        self._take_weights(task, compressed=False)
        return self._plain

    def plain(self, task: int) -> keras.Model:
        """Returns the one plain model, with the compressed kernels of a task."""
        self._take_weights(task, compressed=True)
        return self._plain

    def _build_fitted(self, forms, fitted):
        """Returns the model that holds all parts, and the rest of all models."""
        form_of = {
            id(group[0]): form for group, form in zip(self.groups, forms, strict=True)
        }
        model, pairs = self._build(lambda layer: form_of[id(leaf_layers([layer])[0])])
        for layer, ours in pairs:
            if id(layer) in fitted:
                _set_codes(ours, fitted[id(layer)])
                if self._with_base:
                    for part, rows in _rows_of(ours, self._new_tasks[id(layer)]):
                        part.set_new_codes(**{k: row[0] for k, row in rows.items()})
            if isinstance(ours, (Superposed, TaskRows)):
                layers = self._same[id(layer)]
                set_task_weights(ours, layers[: self.num_tasks])
                _set_biases(ours, self._biases.get(id(layer)))
                if self._with_base:
                    set_new_rows(ours, layers[-1])
                if isinstance(ours, TaskDepthwiseConv):
                    ours.round_to_bits(DEPTHWISE_BITS)
            else:
                copy_weights(layer, ours)
        round_embeddings(model)
        return model

    def _round_depthwise(self, layer, ours):
        """Returns the kernels that tasks will have, and lets the template hold them."""
        set_task_weights(ours, self._same[id(layer)][: self.num_tasks])
        ours.round_to_bits(DEPTHWISE_BITS)
        return ours.kernels()

    def _build(self, form_of):
        def new_layer(layer):
            options = {"base": False}
            if self._holds_kernels(layer):
                options = _options(form_of(layer))
            return make_superposed(
                layer, self.num_tasks, lambda: None, context_over="kernel", **options
            )

        return build_superposed(self._graph, self._plan, new_layer, self.num_tasks)

    def wanted(
        self, leaf: keras.layers.Layer, compressed: bool, with_means: bool = False
    ) -> tuple[Wanted, tuple[np.ndarray, np.ndarray] | None]:
        """Returns what is to be kept of a layer.

        Args:
            leaf: The layer in the first model.
            compressed: Whether the inputs are those after the layers that have been
                fitted, or those of each task's own model.
            with_means: Whether errors of the outputs' means count. Else, where a layer
                has a bias, that is to make up for them.

        Returns:
            The `Wanted`. Where biases are to change, also the means `(K, M)` of the
            inputs in the tasks' own models and of these inputs; else `None`.
        """
        ours = self._superposed[id(leaf)]
        layers = self._same[id(leaf)][: self.num_tasks]
        kernels = np.stack(
            [kernel_rows(ours, each.kernel).astype("float32") for each in layers]
        )
        num_tasks, size, columns = kernels.shape
        if self._data is None or self._outputs is None:  # One is where the other is.
            count = max(float(np.square(kernels).sum()) / num_tasks, 1e-12)
            grams = _repeated(num_tasks, np.eye(size))
            outputs = _repeated(num_tasks, np.eye(columns) / count)
            return Wanted(kernels, grams, outputs), None
        centered = not with_means and _has_free_bias(leaf, columns)
        grams = np.empty((num_tasks, size, size), "float32")
        means = np.empty((2, num_tasks, size))
        for k in range(num_tasks):
            gram, cross, own, here = self._products(leaf, k, compressed)
            ridge = self._ridge * max(np.trace(gram) / size, 1e-12) * np.eye(size)
            if centered:
                gram, cross = gram - np.outer(here, here), cross - np.outer(here, own)
            grams[k], means[:, k] = gram + ridge, (own, here)
            if compressed:
                right = (cross + ridge) @ kernels[k]
                kernels[k] = np.linalg.solve(gram + ridge, right)
        wanted = Wanted(kernels, grams, self._outputs[id(leaf)])
        return wanted, (means[0], means[1]) if centered else None

    def _measure_outputs(self):
        """Returns how much each layer's outputs count for each model's answers."""
        plain, copies = build_plain(self._template, 0, is_whole=True)
        copy_of = {id(layer): copy for layer, copy in copies}
        every = [leaf for group in self.groups for leaf in group]
        sensitivity = Sensitivity(
            plain, [copy_of[id(self._superposed[id(leaf)])] for leaf in every]
        )
        found = []
        for k, x in enumerate(self._data):
            self._take_weights(k, compressed=False)
            plain.set_weights(self._plain.get_weights())
            batches = [self._graph.give(batch) for batch in _batches(x)]
            found.append(sensitivity.measure(batches))
        return {
            id(leaf): np.stack(each)
            for leaf, each in zip(every, zip(*found, strict=True), strict=True)
        }

    def _products(self, leaf, task, compressed):
        """The mean products of a layer's inputs: by themselves, by its own model's.

        And the means of its own model's, and of these.
        """
        place = self._places[id(leaf)]
        own = here = self._inputs.own(place, task)
        if compressed:
            here = self._inputs.fitted(place, task, self._beside(leaf))
        gram = cross = own_mean = here_mean = count = 0
        for a, b in zip(here, own, strict=True):
            gram, cross = gram + a.T @ a, cross + a.T @ b
            here_mean = here_mean + a.sum(0, dtype="float64")
            own_mean = own_mean + b.sum(0, dtype="float64")
            count += len(a)
        return gram / count, cross / count, own_mean / count, here_mean / count

    def _beside(self, leaf):
        """The places of layers behind a leaf whose inputs do not depend on it.

        Of attention, these are the projections of keys and values.
        """
        group = next(group for group in self.groups if leaf in group)
        first = group.index(leaf)
        return [self._places[id(each)] for each in group[first + 1 : -1]]

    def _take_weights(self, task, compressed):
        """Gives the plain model the weights of a task's own, or as they are kept."""
        for layer, ours in self._pairs:
            if not isinstance(ours, (Superposed, TaskRows)):
                continue
            copy = self._copies[id(ours)]
            copy.set_weights(self._same[id(layer)][task].get_weights())
            if compressed and id(layer) in self._depthwise:
                copy.kernel.assign(self._depthwise[id(layer)][task])
            if compressed and id(layer) in self._kernels:
                rows = ops.convert_to_tensor(self._kernels[id(layer)][task])
                copy.kernel.assign(ours.kernel_of_rows(rows))
            if compressed and id(layer) in self._biases:
                copy.bias.assign(self._biases[id(layer)][task])

    def _holds_kernels(self, layer):
        """Whether a chosen layer's counterpart holds kernels in parts."""
        counterpart = COUNTERPARTS.get(type(layer), object)
        return issubclass(counterpart, (Superposed, SuperposedAttention))


def _options(form: Form) -> dict[str, Any]:
    """The arguments of a layer that holds the parts of a form."""
    bits = {"base": form.base, "core": form.core_bits, "rank": form.rank_bits}
    present = {"base": form.base, "core": form.core, "rank": form.rank}
    return {
        "base": bool(form.base),
        "core": form.core,
        "rank": form.rank or None,
        "bits": {name: bits[name] for name in bits if present[name]},
    }


def _set_codes(layer: Superposed, parts: Parts) -> None:
    """Gives a layer the parts that have been fitted for it."""
    for part, codes in (
        (layer.base, parts.base),
        (layer.core, parts.core),
        (layer.low_rank, parts.rank),
    ):
        if part is not None and codes is not None:
            part.set_codes(**codes)


def _read(layer: Superposed) -> Parts:
    """Returns the parts that a layer holds, the inverse of `_set_codes()`."""
    base: Any = layer.base
    core: Any = layer.core
    own: Any = layer.low_rank
    form = Form(
        base.bits if base is not None else 0,
        core.size if core is not None else None,
        core.bits if core is not None else 4,
        own.rank if own is not None else 0,
        own.bits if own is not None else 4,
    )
    codes = (None if part is None else part.get_codes() for part in (base, core, own))
    return Parts(form, layer.num_tasks, *codes)


def _batches(x):
    number = len(next(iter(x.values())))
    return [
        {name: array[start : start + BATCH_SIZE] for name, array in x.items()}
        for start in range(0, number, BATCH_SIZE)
    ]


def _repeated(number, matrix):
    return np.broadcast_to(matrix.astype("float32"), (number, *matrix.shape))


def _has_free_bias(leaf: Any, columns: int) -> bool:
    """Whether a layer adds a number to each column of its kernel's outputs."""
    bias = leaf.bias
    if bias is None or np.prod(bias.shape) != columns:
        return False
    return ends_with_columns(leaf)


def _set_biases(layer: Any, biases: Any, tasks: Sequence[int] | None = None) -> None:
    """Gives tasks, or the first ones, biases if these have been fitted."""
    if biases is not None:
        weight = layer.task_bias.bias
        rows = ops.convert_to_numpy(weight).copy()
        places = range(len(biases)) if tasks is None else tasks
        rows[places] = biases.reshape(-1, *weight.shape[1:])
        weight.assign(rows)
