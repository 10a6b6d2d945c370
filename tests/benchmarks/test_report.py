import copy
import csv
import dataclasses
import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from keras_psp.benchmarks import EXPERIMENTS
from keras_psp.benchmarks import IncrementalConfig
from keras_psp.benchmarks import PermutedConfig
from keras_psp.benchmarks import RotatingConfig
from keras_psp.benchmarks import RunResult
from keras_psp.benchmarks import describe_system
from keras_psp.benchmarks import report
from keras_psp.benchmarks._plots import draw
from keras_psp.benchmarks._tables import group
from keras_psp.benchmarks.report import _csv
from keras_psp.benchmarks.report import _describe_run
from keras_psp.benchmarks.report import _line
from keras_psp.benchmarks.report import _markdown

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

# It reads results and writes files: no backend computes anything.
pytestmark = pytest.mark.once


def make_result(config, best=0.9, backend="jax"):
    matrix = [
        [best - 0.01 * (i - j) if j <= i else None for j in range(config.tasks)]
        for i in range(config.tasks)
    ]
    return RunResult(
        experiment=config.experiment,
        config=dataclasses.asdict(config),
        seed=config.seed,
        versions={"keras": "3"},
        backend=backend,
        device={"name": "cpu:0", "platform": "here", "cpus": 2},
        jit_compile=True,
        contexts={
            "bits_per_task": 800,
            "numbers_per_task": 100,
            "orthogonality_drift": 0.25 if config.learnable else None,
        },
        memory={"weights": 1_100_000, "consolidation": 0},
        examples={"train": [[9, 9]] * config.tasks, "test": [[5, 5]] * config.tasks},
        timings={
            "train_seconds": [9.0] + [0.2] * (config.tasks - 1),
            "test_seconds": [0.1] * config.tasks,
            "total_seconds": 10.0,
        },
        matrix=matrix,
        ahead=[None] + [0.6] * (config.tasks - 1),
    )


def permuted(tasks=11, **options):
    return PermutedConfig(tasks=tasks, steps=100, **options)


def save(folder, config, *args, **kwargs):
    folder.mkdir(parents=True)
    make_result(config, *args, **kwargs).save(folder)
    return folder


def test_rows_are_systems_and_tables_settings(tmp_path):
    runs = [
        save(tmp_path / "a0", permuted()),
        save(tmp_path / "a1", permuted(seed=1), best=0.8),
        save(tmp_path / "b", permuted(context="identity"), best=0.7),
        save(tmp_path / "c", permuted(context="identity", separate=True), best=0.99),
        save(tmp_path / "d", permuted(tasks=2, learnable=True)),
    ]
    found = report(runs)
    assert [*found.tables] == [
        "Permuted digits: 11 tasks of 100 steps",
        "Permuted digits: 2 tasks of 100 steps",
    ]
    first, second = found.tables.values()
    assert [row["system"] for row in first] == [  # Those that keep most first.
        "standard, a network for each task",
        "superposed (binary)",
        "standard",
    ]
    assert first[1] == {
        "system": "superposed (binary)",
        "runs": "2",
        "average %": "**80.0 ± 7.1**",  # The best, but for a network for each task.
        "task 0 %": "75.0 ± 7.1",
        "just trained %": "85.0 ± 7.1",
        "forgetting %": "5.5 ± 0.0",
        "backward transfer %": "-5.5 ± 0.0",
        "forward transfer %": "10.0 ± 0.0",
        "weights": "1.1 MB",
        "weights/task": "100 kB",
        "beside": "0 B",
        "context bits/task": "800",
        "drift": "—",
        "s/visit": "0.20",
        "backend": "jax",
    }
    assert second[0]["system"] == "superposed (binary, learned)"
    assert second[0]["average %"] == "89.5"  # There is none to be better than.
    assert second[0]["drift"] == "2.5e-01"


def test_what_runs_measured_afterwards_has_columns(tmp_path):
    config = permuted(tasks=2, rank=2, part_bits=4, guessed=9)
    found = {
        "in_few_bits": {"accuracy": [0.5, 0.7], "weights": 10},
        "guessed": {
            "images": 9,
            "by_image": {"found": [1.0, 1.0], "accuracy": [0.2, 0.3]},
            "by_batch": {"found": [1.0, 1.0], "accuracy": [0.3, 0.4]},
        },
    }
    result = dataclasses.replace(make_result(config), afterwards=found)
    (tmp_path / "a").mkdir()
    result.save(tmp_path / "a")
    save(tmp_path / "b", permuted(tasks=2), best=0.7)
    (rows,) = report([tmp_path / "a", tmp_path / "b"]).tables.values()
    columns = (
        *("system", "parts in few bits %"),
        *("task guessed by image %", "task guessed by 32 %"),
    )
    assert [[row[name] for name in columns] for row in rows] == [
        [
            "superposed (binary), rank 2 for each task, part bits 4, guessed 9",
            *("60.0", "25.0", "35.0"),
        ],
        ["superposed (binary)", "—", "—", "—"],
    ]


def test_no_two_tables_have_one_title(tmp_path):
    runs = [
        save(tmp_path / "a", permuted(learning_rate=1e-3)),
        save(tmp_path / "b", permuted(context="identity")),
        save(tmp_path / "c", permuted(batch_size=64)),
    ]
    found = report(runs)
    title = "Permuted digits: 11 tasks of 100 steps, batch size "
    assert [*found.tables] == [title + "128", title + "64"]
    assert [row["system"] for row in found.tables[title + "128"]] == [
        "superposed (binary), learning rate 0.001",
        "standard, learning rate 0.0001",
    ]
    assert (tmp_path / "permuted-digits-2-retention.png").exists()


def test_what_differs_from_the_published_setting_is_said(tmp_path):
    runs = [
        save(tmp_path / "a", permuted()),
        save(tmp_path / "b", permuted(units=64)),
        save(tmp_path / "c", PermutedConfig(source="mnist", tasks=50)),
    ]
    found = report(runs)
    text = (tmp_path / "report.md").read_text()
    assert "source digits (published: mnist); tasks 11 (published: 50)" in text
    assert "units 256, 64 (published: 256)" in text
    assert text.count("\nThe published setting.\n") == 1
    first = next(iter(found.tables.values()))
    assert [row["system"] for row in first] == [
        "superposed (binary), units 256",
        "superposed (binary), units 64",
    ]
    assert (tmp_path / "permuted-digits-sizes.png").exists()
    for config in EXPERIMENTS.values():
        fields = {field.name for field in dataclasses.fields(config)}
        assert set(config.published) <= fields


@pytest.mark.parametrize(
    "config, name",
    [
        (permuted(), "superposed (binary)"),
        (permuted(context="identity", head="multi"), "standard, a head for each task"),
        (
            permuted(complex_valued=True, context="complex", learnable=True),
            "complex-valued (complex, learned)",
        ),
        (
            permuted(context="identity", consolidation="ewc", strength=3.0),
            "standard + EWC (3)",
        ),
        (permuted(consolidation="si"), "superposed (binary) + SI"),
        (permuted(context="identity", joint=True), "standard, all tasks at once"),
        (
            RotatingConfig(assignment="mixture"),
            "superposed (binary), mixed contexts",
        ),
        (
            IncrementalConfig(norm="shared", context_over="channels"),
            "superposed (binary), over channels, shared norms",
        ),
    ],
)
def test_systems_have_names(config, name):
    assert describe_system(make_result(config)) == name


def test_the_page_is_whole_and_needs_nothing_else(tmp_path):
    runs = [
        save(tmp_path / "a", permuted()),
        save(tmp_path / "<b>", permuted(context="identity")),
    ]
    found = report(runs, output=tmp_path / "made" / "here")
    assert [path.name for path in found.paths] == [
        "report.html",
        "report.md",
        "runs.csv",
        "permuted-digits-retention.png",
        "permuted-digits-matrices.png",
        "permuted-digits-memory.png",
    ]
    assert sorted(os.listdir(tmp_path / "made" / "here")) == sorted(
        path.name for path in found.paths
    )
    page = found.paths[0].read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert page.count("data:image/png;base64,") == 3
    assert "<strong>85.0</strong>" in page and "**" not in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert 'name="viewport"' in page
    text = found.paths[1].read_text()
    for row in found.tables["Permuted digits: 11 tasks of 100 steps"]:
        assert "| " + " | ".join(row.values()) + " |" in text
    assert "learning_rate=0.0001" in text and "keras 3" in text
    with open(found.paths[2], newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["context"] for line in lines] == ["binary", "identity"]
    assert float(lines[0]["average_accuracy"]) == pytest.approx(0.85)


@pytest.mark.once
@pytest.mark.parametrize("sizes", [(50,), (2, 3), (1,), (4,) * 4])
def test_plots_are_pictures(tmp_path, sizes):
    from matplotlib.image import imread

    runs = [save(tmp_path / str(i), permuted(n, seed=i)) for i, n in enumerate(sizes)]
    paths = report(runs, output=tmp_path / "made").paths
    pictures = [path for path in paths if path.suffix == ".png"]
    assert pictures
    for path in pictures:
        pixels = imread(path)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20


def test_lines_are_the_means_of_the_runs():
    runs = [
        ("a", make_result(permuted(3), 0.9)),
        ("b", make_result(permuted(3, seed=1), 0.7)),
        ("c", make_result(permuted(3, context="identity"), 0.5)),
    ]
    figures = draw(group(runs, {})[0])
    assert set(figures) == {"retention", "matrices", "memory"}
    task_0, mean = figures["retention"].axes
    np.testing.assert_allclose(task_0.lines[0].get_ydata(), [80, 79, 78])
    np.testing.assert_allclose(mean.lines[0].get_ydata(), [80, 79.5, 79])
    np.testing.assert_allclose(mean.lines[1].get_ydata(), [50, 49.5, 49])
    point, other = (x.lines[0] for x in figures["memory"].axes[0].containers)
    np.testing.assert_allclose(point.get_xydata(), [[1.1, 79]])
    np.testing.assert_allclose(other.get_xydata(), [[1.1, 49]])


def test_long_names_stay_in_the_picture():
    options = {"consolidation": "gram", "schedule": "cosine", "learning_rate": 1e-3}
    runs = [
        ("a", make_result(permuted(3))),
        ("b", make_result(permuted(3, context="fast_rotation", **options), 0.7)),
        ("c", make_result(permuted(3, context="identity", **options), 0.5)),
        ("d", make_result(permuted(3, units=8, **options), 0.5)),
    ]
    for name, figure in draw(group(runs, {})[0]).items():
        figure.canvas.draw()
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, name
            assert box.y0 >= 0, name


def test_a_run_or_a_folder_of_runs(tmp_path):
    run = save(tmp_path / "runs" / "one", permuted(2))
    found = report([run])
    assert {path.parent for path in found.paths} == {run}
    report([run / "result.json"])  # It is made from results and may be made again.
    save(tmp_path / "runs" / "deep" / "two", permuted(2, context="identity"))
    found = report([tmp_path / "runs"])
    (rows,) = found.tables.values()
    assert len(rows) == 2
    assert {path.parent for path in found.paths} == {tmp_path / "runs"}


def test_damaged_runs_are_named_and_the_others_reported(tmp_path):
    good = save(tmp_path / "good", permuted(2))
    bad = save(tmp_path / "bad", permuted(2, seed=1))
    (bad / "result.json").write_text("{")
    (tmp_path / "unfinished").mkdir()
    found = report([good, bad, tmp_path / "unfinished"])
    (rows,) = found.tables.values()
    assert [row["runs"] for row in rows] == ["1"]
    assert len(found.left_out) == 2
    for reason, name in zip(found.left_out, ("bad/result", "unfinished"), strict=True):
        assert name in reason
        assert reason in (tmp_path / "report.md").read_text()
    assert "unfinished" in (tmp_path / "report.html").read_text()
    with pytest.raises(FileNotFoundError, match="damaged: .*bad"):
        report([bad])
    assert os.listdir(bad) == ["result.json"]


def test_bad_runs(tmp_path):
    run = save(tmp_path / "run", permuted(2))
    with pytest.raises(ValueError, match="at least one run"):
        report([])
    with pytest.raises(ValueError, match="named once"):
        report([run, run / "result.json"])
    with pytest.raises(FileNotFoundError, match="other"):
        report([run, tmp_path / "other"])
    save(tmp_path / "again", permuted(2))
    with pytest.raises(ValueError, match="same config and seed.*run' and '.*again'"):
        report([run, tmp_path / "again"])
    assert os.listdir(run) == ["result.json"]


ODD = (None, [], {}, [1], {"a": 1}, "", "../x", -1, 0.5, True, 10**400, float("nan"))


def odd_contents():
    """Results of which one thing is not as a run writes it, by what it is."""
    good = json.loads(json.dumps(dataclasses.asdict(make_result(permuted(2)))))
    places = [(good, name) for name in good]
    for name in ("config", "device", "contexts", "memory", "examples", "timings"):
        places += [(good[name], inner) for inner in good[name]]
    places += [(good["matrix"], 1), (good["matrix"][1], 0), (good["ahead"], 1)]
    for owner, name in places:
        right = owner[name]
        for value in ODD:
            owner[name] = value
            yield f"{name}={value!r:.30}", copy.deepcopy(good)
        owner[name] = right
        if isinstance(owner, dict):
            del owner[name]
            yield f"no {name}", copy.deepcopy(good)
            owner[name] = right


def test_an_odd_result_is_damaged_or_reported(tmp_path):
    refused = []
    for what, content in odd_contents():
        path = tmp_path / "result.json"
        path.write_text(json.dumps(content))
        try:
            result = RunResult.load(path)
        except ValueError as error:
            assert "damaged" in str(error), what
            refused.append(what)
            continue
        # What `report()` makes of it, without the drawing.
        published = {name: config.published for name, config in EXPERIMENTS.items()}
        (one,) = group([("a", result)], published)
        assert one.rows() and re.fullmatch(r"[a-z0-9_-]+", one.slug), what
        assert _csv([_line("a", result)]) and _describe_run(result)
        assert _markdown([], [("a", _describe_run(result))], [])
    for what in ("config={}", "backend=None", "experiment=None", "device=None"):
        assert what in refused
    for what in ("matrix=[1]", "no tasks", "tasks='../x'", "seed=True", "0=nan"):
        assert what in refused


def test_odd_results_do_not_cost_the_report_of_the_others(tmp_path):
    good = save(tmp_path / "runs" / "good", permuted(2))
    text = (good / "result.json").read_text()
    odd = {
        "deep": "[" * 100_000,
        "text": '"[" and "]"',
        "bytes": b"\xff\xfe",
        "constant": text.replace("0.89", "NaN"),
        "no-config": json.dumps({**json.loads(text), "config": {}}),
    }
    for name, content in odd.items():
        (tmp_path / "runs" / name).mkdir()
        path = tmp_path / "runs" / name / "result.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "runs" / "folder" / "result.json").mkdir(parents=True)
    # A search that is no search.
    (tmp_path / "runs" / "search.json").write_text('{"space": 5}')
    found = report([tmp_path / "runs"])
    assert len(found.left_out) == len(odd) + 2
    (rows,) = found.tables.values()
    assert [row["runs"] for row in rows] == ["1"]


def test_a_report_writes_into_its_output_only(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    runs = []
    for i, experiment in enumerate((str(elsewhere / "x"), "../../elsewhere/x", "..")):
        run = save(tmp_path / "runs" / str(i), permuted(2))
        content = json.loads((run / "result.json").read_text())
        content["experiment"] = experiment
        content["config"]["source"] = "/" + experiment * 50
        (run / "result.json").write_text(json.dumps(content))
        runs.append(run)
    found = report(runs, output=tmp_path / "made" / "report")
    assert {path.parent for path in found.paths} == {tmp_path / "made" / "report"}
    assert not os.listdir(elsewhere)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "made", "runs"]
    assert len(found.tables) == 3 and not found.left_out
    assert len({*found.paths}) == len(found.paths)


def test_what_a_result_says_is_text(tmp_path):
    evil = "<script>alert(1)</script>|\n# =2+3 [x](http://y) `a` **b** $\\frac{"
    runs = []
    for i, context in enumerate((evil, "=1+1")):
        run = save(tmp_path / f"-{i} [bold]", permuted(2, seed=i))
        content = json.loads((run / "result.json").read_text())
        content["config"] |= {"context": context, "note": evil}
        content["device"]["name"] = evil
        content["backend"] = "@SUM(A1)\ud800"
        (run / "result.json").write_text(json.dumps(content))
        runs.append(run)
    report(runs, output=tmp_path / "made")
    text = (tmp_path / "made" / "report.md").read_text()
    page = (tmp_path / "made" / "report.html").read_text()
    for content in (text, page):
        assert "<script" not in content and "&lt;script&gt;" in content
    assert not re.search(r"(?<!\\)\]\(http", text)
    assert "\n# =2" not in text and "**b**" not in text
    lines = text.splitlines()
    (header,) = (line for line in lines if line.startswith("| system"))
    for line in lines[lines.index(header) + 2 :][:2]:
        assert len(re.findall(r"(?<!\\)\|", line)) == header.count("|")
    with open(tmp_path / "made" / "runs.csv", newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file))
    assert len(cells) == 3
    for row in cells:
        for cell in row:
            assert "\n" not in cell
            if cell.startswith(("=", "+", "-", "@")):
                float(cell)  # It is a number.


def test_a_report_for_a_paper(tmp_path):
    """Vectors, LaTeX and pandas; a band of one standard deviation around each line."""
    runs = [
        save(tmp_path / f"{context}-{seed}", permuted(context=context, seed=seed), best)
        for context in ("binary", "identity")
        for seed, best in enumerate((0.9, 0.8, 0.7))
    ]
    found = report(runs, tmp_path / "out", paper=True)
    names = {path.name for path in found.paths}
    for plot in ("retention", "matrices", "memory"):
        for kind, start in (("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")):
            path = tmp_path / "out" / f"permuted-digits-{plot}.{kind}"
            assert path.name in names and path.read_bytes().startswith(start)
    tex = (tmp_path / "out" / "report.tex").read_text()
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == 1
    assert r"superposed (binary) & 3 & \textbf{75.0 $\pm$ 10.0} & " in tex
    assert r"average \%" in tex and "1.1 MB \\\\\n" in tex
    command = (
        "keras-psp run permuted --tasks 11 --steps 100 --context identity "
        "--seeds 0,1,2 --backend jax --output runs/permuted-digits"
    )
    for name in ("report.tex", "report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert command in text and "keras-psp report runs/permuted-digits" in text
    frame = found.to_pandas()
    assert len(frame) == 6 and frame["average_accuracy"].max() == pytest.approx(0.85)
    assert "75.0 ± 10.0" in found._repr_html_()


def test_commands_say_which_parts_are_not_built_in(tmp_path):
    runs = [
        save(tmp_path / "a", permuted(context="identity")),
        save(tmp_path / "b", permuted()),
    ]
    path = runs[0] / "result.json"
    path.write_text(path.read_text().replace('"identity"', '"fl\\nips"'))
    report(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert r"# Add --parts and the file that registers &#39;fl\nips&#39;" in text
    report([runs[1]], tmp_path / "alone")
    assert "--parts" not in (tmp_path / "alone" / "report.html").read_text()


def test_bands_are_standard_deviations_and_lines_do_not_overlap(tmp_path):
    results = [
        (tmp_path, make_result(permuted(context=context, seed=seed), best))
        for context in ("binary", "identity")
        for seed, best in enumerate((0.9, 0.8, 0.7))
    ]
    (found,) = group(results, {})
    figure = draw(found)["retention"]
    axis = figure.axes[0]
    lines = [line.get_xydata() for line in axis.get_lines()]
    np.testing.assert_allclose(lines[0][:, 1], lines[1][:, 1])  # Equal, and yet:
    assert (abs(lines[0][:, 0] - lines[1][:, 0]) > 0.1).all()
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    mean = lines[0][0, 1]
    np.testing.assert_allclose([mean - 10, mean + 10], [70, 90])
    assert 90.0 in band.round(6) and 70.0 in band.round(6)
    memory = draw(found)["memory"].axes[0]
    low, high = memory.get_xlim()  # Of sizes that are equal.
    assert high / low > 2


def test_latex_is_escaped(tmp_path):
    result = make_result(permuted())
    result.config["source"] = r"50% of a_b & {c}~^\x"
    result.save(tmp_path)
    report([tmp_path], paper=True)
    tex = (tmp_path / "report.tex").read_text()
    assert r"50\% of a\_b \& \{c\}\textasciitilde{}\textasciicircum{}" in tex
    assert r"\textbackslash{}x" in tex


# What a browser says of a page in a window of each width.
MEASURE = """<script>
onload = () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument;
    const edge = page.documentElement.clientWidth;
    const isInside = (x) => x.closest(".table, .plot") === null;
    return {
      window: edge,
      page: page.documentElement.scrollWidth,
      beyond: [...page.body.querySelectorAll("*")].filter(
        (x) => isInside(x) && x.getBoundingClientRect().right > edge + 1
      ).length,
      scrolled: [...page.querySelectorAll(".table, .plot")].filter(
        (x) => x.scrollWidth > x.clientWidth
      ).length,
      pictures: [...page.images].filter((x) => x.naturalWidth > 0).length,
    };
  });
  document.body.textContent = `found ${JSON.stringify(found)} end`;
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason=f"None is installed of {BROWSERS}.")
def test_the_page_fits_a_phone_and_a_screen(tmp_path):
    """In a headless browser, at 420 and 1280 pixels: nothing is wider than the window.

    What is wide, tables and plots, scrolls within it.
    """
    options = {"consolidation": "gram", "schedule": "cosine", "learning_rate": 1e-3}
    runs = [
        save(tmp_path / "runs" / f"{i}-{seed}", permuted(seed=seed, **config))
        for i, config in enumerate(({}, {"context": "identity"}, options))
        for seed in range(2)
    ]
    (tmp_path / ("left-out-" * 20)).mkdir()
    report([*runs, tmp_path / ("left-out-" * 20)], output=tmp_path / "made")
    page = html.escape((tmp_path / "made" / "report.html").read_text())
    # Windows of browsers are not narrower than 500 pixels; frames are.
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{page}"></iframe>'
        for width in (420, 1280)
    )
    (tmp_path / "both.html").write_text(f"<body>{frames}{MEASURE}</body>")
    done = subprocess.run(
        [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,2000"),
            *("--virtual-time-budget=10000", str(tmp_path / "both.html")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(re.search("found (.*) end", done.stdout)[1])
    for each, width in zip(found, (420, 1280), strict=True):
        assert width - 30 < each["window"] <= width  # But for a scroll bar.
        assert each["page"] <= each["window"] and not each["beyond"], found
        assert each["pictures"] == 3
    assert found[0]["scrolled"] == 4 and found[1]["scrolled"] <= 1
