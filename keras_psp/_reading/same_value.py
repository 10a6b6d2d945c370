"""Whether two values found in models are the same: a constant, a function, an object.

Neither `==` nor `repr()` can tell. NumPy prints the ends of a long array alone, and two
functions made by one `def` have the same name but may hold different numbers.
"""

import dataclasses
import functools
import types
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_psp._reading.describe import describe_layer


def same_value(one: Any, other: Any) -> bool:
    """Returns whether two values are the same, as far as answers depend on them.

    Args:
        one: Any value. Arrays, tensors and variables are compared by dtype and numbers;
            functions by code, defaults, closure and the globals that they use; bound
            methods also by their object; layers by type, config and weights;
            dataclasses by their fields; other objects by `==`, or by what their
            attributes hold.
        other: Any value.
    """
    return _same(one, other, {})


def _same(one, other, seen):
    if one is other or (id(one), id(other)) in seen:
        return True  # Where the comparison has been already, it is decided.
    seen[id(one), id(other)] = one, other  # Which keeps them, and so their ids.
    if _is_number(one) and _is_number(other):
        return bool(one == other or (one != one and other != other))
    if _is_array(one) and _is_array(other):
        return _same_arrays(one, other)
    if type(one) is not type(other):
        return isinstance(one, (list, tuple)) and _same_items(one, other, seen)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _same(one[key], other[key], seen) for key in one
        )
    if isinstance(one, (list, tuple)):
        return _same_items(one, other, seen)
    if isinstance(one, types.FunctionType):
        return _same_functions(one, other, seen)
    if isinstance(one, types.CodeType):
        return _same_code(one, other)
    if isinstance(one, types.MethodType):
        return _same(one.__func__, other.__func__, seen) and _same(
            one.__self__, other.__self__, seen
        )
    if isinstance(one, functools.partial):
        return all(
            _same(getattr(one, part), getattr(other, part), seen)
            for part in ("func", "args", "keywords")
        )
    if isinstance(one, keras.layers.Layer):
        return _same(_state(one), _state(other), seen)
    return _same_objects(one, other, seen)


def _is_number(value):
    return isinstance(value, (bool, int, float, complex, np.generic))


def _is_array(value):
    return isinstance(value, (np.ndarray, np.generic, keras.Variable)) or (
        ops.is_tensor(value) and not isinstance(value, keras.KerasTensor)
    )


def _same_arrays(one, other):
    one, other = (
        value
        if isinstance(value, (np.ndarray, np.generic))
        else ops.convert_to_numpy(value)
        for value in (one, other)
    )
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")


def _same_items(one, other, seen):
    return (
        isinstance(other, (list, tuple))
        and len(one) == len(other)
        and all(_same(*pair, seen) for pair in zip(one, other, strict=True))
    )


def _same_functions(one, other, seen):
    if not _same_code(one.__code__, other.__code__):
        return False
    for part in ("__defaults__", "__kwdefaults__"):
        if not _same(getattr(one, part), getattr(other, part), seen):
            return False
    if not _same(_cells(one), _cells(other), seen):
        return False
    if one.__globals__ is other.__globals__:
        return True
    return all(
        _same(one.__globals__.get(name), other.__globals__.get(name), seen)
        for name in _names(one.__code__)
    )


def _same_code(one, other):
    """Compares what code does, not the line it was written in."""
    parts = (
        "co_code",
        "co_names",
        "co_varnames",
        "co_freevars",
        "co_cellvars",
        "co_argcount",
        "co_posonlyargcount",
        "co_kwonlyargcount",
        "co_flags",
    )
    if any(getattr(one, part) != getattr(other, part) for part in parts):
        return False
    constants = zip(one.co_consts, other.co_consts, strict=False)
    return len(one.co_consts) == len(other.co_consts) and all(
        _same_code(a, b)
        if isinstance(a, types.CodeType) and isinstance(b, types.CodeType)
        else type(a) is type(b)
        and (a == b if type(a) is frozenset else repr(a) == repr(b))
        for a, b in constants
    )


def _cells(function):
    cells = function.__closure__ or ()
    # A cell is empty while the function that fills it still runs.
    return [cell.cell_contents if _is_filled(cell) else None for cell in cells]


def _is_filled(cell):
    try:
        return bool(cell.cell_contents is not None)
    except ValueError:
        return False


def _names(code):
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return {*code.co_names, *(name for each in inner for name in _names(each))}


def _state(layer):
    return describe_layer(layer), layer.get_weights()


def _same_objects(one, other, seen):
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        # Their own `==` raises an error where a field holds arrays.
        names = [field.name for field in dataclasses.fields(one)]
        return all(_same(getattr(one, x), getattr(other, x), seen) for x in names)
    equal = one == other
    if isinstance(equal, (bool, np.bool_)) and equal:
        return True
    if isinstance(one, (str, bytes, type, types.ModuleType)):
        return False
    # Objects that do not define `==` are equal if all they hold is.
    plain = type(one).__eq__ is object.__eq__ and hasattr(one, "__dict__")
    return plain and _same(vars(one), vars(other), seen)
