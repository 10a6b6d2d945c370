"""First values of variables for which Keras has no initializer."""

from collections.abc import Callable
from typing import Any


class Initial:
    """An initializer that calls a function.

    On JAX, Keras compiles the `__call__` of what initializes a large variable that
    devices share. It cannot compile that of a bare function.

    Args:
        function: Function of a shape and a dtype that returns a tensor.
    """

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.function = function

    def __call__(self, shape: Any, dtype: Any = None) -> Any:
        """Returns the function's tensor."""
        return self.function(shape, dtype)
