import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import BACKEND
from rich.console import Console

import keras_psp
from keras_psp import cli
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import run
from keras_psp.benchmarks._progress import RunProgress
from keras_psp_cli.main import import_quietly
from keras_psp_cli.parser import read_options

RUN = ["run", "permuted", "--tasks", "2", "--steps", "6", "--units", "8"]


def test_run_report_list(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(RUN) == 0
    out = capsys.readouterr().out
    folder = f"runs/permuted-digits-binary-tasks-2-steps-6-units-8-{BACKEND}"
    assert re.search(r"\(binary\) on .*: \d+\.\d % on average over 2 tasks", out)
    assert f"written: {folder}/result.json" in out
    content = json.loads((tmp_path / folder / "result.json").read_text())
    assert content["config"]["steps"] == 6
    assert cli.main([*RUN, "--context", "identity", "--learning-rate", "1e-3"]) == 0
    other = folder.replace("binary", "identity").replace(
        "-units-8", "-learning-rate-0.001-units-8"
    )
    assert os.path.exists(f"{other}/result.json")
    capsys.readouterr()
    assert cli.main(["report", folder, other]) == 0
    out = capsys.readouterr().out
    for name in ("Permuted digits", "standard", "binary", "average", "forgetting"):
        assert name in out  # Whole.
    for name in ("report.html", "report.md", "permuted-digits-retention.png"):
        assert f"written: {tmp_path / 'runs' / name}" in out
        assert (tmp_path / "runs" / name).exists()
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "contexts:    identity, binary, hadamard, complex, " in out
    assert "mnist" in out and "paper-small" in out
    assert "formats:     tf_saved_model, onnx, " in out


@pytest.mark.once
def test_brackets_in_a_path_are_printed(tmp_path, capsys):
    folder = tmp_path / "[bold]my runs :smile:[/bold]"
    assert cli.main([*RUN, "--output", str(folder / "one")]) == 0
    out = capsys.readouterr().out
    assert f"written: {folder}/one/result.json\n" in out
    assert f"keras-psp report '{folder}/one'\n" in out  # As a shell reads it.
    (folder / "two").mkdir()
    (folder / "two" / "result.json").write_text("{}")
    assert cli.main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"written: {folder}/report.html\n" in out
    assert f"left out: The result is damaged: '{folder}/two/result.json'" in out


@pytest.mark.once
def test_a_suite_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    configs = [
        PermutedConfig(tasks=2, steps=6, units=8, context=context)
        for context in ("identity", "binary")
    ]
    monkeypatch.setitem(cli.benchmarks.SUITES, "paper-small", configs)
    folder = tmp_path / "runs" / "paper-small"
    assert cli.main(["run", "--suite", "paper-small"]) == 0
    out = capsys.readouterr().out
    assert "1 of 2\nstandard on" in out and "2 of 2\nsuperposed (binary) on" in out
    names = {f"{config.name}-{BACKEND}" for config in configs}
    assert set(os.listdir(folder)) == names
    before = {name: (folder / name / "result.json").read_bytes() for name in names}
    assert cli.main(["run", "--suite", "paper-small"]) == 0
    for name in names:
        assert (folder / name / "result.json").read_bytes() == before[name]
    capsys.readouterr()
    assert cli.main(["report", "runs/paper-small"]) == 0
    assert f"written: {folder / 'report.html'}" in capsys.readouterr().out


@pytest.mark.once
def test_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*RUN, "--seeds", "2", "--output", "out"]) == 0
    out = capsys.readouterr().out
    assert "2 of 2\n" in out
    assert re.search(r"\n\d+\.\d ± \d+\.\d % on average over 2 seeds\n", out)
    name = f"permuted-digits-binary-tasks-2-steps-6-units-8-{BACKEND}"
    other = name.replace("steps-6-", "steps-6-seed-1-")
    assert {*os.listdir("out")} == {name, other}
    # What is there is kept, and more seeds are added.
    before = (tmp_path / "out" / name / "result.json").read_bytes()
    assert cli.main([*RUN, "--seeds", "0,5", "--output", "out"]) == 0
    assert (tmp_path / "out" / name / "result.json").read_bytes() == before
    assert len(os.listdir("out")) == 3
    assert cli.main(["report", "out", "--paper"]) == 0
    out = capsys.readouterr().out
    assert f"written: {tmp_path / 'out' / 'report.tex'}" in out
    # The command under the figures makes the same runs.
    commands = (tmp_path / "out" / "report.md").read_text()
    command = re.search("<pre>keras-psp (run .*)", commands)[1]
    assert cli.main(shlex.split(command)) == 0
    made = tmp_path / "runs" / "permuted-digits"
    assert {path.name for path in made.iterdir()} == {
        path.name for path in (tmp_path / "out").iterdir() if path.is_dir()
    }


@pytest.mark.once
def test_a_run_resumes(tmp_path, capsys):
    arguments = [*RUN, "--output", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert cli.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert cli.main([*arguments, "--resume", "--seed", "1"]) == 2
    assert "seed=0 there and seed=1 here" in capsys.readouterr().err


@pytest.mark.once
def test_folder_is_overwritten_when_asked(tmp_path, capsys):
    arguments = [*RUN, "--output", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert cli.main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "run" / "result.json").read_bytes() == before
    assert cli.main([*arguments, "--overwrite", "--tensorboard", "--learnable"]) == 0
    assert sorted(os.listdir(tmp_path / "run")) == ["result.json", "tensorboard"]
    assert (tmp_path / "run" / "result.json").read_bytes() != before


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["rum"], "Did you mean 'run'"),
        (["run", "permuting"], "Did you mean 'permuted'"),
        ([*RUN, "--source", "fashion"], "Did you mean 'fashion_mnist'"),
        ([*RUN, "--context", "binry"], "Did you mean 'binary'"),
        ([*RUN, "--optimizer", "rmsprob"], "Did you mean 'rmsprop'"),
        ([*RUN, "--backend", "tensorflwo"], "Did you mean 'tensorflow'"),
        ([*RUN, "--tasks", "0"], "tasks=0"),
        ([*RUN, "--tasks", "1.5"], "invalid int value"),
        ([*RUN, "--batch-size", "100000"], "at most 1438"),
        (["report", "no-such-run"], "no-such-run"),
        (["export", "no-such.keras", "model", "--task", "paris"], "no-such.keras"),
        (["export", "a.keras", "b", "--format", "onx"], "Did you mean 'onnx'"),
        (["run"], "Name an experiment, one of permuted, rotating"),
        (["run", "--suite", "papr"], "Did you mean 'paper'"),
        (["run", "--suite", "paper", *RUN[1:]], "permuted and --suite paper"),
        (["run", "--workers", "2", *RUN[1:]], "go with --suite or --seeds"),
        ([*RUN, "--joint", "--separate"], "separate and joint"),
        ([*RUN, "--consolidation", "ewk"], "Did you mean 'ewc'"),
        ([*RUN, "--strength", "-1"], "strength=-1.0"),
        ([*RUN, "--seeds", "0,0"], "different numbers"),
        ([*RUN, "--seeds", "1,01"], "different numbers"),
        ([*RUN, "--seeds", "-3"], "0,1,2"),
        ([*RUN, "--seeds", "0"], "must be a seed"),
        ([*RUN, "--seeds", "2", "--seed", "3"], "--seed or --seeds"),
        ([*RUN, "--parts", "none.py"], "none.py"),
        ([*RUN, "--task", "3"], "Did you mean '--tasks'"),
        ([*RUN, "--unit", "3"], "--training, --units. Did you mean '--units'"),
    ],
)
def test_bad_input_is_told(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(arguments)
    except SystemExit as stop:  # argparse's own.
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not [name for _, _, files in os.walk(tmp_path) for name in files]


@pytest.mark.once
def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.strip() == keras_psp.__version__


@pytest.mark.once
def test_interrupted(monkeypatch, capsys, tmp_path):
    """The message says what is saved, and its command continues there."""

    begin = RunProgress.on_epoch_begin

    def interrupt(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    folder = tmp_path / "my run"
    with monkeypatch.context() as patch:
        patch.setattr(RunProgress, "on_epoch_begin", interrupt)
        assert cli.main([*RUN, "--output", str(folder), "--overwrite"]) == 130
        err = capsys.readouterr().err
        assert f"interrupted: 1 of 2 visits to tasks are saved in {folder}\n" in err
        assert cli.main([*RUN, "--output", str(folder)]) == 2
        assert "with --resume" in capsys.readouterr().err
        config = PermutedConfig(tasks=2, steps=6, units=8)
        patch.setattr(cli.benchmarks, "SUITES", {"paper-small": [config]})
        suite = ["run", "--suite", "paper-small", "--output", str(tmp_path / "s")]
        assert cli.main(suite) == 130
        assert "0 of 1 runs are saved in" in capsys.readouterr().err
    command = shlex.split(re.search("continue: keras-psp (.*)", err)[1])
    assert cli.main(command) == 0
    assert (folder / "result.json").exists()


@pytest.mark.once
def test_help_and_words_that_are_not_known_import_no_keras():
    code = (
        "import sys; from keras_psp_cli import main; "
        "main([]); main(['rnu']); main(['run', 'permuted', '--task']); "
        "print({'keras', 'keras_psp', 'numpy', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr
    assert "Did you mean 'run'" in done.stderr and "'--tasks'" in done.stderr


@pytest.mark.once
def test_options_are_those_of_the_configs():
    """If it fails, run `python tools/write_options.py`."""
    written, found = read_options(), json.loads(json.dumps(cli.describe_options()))
    for options in (written, found):
        for experiment in options["experiments"].values():
            for option in experiment["options"]:
                if option["name"] == "optimizer":  # As the installed Keras has them.
                    assert "rmsprop" in option.pop("names")
    assert written == found


@pytest.mark.once
def test_completion(tmp_path):
    def complete(line):
        found = tmp_path / "found"
        environment = {
            **{"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"},
            **{"_ARGCOMPLETE_IFS": " ", "_ARGCOMPLETE_STDOUT_FILENAME": str(found)},
            **{"COMP_LINE": line, "COMP_POINT": str(len(line))},
        }
        command = [sys.executable, "-m", "keras_psp_cli"]
        subprocess.run(command, env={**os.environ, **environment}, check=True)
        return found.read_text().split()

    assert complete("keras-psp r") == ["run", "report"]
    assert "--consolidation" in complete("keras-psp run permuted --con")
    assert complete("keras-psp run permuted --context bi") == ["binary"]


@pytest.mark.once
def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "keras_psp.cli", None)
    monkeypatch.delattr(keras_psp, "cli")
    assert cli.main(["list"]) == 2
    assert 'pip install "keras-psp[bench]"' in capsys.readouterr().err


@pytest.mark.once
@pytest.mark.parametrize("arguments", [[], ["--help"], ["run", "permuted", "--help"]])
def test_help_teaches(arguments, capsys):
    try:
        assert cli.main(arguments) == 0
    except SystemExit as stop:
        assert stop.code == 0
    out = capsys.readouterr().out
    assert "--context" in out and "identity" in out


@pytest.mark.once
def test_another_backend_in_its_own_process(tmp_path):
    other = "torch" if BACKEND == "jax" else "jax"
    arguments = [*RUN, "--backend", other, "--output", str(tmp_path / "run")]
    command = [sys.executable, "-m", "keras_psp.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"(binary) on {other}" in done.stdout
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["backend"] == other


@pytest.mark.once
def test_missing_backend_is_named(monkeypatch, capsys):
    other = "torch" if BACKEND == "jax" else "jax"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main([*RUN, "--backend", other]) == 2
    assert f"pip install {other}" in capsys.readouterr().err


@pytest.mark.once
def test_missing_tensorboard_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main([*RUN, "--tensorboard", "--output", str(tmp_path / "run")]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err


@pytest.mark.once
def test_missing_matplotlib_is_named(monkeypatch, capsys, tmp_path):
    run = str(tmp_path / "run")
    assert cli.main([*RUN, "--output", run]) == 0
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["report", run]) == 2
    assert 'pip install "keras-psp[plots]"' in capsys.readouterr().err
    assert os.listdir(run) == ["result.json"]


@pytest.mark.once
def test_progress_on_a_terminal_and_none_elsewhere():
    def shown(**options):
        with open(os.devnull, "w") as nowhere:
            console = Console(file=nowhere, record=True, width=100, **options)
            callback = RunProgress(2, 6, console)
            config = PermutedConfig(tasks=2, steps=6, units=8)
            run(config, callbacks=[callback])
            return console.export_text()

    text = shown(force_terminal=True)
    assert "task 2/2" in text and "step 6/6" in text
    assert re.search(r"\d+\.\d % on tasks seen", text)
    assert shown(force_terminal=False).strip() == ""


@pytest.mark.once
def test_tensorflows_words_about_the_machine_are_not_shown(
    tmp_path, monkeypatch, capfd
):
    said = [
        "WARNING: All log messages before absl::InitializeLog() is called are ...",
        "I0000 00:00:1796025005.877128     455 port.cc:153] oneDNN operations are on.",
        "what else is said",
    ]
    code = "import os\n" + "\n".join(f"os.write(2, {x.encode()!r})" for x in said)
    code = code.replace("')", "\\n')")
    (tmp_path / "talks_on_import.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import_quietly(["talks_on_import"])
    assert capfd.readouterr().err == "what else is said\n"
    (tmp_path / "fails_on_import.py").write_text(code + "\n1 / 0")
    with pytest.raises(ZeroDivisionError):
        import_quietly(["fails_on_import"])
    os.write(2, b"and after it\n")
    assert capfd.readouterr().err == "what else is said\nand after it\n"
