"""What all superposed attentions add to the Keras layers that they replace."""

from types import SimpleNamespace
from typing import Any

import keras

from keras_psp import contexts
from keras_psp._core import scope
from keras_psp._core.task import task_argument
from keras_psp._core.task_layer import TaskLayer
from keras_psp.contexts.families import series
from keras_psp.layers._superposed import check_parts
from keras_psp.layers._task_parts import TaskParts
from keras_psp.layers.psp_einsum_dense import PSPEinsumDense

# The attributes in which Keras keeps them, the last one of the outputs.
PROJECTIONS = (
    "_query_dense",
    "_key_dense",
    "_value_dense",
    "_gate_dense",
    "_output_dense",
)


def projections(attention: Any) -> Any:
    """Returns the projections of a built attention, Keras' or one of this package's."""
    names = [name for name in PROJECTIONS if hasattr(attention, name)]
    return [getattr(attention, name) for name in names]


class SuperposedAttention(TaskParts):
    """Mixin of the attentions whose projections hold a kernel for each task.

    It stands before a Keras layer among the bases, whose `build()` and `call()` are
    left as they are, so that all they know of masks, gates and fused kernels holds.
    Only, whenever they set an attribute to a projection, it is ours that is set; and
    it takes its task from the scope that `call()` opens.

    `__init__` calls `set_projections()`.
    """

    def set_projections(
        self,
        context: Any,
        num_tasks: int | None,
        base: bool,
        bias_per_task: bool,
        rank: int | str | None,
        core: Any = None,
        bits: Any = None,
    ) -> None:
        """Sets what the projections are to be; see `keras_psp.layers.PSPEinsumDense`.

        Args:
            context: What shows, but for its seed, the context of each, or `None`.
            num_tasks: Positive integer, or `None` if the context knows it.
            base: Boolean.
            bias_per_task: Boolean.
            rank: Positive integer, `"full"`, or `None`.
            core: Positive integer, a pair of these, or `None`.
            bits: Integer, dictionary or `None`.
        """
        check_parts(context, num_tasks, base, rank, core, bits)
        if context is not None:
            context = contexts.get(context, num_tasks=num_tasks)
            # A copy, because it grows with the layer; and hidden from Keras, which
            # would wait in vain for it to be built.
            context = type(context).from_config(context.get_config())
        self._example = SimpleNamespace(context=context)
        self._num_tasks: Any = num_tasks
        self.base = base
        self.bias_per_task = bias_per_task
        self.rank = rank
        self.core = core
        self._bits = bits

    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) is keras.layers.EinsumDense:
            context = self.context
            if context is not None:
                own = series(
                    context, self.num_tasks, len(PROJECTIONS), seed=context.seed
                )
                context = own[PROJECTIONS.index(name)]
            value = PSPEinsumDense.from_config(
                {
                    **value.get_config(),
                    "context": context,
                    "num_tasks": self.num_tasks,
                    "base": self.base,
                    "bias_per_task": self.bias_per_task,
                    "rank": self.rank,
                    "core": self.core,
                    "bits": self._bits,
                    "removed_tasks": self.removed_tasks,
                }
            )
        super().__setattr__(name, value)

    @property
    def context(self) -> Any:
        """What shows the context of each projection, and is never built itself.

        `None` if they have none.
        """
        return self._example.context

    @property
    def bits(self) -> Any:
        """The bits that the projections' parts are stored in; see `PSPEinsumDense`.

        Raises:
            ValueError: They are not the same in all projections.
        """
        if not self.built:
            return self._bits
        bits = [layer.get_config().get("bits") for layer in projections(self)]
        if any(each != bits[0] for each in bits):
            raise ValueError(
                "All projections of an attention must be stored in the same bits. "
                f"Received: {bits} in {self.name!r}"
            )
        return bits[0]

    def other_parts(self) -> list:
        """Returns the projections, which hold the tasks."""
        return projections(self)

    def check_can_hold(self, num_tasks: int) -> None:
        """Raises a `ValueError` if a projection's context cannot hold `num_tasks`."""
        for layer in projections(self):
            layer.check_can_hold(num_tasks)

    def can_quantize(self, mode: Any) -> bool:
        """Whether Keras' `quantize()` can turn the kernels into integers."""
        return all(layer.can_quantize(mode) for layer in projections(self))

    # Keras' attentions have several inputs.
    def __call__(  # type: ignore[override]
        self, query: Any, *args: Any, task: Any = None, **kwargs: Any
    ) -> Any:
        task = task_argument(task, self, query)
        # Not by `TaskLayer`, whose layers have one input.
        return super(TaskLayer, self).__call__(query, *args, task=task, **kwargs)

    # Keras looks for names of arguments here: it fills in masks by them.
    def call(
        self,
        query: Any,
        value: Any,
        key: Any = None,
        query_mask: Any = None,
        value_mask: Any = None,
        key_mask: Any = None,
        attention_mask: Any = None,
        return_attention_scores: bool = False,
        training: Any = None,
        use_causal_mask: bool = False,
        *,
        task: Any = None,
    ) -> Any:
        with scope.reopened(task):
            return super().call(
                query,
                value,
                key=key,
                query_mask=query_mask,
                value_mask=value_mask,
                key_mask=key_mask,
                attention_mask=attention_mask,
                return_attention_scores=return_attention_scores,
                training=training,
                use_causal_mask=use_causal_mask,
            )

    def compute_output_spec(self, *args: Any, task: Any = None, **kwargs: Any) -> Any:
        return super().compute_output_spec(*args, **kwargs)

    # Keras quantizes the projections, and neither saves nor reads that (3.15.1).

    def get_build_config(self) -> Any:
        """Returns what Keras' own returns, and how the projections are quantized."""
        config = super().get_build_config()
        serialize = keras.saving.serialize_keras_object
        modes = [
            (each.quantization_mode, serialize(each.quantization_config))
            for each in projections(self)
        ]
        quantized = any(mode is not None for mode, _ in modes)
        return {**config, "quantized": modes} if quantized else config

    def build_from_config(self, config: Any) -> None:
        """Builds the layer, and quantizes the projections as they were."""
        super().build_from_config(config)
        read = keras.saving.deserialize_keras_object
        modes = config.get("quantized", ()) if config else ()
        for each, (mode, details) in zip(projections(self), modes, strict=False):
            if mode is not None:
                each.quantize(mode, config=read(details))

    def get_config(self) -> dict[str, Any]:
        context = keras.saving.serialize_keras_object(self.context)
        config = {
            **super().get_config(),
            "num_tasks": self.num_tasks,
            "context": context,
        }
        if self.base:
            config["base"] = True
        if self.bias_per_task:
            config["bias_per_task"] = True
        if self.rank is not None:
            config["rank"] = self.rank
        if self.core is not None:
            config["core"] = self.core
        if self.bits is not None:
            config["bits"] = self.bits
        return config
