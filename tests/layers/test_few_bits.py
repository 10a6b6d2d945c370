"""Kernels in few bits: packing, rounding, setting, counting.

What is exported of them is tested by exporting/test_exporting.py.
"""

import keras
import numpy as np
import pytest
from keras import ops
from layer_checks import NUM_TASKS
from layer_checks import fill_weights
from layer_checks import to_numpy

from keras_psp.diagnostics import memory
from keras_psp.layers import PSPDense
from keras_psp.layers import PSPEinsumDense
from keras_psp.layers._few_bits import pack
from keras_psp.layers._few_bits import packed_size
from keras_psp.layers._few_bits import round_to_codes
from keras_psp.layers._few_bits import unpack_codes
from keras_psp.models import TaskModel

K = NUM_TASKS


@pytest.mark.parametrize("bits", range(1, 9))
def test_what_is_packed_is_unpacked(bits):
    rng = np.random.default_rng(bits)
    for shape in ((1,), (7,), (3, 8), (2, 13)):
        codes = rng.integers(0, 2**bits, shape)
        packed = pack(codes, bits)
        assert packed.dtype == "uint8"
        assert packed.shape == (*shape[:-1], packed_size(shape[-1], bits))
        assert bits * shape[-1] <= 8 * packed.shape[-1] < bits * shape[-1] + 24
        found = unpack_codes(np, packed.astype("int32"), bits, shape[-1])
        np.testing.assert_array_equal(found, codes)
        tensor = ops.cast(ops.convert_to_tensor(packed), "int32")
        found = unpack_codes(ops, tensor, bits, shape[-1])
        np.testing.assert_array_equal(ops.convert_to_numpy(found), codes)


def test_rounding_is_as_good_as_the_bits_allow():
    values = np.random.default_rng(0).normal(size=(200, 3)) * [1, 10, 0]
    errors = []
    for bits in range(1, 9):
        codes, scale = round_to_codes(values, bits, axis=0)
        assert codes.min() >= 0 and codes.max() < 2**bits and scale.shape == (3,)
        back = (codes - (2**bits - 1) / 2) * scale
        assert (back[:, 2] == 0).all()
        errors.append(
            np.square(back - values).sum(0)[:2] / np.square(values).sum(0)[:2]
        )
    assert (np.diff(errors, axis=0) < 0).all()
    np.testing.assert_allclose(errors[0], 1 - 2 / np.pi, atol=0.05)  # Of signs.
    assert np.max(errors[3]) < 0.02 and np.max(errors[7]) < 1e-4
    with pytest.raises(ValueError, match="must be finite"):
        round_to_codes(np.array([[np.nan]]), 4, 0)


def numbers(codes, bits):
    return codes - (2**bits - 1) / 2


def test_codes_that_are_set_are_the_kernel():
    rng = np.random.default_rng(0)
    layer = PSPEinsumDense(
        "btd,dhe->bthe",
        (None, 2, 3),
        K,
        context=None,
        base=True,
        core=(3, 2),
        rank=2,
        bits={"base": 5, "core": 3, "rank": 2},
    )
    layer.build((None, 4, 7))

    def codes(bits, *shape):
        return rng.integers(0, 2**bits, shape)

    w0, s0 = codes(5, 7, 6), rng.uniform(size=6)
    layer.base.set_codes(w0, s0)
    a, b, s = codes(2, K, 7, 2), codes(2, K, 2, 6), rng.uniform(size=(K, 2))
    layer.low_rank.set_codes(a, b, s)
    first, second, core = codes(3, 7, 3), codes(3, 2, 6), codes(3, K, 3, 2)
    scales = rng.uniform(size=3), rng.uniform(size=2), rng.uniform(size=K)
    layer.core.set_codes(first, second, core, *scales)
    for k in range(K):
        low = numbers(a[k], 2) * s[k] @ numbers(b[k], 2)
        shared = (numbers(first, 3) * scales[0]) @ (numbers(core[k], 3) * scales[2][k])
        shared = shared @ (numbers(second, 3) * scales[1][:, None])
        expected = numbers(w0, 5) * s0 + low + shared
        found = to_numpy(layer.kernel_rows(layer.task_kernel(k)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.base.get_codes()["codes"], w0)
    before = layer.get_weights()
    for part in (layer.base, layer.low_rank, layer.core):
        part.set_codes(**part.get_codes())
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for call, error, match in (
        (lambda: layer.base.set_codes(w0.T, s0), ValueError, r"shape \(7, 6\)"),
        (lambda: layer.base.set_codes(w0 * 1.0, s0), TypeError, "be integers"),
        (lambda: layer.base.set_codes(w0 + 32, s0), ValueError, r"in \[0, 31\]"),
        (lambda: layer.base.set_codes(w0, s0 * np.inf), ValueError, "be finite"),
        (lambda: layer.low_rank.set_codes(a, b, s[:2]), ValueError, r"\(5, 2\)"),
        (lambda: layer.base.round_to_bits(3), ValueError, "only once"),
    ):
        with pytest.raises(error, match=match):
            call()
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    floats = PSPDense(4, K, base=True)
    floats.build((None, 7))
    with pytest.raises(ValueError, match="with `bits`"):
        floats.base.set_codes(np.zeros((7, 4), int), np.ones(4))


@pytest.mark.parametrize("rank", [2, "full"])
def test_rounding_a_part_keeps_its_kernels(rank):
    layer = PSPDense(4, K, context=None, base=True, core=3, rank=rank)
    layer.build((None, 16))
    fill_weights(layer)
    exact = [to_numpy(layer.task_kernel(k)) for k in range(K)]
    for part in (layer.base, layer.core, layer.low_rank):
        part.round_to_bits(8)
    assert not layer.core.trainable_weights + layer.low_rank.trainable_weights
    assert layer.get_config()["bits"] == {"base": 8, "core": 8, "rank": 8}
    for k, kernel in enumerate(exact):
        np.testing.assert_allclose(to_numpy(layer.task_kernel(k)), kernel, atol=0.05)
    again = PSPDense.from_config(layer.get_config())
    again.build((None, 16))
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(
        to_numpy(again.task_kernel(1)), to_numpy(layer.task_kernel(1))
    )


def model_of(bits):
    image = keras.Input((6,), name="image")
    task = keras.Input((), dtype="int32", name="task")
    options = {"context": None, "base": True, "bits": bits}
    hidden = PSPDense(8, K, core=3, rank=2, activation="relu", **options)
    x = PSPDense(3, K, rank="full", **options)(hidden(image, task), task)
    model = TaskModel({"image": image, "task": task}, x)
    fill_weights(model)
    return model


def test_memory_counts_bytes_and_scales():
    parts = memory(model_of(3)).parts

    def size(count, scales):  # Two bits and one bit of each number, to whole bytes.
        return -(-count * 2 // 8) + -(-count // 8) + 4 * scales

    assert parts["base_kernels"] == size(6 * 8, 8) + size(8 * 3, 3)
    low_rank = K * (size(6 * 2, 2) + size(2 * 8, 0) + size(8 * 3, 3))
    assert parts["low_rank"] == low_rank
    assert parts["core"] == size(6 * 3, 3) + size(3 * 8, 3) + K * size(9, 1)
    assert parts["kernels"] == parts["contexts"] == parts["task_state"] == 0
