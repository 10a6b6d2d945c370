"""Runs a suite on a Ray cluster of two nodes, and kills one of them in the middle.

KERAS_BACKEND=torch python tests/benchmarks/nodes.py --runs 12

fails if a run has no result, or another one than a serial run.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from ray.cluster_utils import Cluster

from keras_psp import benchmarks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=12)
    args = parser.parse_args()
    configs = [
        benchmarks.PermutedConfig(tasks=3, steps=20, units=32, depth=1, seed=seed)
        for seed in range(args.runs)
    ]
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    with tempfile.TemporaryDirectory() as folder:

        def kill():
            # In the middle: when some runs have ended and others are under way.
            while len(list(Path(folder).glob("*/result.json"))) < args.runs // 4:
                time.sleep(0.2)
            cluster.remove_node(second, allow_graceful=False)
            print("killed one of two nodes", flush=True)

        killer = threading.Thread(target=kill)
        killer.start()
        start = time.perf_counter()
        found = {}
        for config, result in benchmarks.run_suite(
            configs, folder, workers=2, address=cluster.address
        ):
            found[config.seed] = result
            seconds = time.perf_counter() - start
            print(f"{len(found)} of {args.runs}, {seconds:.0f} s", flush=True)
        killer.join()
    cluster.shutdown()
    for config in configs:
        serial = benchmarks.run(config)
        np.testing.assert_array_equal(found[config.seed].matrix, serial.matrix)
    print(f"{len(found)} results, equal to those of serial runs")


if __name__ == "__main__":
    main()
