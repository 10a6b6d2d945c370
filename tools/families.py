"""All context families on permuted MNIST: one table from many runs of `keras-psp run`.

Runs that have their result.json are skipped, so that an interrupted call goes on where
it was; --report-only makes the table of what is there.

    TFDS_DATA_DIR=... python tools/families.py --output runs/families --jobs 2

The last column comes from `tools/cost.py --network`, by --cost cost.json.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

FIXED = {
    "identity": {"context": "identity"},
    "binary": {"context": "binary"},
    "hadamard": {"context": "hadamard"},
    "complex": {"context": "complex"},
    "powers": {"context": "powers"},
    "rotation": {"context": "rotation"},
    "fast_rotation": {"context": "fast_rotation"},
    "complex-valued": {"context": "complex", "complex_valued": True},
    "householder": {"context": "householder"},
    "permutation": {"context": "permutation"},
    "signed_permutation": {"context": "signed_permutation"},
}
LEARNED = {
    f"{name}-learned": {**FIXED[name], "learnable": True}
    for name in (
        "binary",
        "hadamard",
        "complex",
        "powers",
        "fast_rotation",
        "complex-valued",
        "householder",
    )
}
NETWORKS = {**FIXED, **LEARNED}
SETTINGS = {
    "source": "mnist",
    "steps": 1000,
    "units": 256,
    "depth": 3,
    "batch_size": 128,
    "optimizer": "rmsprop",
    "learning_rate": 1e-4,
}
# How many tasks, and the seed.
RUNS = ((10, 0), (10, 1), (10, 2), (50, 0))


def main():
    """Runs what is missing, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="at a time, a core each")
    parser.add_argument("--cost", type=Path, help="of `tools/cost.py --network`")
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--only", choices=("fixed", "learned", "all"), default="all")
    parser.add_argument("--families", nargs="+", metavar="FAMILY")
    parser.add_argument("--steps", type=int, default=SETTINGS["steps"])
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    networks = {"fixed": FIXED, "learned": LEARNED, "all": NETWORKS}[args.only]
    configs = {
        _name(network, tasks, seed): {
            **SETTINGS,
            **options,
            "steps": args.steps,
            "tasks": tasks,
            "seed": seed,
        }
        for group in (FIXED, LEARNED)
        for tasks, seed in RUNS
        for network, options in group.items()
        if network in networks
        and (not args.families or options["context"] in args.families)
    }
    args.output.mkdir(parents=True, exist_ok=True)
    failed = [] if args.report_only else _run_all(configs, args)
    text = _table(configs, args)
    (args.output / "families.md").write_text(text)
    print(text)
    if failed:
        sys.exit("Failed: " + ", ".join(failed))


def _name(network, tasks, seed):
    return f"{tasks}-tasks-{network}-seed-{seed}"


def _run_all(configs, args):
    """Runs what has no result yet and returns the names of what failed."""
    missing = [name for name in configs if not _load(name, configs[name], args)]
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)))

    def pin():
        # This thread, and so the processes that it starts.
        if args.jobs > 1:
            os.sched_setaffinity(0, {next(cores)})

    def run(name):
        print(f"{name} ({missing.index(name) + 1} of {len(missing)}) ...", flush=True)
        start = time.perf_counter()
        status = _run(name, configs[name], args)
        seconds = time.perf_counter() - start
        result = None if status else _load(name, configs[name], args)
        if result is None:
            print(f"{name}: FAILED, see {args.output / name}.log", flush=True)
            return name
        accuracy = 100 * result["average_accuracy"]
        print(f"{name}: {accuracy:.1f} % in {seconds:.0f} s", flush=True)
        return None

    with concurrent.futures.ThreadPoolExecutor(args.jobs, initializer=pin) as pool:
        return [name for name in pool.map(run, missing) if name]


def _run(name, config, args):
    command = [sys.executable, "-m", "keras_psp.cli", "run", "permuted", "--overwrite"]
    command += ["--output", str(args.output / name)]
    for option, value in config.items():
        command.append("--" + option.replace("_", "-"))
        command += [] if value is True else [str(value)]
    environment = {
        **os.environ,
        "KERAS_BACKEND": args.backend,
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with open(args.output / f"{name}.log", "w") as log:
        return subprocess.call(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _load(name, config, args):
    """The content of the run's result.json, `None` if there is none yet."""
    path = args.output / name / "result.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    expected = {"backend": args.backend, **config}
    found = {"backend": result["backend"], **result["config"]}
    for option, value in expected.items():
        if found[option] != value:
            sys.exit(f"{path} is of {option}={found[option]}, not {value}.")
    return result


def _table(configs, args):
    results = {name: _load(name, config, args) for name, config in configs.items()}
    results = {name: result for name, result in results.items() if result}
    step_times = _step_times(args)
    lengths = sorted({tasks for tasks, _ in RUNS})
    header = ["family", "contexts"]
    for tasks in lengths:
        header += [f"average, {tasks} tasks (%)", f"task 0, {tasks} tasks (%)"]
    header += ["bits per task", "orthogonality drift", "step time / plain Dense"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for network, options in NETWORKS.items():
        names = [_name(network, tasks, seed) for tasks, seed in RUNS]
        if not any(name in configs for name in names):
            continue
        learned = "learnable" in options
        cells = [network.removesuffix("-learned"), "learned" if learned else "fixed"]
        found = [results[name] for name in names if name in results]
        for tasks in lengths:
            # The first tasks of a long run are those of a short one of the same seed.
            rows = {
                result["seed"]: result["matrix"][tasks - 1]
                for result in found
                if len(result["matrix"]) >= tasks
            }.values()
            cells += [
                _percent([statistics.mean(row[:tasks]) for row in rows]),
                _percent([row[0] for row in rows]),
            ]
        contexts = [result["contexts"] for result in found]
        drifts = [context["orthogonality_drift"] for context in contexts]
        cells += [
            str(contexts[0]["bits_per_task"]) if contexts else "—",
            f"{max(drifts):.1e}" if learned and drifts else "—",
            f"{step_times[network]:.2f}" if network in step_times else "—",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _notes(results, step_times, args), ""])


def _percent(accuracies):
    if not accuracies:
        return "—"
    percents = [100 * accuracy for accuracy in accuracies]
    text = f"{statistics.mean(percents):.1f}"
    if len(percents) > 1:
        text += f" ± {statistics.stdev(percents):.1f} (n={len(percents)})"
    return text


def _step_times(args):
    """The training steps' times relative to plain Dense, by network."""
    if not args.cost:
        return {}
    part = json.loads(args.cost.read_text())["network"].get(args.backend, {"times": []})
    return {row["name"]: row["ratio"] for row in part["times"]}


def _notes(results, step_times, args):
    packages = ("python", "keras-psp", "keras", "numpy", args.backend)
    runs = {
        ", ".join(f"{name} {result['versions'][name]}" for name in packages)
        + "; {name} of {platform}, {cpus} CPUs".format(**result["device"])
        for result in results.values()
    }
    pinned = f", {args.jobs} runs at a time, one core each" if args.jobs > 1 else ""
    settings = ", ".join(
        f"{name}={value}" for name, value in {**SETTINGS, "steps": args.steps}.items()
    )
    notes = [
        "Permuted images: test accuracy after the last task, mean of all tasks and of "
        "task 0, ± sample standard deviation over n seeds.",
        f"{len(results)} runs{pinned}; 50 tasks: seed 0.",
        f"Settings: {settings}.",
        *(f"Made by: {run}." for run in sorted(runs)),
        "Bits per task: of all layers. Drift: the largest of all layers and runs. "
        "complex-valued: a complex-valued network, twice the weights.",
    ]
    if step_times:
        notes.append(f"Step times: `tools/cost.py --network`, {args.backend}.")
    return " ".join(notes)


if __name__ == "__main__":
    main()
