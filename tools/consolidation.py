"""Draws what consolidation adds to superposition, from runs of `keras-psp run`.

python tools/consolidation.py figure.png RUN...
"""

import sys

import numpy as np
from matplotlib.figure import Figure

from keras_psp.benchmarks import RunResult
from keras_psp.benchmarks import describe_system


def main(path, runs):
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for run in runs:
        result = RunResult.load(run)
        matrix = 100 * np.array(result.accuracy_matrix, "float64")
        tasks = np.arange(1, len(matrix) + 1)
        label = describe_system(result)
        so_far = [row[:k].mean() for k, row in zip(tasks, matrix, strict=True)]
        left.plot(tasks, so_far, label=label)
        right.plot(tasks, matrix[:, 0], label=label)
    left.set(title="all tasks so far, mean", xlabel="tasks learned")
    left.set(ylabel="accuracy, %")
    right.set(title="the first task", xlabel="tasks learned")
    right.legend(loc="lower left", frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
