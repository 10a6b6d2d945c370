"""A hundred bad inputs: each an error in Keras' form, and the model answers as before.

One model is given to all of them. `surgery/test_refusals.py` does the same for what
changes models, `exporting/test_exporting.py` for exports and `test_data.py` for every
form that data come in.
"""

import keras
import numpy as np
import pytest

import keras_psp
from keras_psp import benchmarks
from keras_psp import consolidation
from keras_psp import contexts
from keras_psp import datasets
from keras_psp import diagnostics
from keras_psp import evaluation
from keras_psp import layers
from keras_psp import models

X = np.random.default_rng(0).normal(size=(12, 8)).astype("float32")
T = (np.arange(12) % 3).astype("int32")
Y = (np.arange(12) % 4).astype("int32")


def data(image=X, task=T):
    return {"image": image, "task": task}


class Given:
    """A trained model with an optimizer that has a state, and what it answers."""

    def __init__(self, folder):
        self.model = models.mlp((8,), 4, 3, units=8, depth=1, head="multi")
        optimizer = keras_psp.consolidation.EWC("adam", examples=12)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(optimizer, loss)
        self.model.fit(data(), Y, verbose=0)
        self.model.optimizer.end_task(self.model, (data(), Y))
        self.path = str(folder / "wide.weights.h5")
        models.mlp((8,), 4, 3, units=9, depth=1, head="multi").save_weights(self.path)
        self.plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        self.before = self.state()

    def state(self):
        variables = [*self.model.variables, *self.model.optimizer.variables]
        return [
            self.model.predict_on_batch(data()),
            *(np.array(keras.ops.convert_to_numpy(each)) for each in variables),
        ]

    def end_task(self, given):
        self.model.optimizer.end_task(self.model, given)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return Given(tmp_path_factory.mktemp("weights"))


def in_scope(task):
    with keras_psp.task(task):
        layers.PSPDense(2, 3)(X)


def with_task_input(outputs, **inputs):
    task = keras.Input((), dtype="int32", name="task")
    image = keras.Input((8,), name="image")
    return models.TaskModel({"image": image, **inputs}, outputs(image, task))


def mlp(**options):
    return models.mlp(
        **{"input_shape": (8,), "num_classes": 4, "num_tasks": 3} | options
    )


def resnet18(**options):
    given = {"input_shape": (8, 8, 3), "num_classes": 4, "num_tasks": 3, "width": 0.125}
    return models.resnet18(**given | options)


CALLS = {
    # The model.
    "add-0": lambda g: g.model.add_tasks(0),
    "add-negative": lambda g: g.model.add_tasks(-1),
    "add-float": lambda g: g.model.add_tasks(1.0),
    "add-true": lambda g: g.model.add_tasks(True),
    "add-text": lambda g: g.model.add_tasks("two"),
    "remove-0": lambda g: g.model.remove_tasks(n=0),
    "remove-all": lambda g: g.model.remove_tasks(n=3),
    "remove-float": lambda g: g.model.remove_tasks(n=1.5),
    "remove-none": lambda g: g.model.remove_tasks(n=None),
    "names-text": lambda g: setattr(g.model, "task_names", "abc"),
    "call-float": lambda g: g.model(data(task=T + 0.5)),
    "call-high": lambda g: g.model(data(task=T + 1)),
    "call-int64": lambda g: g.model(data(task=T.astype("int64") + 2**32)),
    "call-no-task": lambda g: g.model({"image": X}),
    "call-width": lambda g: g.model(data(X[:, :5])),
    "predict-name": lambda g: g.model.predict({"imgae": X, "task": T}, verbose=0),
    "predict-text": lambda g: g.model.predict(data(task=T.astype(str)), verbose=0),
    "predict-list": lambda g: g.model.predict([X, T, T], verbose=0),
    "evaluate-bool": lambda g: g.model.evaluate(data(task=T > 0), Y, verbose=0),
    "evaluate-few": lambda g: g.model.evaluate(data(task=T[:5]), Y, verbose=0),
    "fit-high": lambda g: g.model.fit(data(task=T + 1), Y, verbose=0),
    "fit-negative": lambda g: g.model.fit(data(task=T - 1), Y, verbose=0),
    "fit-one-hot": lambda g: g.model.fit(data(task=np.eye(3)[T]), Y, verbose=0),
    "fit-alone": lambda g: g.model.fit(X, Y, verbose=0),
    "fit-surplus": lambda g: g.model.fit({**data(), "more": X}, Y, verbose=0),
    "fit-validation": lambda g: g.model.fit(
        data(), Y, validation_data=(data(X[:, :5]), Y), verbose=0
    ),
    "fit-validation-few": lambda g: g.model.fit(
        data(), Y, validation_data=(data(), Y[:5]), verbose=0
    ),
    "fit-validation-weights": lambda g: g.model.fit(
        data(), Y, validation_data=(data(), Y, np.ones(5)), verbose=0
    ),
    "fit-validation-number": lambda g: g.model.fit(
        data(), Y, validation_data=(data(), Y, np.float32(1.0)), verbose=0
    ),
    "batch-high": lambda g: g.model.train_on_batch(data(task=T + 1), Y),
    "batch-float": lambda g: g.model.test_on_batch(data(task=T + 0.5), Y),
    "load-wide": lambda g: g.model.load_weights(g.path),
    "quantize": lambda g: g.model.quantize("int3"),
    "model-no-task": lambda g: with_task_input(lambda image, task: image),
    "model-numbers": lambda g: with_task_input(
        lambda image, task: layers.PSPDense(2, 4)(layers.PSPDense(2, 3)(image, 0), 0)
    ),
    # The ways to change it and to look at it.
    "convert": lambda g: keras_psp.convert(g.model, 2),
    "superpose": lambda g: keras_psp.superpose([g.model, g.model]),
    "extract-3": lambda g: keras_psp.extract(g.model, 3),
    "extract-text": lambda g: keras_psp.extract(g.model, "first"),
    "add-models": lambda g: keras_psp.surgery.add_models(g.model, [g.plain]),
    "remove-models": lambda g: keras_psp.surgery.remove_models(g.model, [g.plain]),
    "export-format": lambda g: keras_psp.export(g.model, "model", "onxx"),
    "export-task": lambda g: keras_psp.export(g.model, "model", tasks=[3]),
    "export-path": lambda g: keras_psp.export(g.model, 3),
    "infer-plain": lambda g: keras_psp.infer_task(g.plain, X),
    "infer-method": lambda g: keras_psp.infer_task(g.model, X, method="entropie"),
    "infer-per": lambda g: keras_psp.infer_task(g.model, X, per="image"),
    "infer-batch": lambda g: keras_psp.infer_task(g.model, X, batch_size=0),
    "infer-width": lambda g: keras_psp.infer_task(g.model, X[:, :5]),
    "infer-name": lambda g: keras_psp.infer_task(g.model, {"imgae": X}),
    "infer-nothing": lambda g: keras_psp.infer_task(g.model, None),
    "infer-logits": lambda g: keras_psp.infer_task(g.model, X, from_logits="yes"),
    "interference-plain": lambda g: diagnostics.interference(g.plain),
    "interference-data": lambda g: diagnostics.interference(g.model, data=3),
    "interference-width": lambda g: diagnostics.interference(g.model, data=[X[:, :5]]),
    "memory": lambda g: diagnostics.memory("model"),
    "capacity-text": lambda g: diagnostics.capacity("wide"),
    "capacity-tolerance": lambda g: diagnostics.capacity(g.model, tolerance=-0.1),
    "capacity-method": lambda g: diagnostics.capacity(g.model, consolidation="grams"),
    # The end of a task.
    "end-nothing": lambda g: g.end_task(None),
    "end-inputs": lambda g: g.end_task((X, Y)),
    "end-labels": lambda g: g.end_task((data(), Y[:5])),
    "end-high": lambda g: g.end_task((data(task=T + 1), Y)),
    "end-width": lambda g: g.end_task((data(X[:, :5]), Y)),
    "end-empty": lambda g: g.end_task((data(X[:0], T[:0]), Y[:0])),
    # Optimizers.
    "ewc-strength": lambda g: consolidation.EWC(strength=-1.0),
    "ewc-decay": lambda g: consolidation.EWC(decay=1.5),
    "ewc-examples": lambda g: consolidation.EWC(examples=0),
    "ewc-labels": lambda g: consolidation.EWC(labels="teacher"),
    "ewc-optimizer": lambda g: consolidation.EWC(optimizer=3),
    "ewc-name": lambda g: consolidation.EWC("rmsprob"),
    "gram-temperature": lambda g: consolidation.Gram(temperature=0),
    "gram-every": lambda g: consolidation.Gram(every=2.5),
    "gram-largest": lambda g: consolidation.Gram(largest="all"),
    "si-damping": lambda g: consolidation.SynapticIntelligence(damping=float("nan")),
    "cosine-rate": lambda g: consolidation.CosineEachTask(-1.0, 10),
    "cosine-steps": lambda g: consolidation.CosineEachTask(1e-3, 0),
    "end-task-nothing": lambda g: consolidation.EndTask(None),
    "per-task": lambda g: keras_psp.optimizers.PerTask(None),
    # Scopes, contexts and layers.
    "scope-float": lambda g: in_scope(1.0),
    "scope-negative": lambda g: in_scope(-1),
    "scope-high": lambda g: in_scope(3),
    "scope-nothing": lambda g: layers.PSPDense(2, 3)(X),
    "context-family": lambda g: contexts.get("binery", num_tasks=3),
    "context-number": lambda g: contexts.get("binary"),
    "context-type": lambda g: contexts.get(3, num_tasks=3),
    "context-0": lambda g: contexts.Rotation(0),
    "context-seed": lambda g: contexts.Binary(3, seed="a"),
    "context-storage": lambda g: contexts.Binary(3, storage="disk"),
    "context-reflections": lambda g: contexts.Householder(3, reflections=0),
    "context-learnable": lambda g: contexts.Identity(3, learnable=True),
    "context-many": lambda g: contexts.Hadamard(9)(X, 0),
    "dense-0": lambda g: layers.PSPDense(2, 0),
    "dense-family": lambda g: layers.PSPDense(2, 3, context="hadamar"),
    "dense-rank": lambda g: layers.PSPDense(2, 3, rank=-1),
    "dense-bits": lambda g: layers.PSPDense(2, 3, base=True, bits=9),
    "dense-task": lambda g: layers.PSPDense(2, 3)(X, 1.0),
    "einsum-0": lambda g: layers.PSPEinsumDense("ab,bc->ac", 4, 0),
    "conv-over": lambda g: layers.PSPConv2D(2, 3, 3, context_over="rows"),
    "attention-tasks": lambda g: layers.PSPMultiHeadAttention(2, 3, "3"),
    "task-dense": lambda g: layers.TaskDense(2, 2.0),
    "task-norm": lambda g: layers.TaskBatchNormalization(None),
    "task-depthwise": lambda g: layers.TaskDepthwiseConv2D(3, -2),
    "task-embedding": lambda g: layers.TaskEmbedding(3, 4, "2"),
    "task-rms-norm": lambda g: layers.TaskRMSNormalization(3, axis=1),
    # Builders.
    "mlp-tasks": lambda g: mlp(num_tasks=0),
    "mlp-classes": lambda g: mlp(num_classes=1.5),
    "mlp-units": lambda g: mlp(units=-1),
    "mlp-head": lambda g: mlp(head="many"),
    "mlp-context": lambda g: mlp(context="binari"),
    "resnet-width": lambda g: resnet18(width=0),
    "resnet-norm": lambda g: resnet18(norm="layer"),
    "resnet-stem": lambda g: resnet18(stem="mnist"),
    # Tasks, runs and what is made of them.
    "source": lambda g: datasets.permuted("digit"),
    "permuted-0": lambda g: datasets.permuted(num_tasks=0),
    "rotating-period": lambda g: datasets.rotating("digits", period=0),
    "rotating-way": lambda g: datasets.rotating("digits", assignment="windows"),
    "incremental": lambda g: datasets.incremental("digits", classes_per_task=0),
    "config-tasks": lambda g: benchmarks.PermutedConfig(tasks=0),
    "config-method": lambda g: benchmarks.PermutedConfig(consolidation="ewk"),
    "run": lambda g: benchmarks.run("permuted"),
    "report": lambda g: benchmarks.report(3),
    "matrix-ragged": lambda g: evaluation.average_accuracy([[1.0], [1.0, 0.5]]),
    "matrix-text": lambda g: evaluation.forgetting("matrix"),
    "matrix-classes": lambda g: evaluation.forward_transfer([0.5, 0.5], 0),
    "report-path": lambda g: benchmarks.report("runs"),
    "interference-models": lambda g: diagnostics.interference(g.model, models=3),
}

# The second is Keras' own, of a name that is no optimizer's.
FORM = r"[.?,;]\s+[Rr]eceived: |Could not interpret optimizer identifier: "


# Keras' own, of the optimizer, before it finds that the weights do not fit.
@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
@pytest.mark.parametrize("name", CALLS)
def test_it_is_refused_and_the_model_answers_as_before(given, name):
    with pytest.raises((TypeError, ValueError), match=FORM):
        CALLS[name](given)
    assert given.model.num_tasks == 3
    for after, before in zip(given.state(), given.before, strict=True):
        np.testing.assert_array_equal(after, before)
