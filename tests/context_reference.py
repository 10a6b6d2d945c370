"""What each context family computes, as matrices in NumPy, and one of every kind."""

import numpy as np
from keras import ops
from layer_checks import NUM_TASKS

from keras_psp import contexts

# Every family, in every form: name -> arguments of `contexts.get()`.
KINDS = {name: {"identifier": name} for name in contexts.FAMILIES}
for name in ("binary", "hadamard", "complex", "powers", "fast_rotation", "householder"):
    KINDS[f"{name}-learnable"] = {"identifier": name, "learnable": True}
for name, storage in (
    ("binary", "bits"),
    ("binary", "seed"),
    ("hadamard", "bits"),
    ("fast_rotation", "bits"),
    ("fast_rotation", "seed"),
):
    KINDS[f"{name}-{storage}"] = {"identifier": name, "storage": storage}
KINDS["householder-3"] = {"identifier": "householder", "reflections": 3}


def make(kind, num_tasks=NUM_TASKS, **kwargs):
    return contexts.get(num_tasks=num_tasks, **KINDS[kind], **kwargs)


def numbers(context):
    """What the context's maps are made of, in float64, a row for each task."""
    if isinstance(context, contexts.Identity):
        return np.zeros((context.num_tasks, 0))
    if isinstance(context, contexts.Powers):
        return ops.convert_to_numpy(context.base).astype("float64")
    if getattr(context, "storage", "bytes") != "bytes":
        config = {**context.get_config(), "storage": "bytes", "dtype": "float32"}
        as_bytes = type(context).from_config(config)
        as_bytes.build((None, width(context)))
        return numbers(as_bytes)
    bank = context.contexts
    return ops.convert_to_numpy(ops.cast(bank, "float32")).astype("float64")


def width(context):
    return context.input_spec.axes[-1]


def matrix(context, k, values=None):
    """C_k as a matrix; `values` in place of what `numbers(context)` gives."""
    m, eye = width(context), np.eye(width(context))
    values = numbers(context) if values is None else values
    if isinstance(context, contexts.Powers):
        scale = 1 if context.learnable else np.pi / 2**31
        return _turned(m, k * scale * values)
    row = values[k]
    match context:
        case contexts.Identity():
            return eye
        case contexts.Binary():
            return np.diag(row)
        case contexts.Complex(learnable=True):
            return _turned(m, row)
        case contexts.Complex():
            return _turned(m, np.arctan2(row[1], row[0]))
        case contexts.Rotation():
            return row
        case contexts.SignedPermutation():
            return eye[:, np.abs(row).astype(int) - 1] * np.sign(row)
        case contexts.Permutation():
            return eye[:, row.astype(int)]
        case contexts.Householder():
            result = eye
            for v in row:
                result = result @ (eye - 2 * np.outer(v, v) / (v @ v))
            return result
        case contexts.FastRotation():
            power = 2 ** int(np.log2(m))
            sylvester = np.ones((1, 1))
            while len(sylvester) < power:
                sylvester = np.kron(sylvester, [[1, 1], [1, -1]])
            first, last = eye.copy(), eye.copy()
            first[:power, :power] = last[m - power :, m - power :] = (
                sylvester / np.sqrt(power)
            )
            a, b, c = (np.diag(row[i * m : (i + 1) * m]) for i in range(3))
            return a @ first @ b @ last @ c


def _turned(m, phases):
    half = m // 2
    result = np.zeros((m, m))
    for i in range(half):
        c, s = np.cos(phases[i]), np.sin(phases[i])
        result[np.ix_([i, half + i], [i, half + i])] = [[c, s], [-s, c]]
    if m % 2:
        result[-1, -1] = np.sign(np.cos(phases[-1]))
    return result
