import itertools
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Most of the time on JAX is spent compiling: what is tested runs once or twice. A pass
# of ./tools/test sets this to 0, as users have it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# And what one test, worker or run has compiled, the others read.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(__file__).parent.parent / ".pytest_cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()

# Few examples and always the same: JAX compiles every new shape anew. For more of them:
# pytest tests/contexts --hypothesis-profile=thorough
hypothesis.settings.register_profile(
    "suite",
    max_examples=8 if BACKEND == "jax" else 25,
    deadline=None,
    derandomize=True,
    database=None,
)
hypothesis.settings.register_profile("thorough", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("suite")


def once(*values):
    """A parameter that is tested on one backend: it takes the same path on each."""
    return pytest.param(*values, marks=pytest.mark.once)


def some_once(options, every):
    """All options: those of `every` on each backend, the rest once."""
    return [option if option in every else once(option) for option in options]


def pairs_once(*options, every):
    """All combinations of options: those of `every` on each backend, the rest once."""
    return [
        values if values in every else once(*values)
        for values in itertools.product(*options)
    ]


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def built_in_parts():
    """Removes what a test registers for the benchmark."""
    from keras_psp.benchmarks import _parts
    from keras_psp.benchmarks import register

    module = sys.modules[register.__module__]
    tables = [*module._TABLES.values(), _parts._added]
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    module._loaded.clear()


def pytest_report_header():
    return f"keras {keras.__version__} on {BACKEND}"
