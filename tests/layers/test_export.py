import context_reference
import numpy as np
import pytest
from conftest import BACKEND
from conftest import once
from layer_checks import NUM_TASKS
from layer_checks import SelfAttention
from layer_checks import draw
from layer_checks import functional
from layer_checks import to_numpy

from keras_psp.layers import PSPConv1D
from keras_psp.layers import PSPConv2D
from keras_psp.layers import PSPDense
from keras_psp.layers import TaskBatchNormalization
from keras_psp.layers import TaskDense
from keras_psp.layers import TaskDepthwiseConv2D

IMAGES = (10, 5, 6, 4)


def few_bits(layer):
    layer.build(IMAGES)
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=w.shape) for w in layer.weights])
    layer.round_to_bits(3)
    return layer


KINDS = ("binary-seed", "complex", "powers", "rotation", "fast_rotation", "permutation")
LAYERS = {
    kind: (
        # An activation that would make a number of NaN.
        lambda kind=kind: PSPDense(
            4, context=context_reference.make(kind), activation="relu"
        ),
        (10, 6),
    )
    for kind in KINDS
}
LAYERS |= {
    "conv-kernel": (lambda: PSPConv2D(3, 3, NUM_TASKS, padding="same"), IMAGES),
    "conv-channels": (
        lambda: PSPConv2D(3, 3, NUM_TASKS, strides=2, context_over="channels"),
        IMAGES,
    ),
    "conv-causal": (lambda: PSPConv1D(3, 2, NUM_TASKS, padding="causal"), (10, 5, 4)),
    "depthwise": (lambda: TaskDepthwiseConv2D(3, NUM_TASKS, padding="same"), IMAGES),
    "depthwise-few-bits": (lambda: few_bits(TaskDepthwiseConv2D(3, NUM_TASKS)), IMAGES),
    "attention": (lambda: SelfAttention(2, 3, NUM_TASKS), (10, 3, 6)),
    "norm": (lambda: TaskBatchNormalization(NUM_TASKS, affine_per_task=True), IMAGES),
    "task-dense": (lambda: TaskDense(4, NUM_TASKS, bias_initializer="normal"), (10, 6)),
}


ONCE = ("complex", "powers", "fast_rotation", "permutation", "conv-causal")


@pytest.mark.parametrize(
    "name", [once(name) if name in ONCE else name for name in LAYERS]
)
def test_exported_model_masks_unknown_tasks(name, tmp_path):
    make, shape = LAYERS[name]
    x, task = draw(shape)
    layer = make()
    expected = to_numpy(layer(x, task))
    model = functional(layer, x.shape)
    task[3] = NUM_TASKS
    path = str(tmp_path / "model")
    if BACKEND == "torch":
        import torch

        path += ".pt2"
        batch = torch.export.Dim("batch")
        shapes = ({"image": {0: batch}, "task": {0: batch}},)
        model.export(path, format="torch", verbose=False, dynamic_shapes=shapes)
        exported = torch.export.load(path).module()
        serve, tensor = exported, torch.tensor
    else:
        import tensorflow as tf

        model.export(path, format="tf_saved_model", verbose=False)
        exported = tf.saved_model.load(path)
        serve, tensor = exported.serve, tf.constant
    for n in (10, 7, 4):
        y = serve({"image": tensor(x[:n]), "task": tensor(task[:n])})
        y = y.detach().numpy() if BACKEND == "torch" else y.numpy()
        assert np.isnan(y[3]).all()
        known = np.arange(n) != 3
        np.testing.assert_allclose(y[known], expected[:n][known], atol=1e-5)
