"""The experiments by name, for the packages that look them up."""

from keras_psp.benchmarks.incremental_config import IncrementalConfig
from keras_psp.benchmarks.permuted_config import PermutedConfig
from keras_psp.benchmarks.rotating_config import RotatingConfig

EXPERIMENTS = {
    config.experiment: config
    for config in (PermutedConfig, RotatingConfig, IncrementalConfig)
}
