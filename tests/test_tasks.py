"""Records of tasks and recipes: one of each is added and runs everywhere, stored names stay, numbers agree wherever they are shown."""
import ast
import re
import subprocess
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

import sftdpo
from sftdpo.claims import judge_claims
from sftdpo.cli import main
from sftdpo.config import Run, SettingsError, Stage, Study
from sftdpo.data import DataError, Example, load_prompts, load_task
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.store import read_examples, read_results
from sftdpo.plots import cell_comparison
from sftdpo.report import cell_lines, cells_of
from sftdpo.tables import cell_intervals, cells_table, with_cells
from sftdpo.tasks import PARAPHRASE, RECIPES, TASKS, Metric, Recipe, Recommended, register

inputs = Inputs(precision="fp32")


def run_name(run): return inputs.of(run).name


def test_a_function_that_is_named_gets_texts_too(monkeypatch):
    "At 8de1bc6d only one that is given itself did; a named one got the cells as they are."
    seen = []
    monkeypatch.setattr("sftdpo.data._pair_example", lambda id, **parts: seen.append((id, parts)) or Example(id, "?", "no", label=0))
    load_task("paraphrase", [dict(question1=1, question2=2.5, is_duplicate=i % 2) for i in range(20)])
    assert seen[1] == ("row-2", dict(question1="1", question2="2.5", label="1"))


def test_a_function_that_needs_a_label_is_named_where_rows_have_none(monkeypatch, tmp_path):
    "At 51c69630 this was a bare TypeError. The remedy works."
    (tmp_path / "new.csv").write_text("question1,question2\nA?,B?\n")
    monkeypatch.setattr("sftdpo.data._pair_example", lambda id, question1, question2, label: Example(id, question1, "no", label=0))
    with pytest.raises(DataError, match="new.csv: rows without label cannot be read, .* such as label=None"): load_prompts("paraphrase", tmp_path / "new.csv")
    monkeypatch.setattr("sftdpo.data._pair_example", lambda id, question1, question2, label=None: Example(id, question1, "no", label=0))
    assert [one.prompt for one in load_prompts("paraphrase", tmp_path / "new.csv").test] == ["A?"]


OWN = '''
"A task and a recipe of one's own: is the first number larger?"
import pandas as pd
from sftdpo.data import Example
from sftdpo.evaluate import Evaluation, predict
from sftdpo.measures.answers import with_interval
from sftdpo.tasks import Baseline, Metric, Recipe, Recommended, Task, pair_builders, register

def example(id, first, second, label):
    if label not in ("larger", "smaller"): raise ValueError(f"the label is {label!r}, not larger or smaller")
    return Example(id, f"{first} {second}\\n", "yes" if label == "larger" else "no", label=int(label == "larger"))

def negated(examples, seed, verbalizers, **others): return [verbalizers[1 - one.label] for one in examples]

def evaluate(model, tokenizer, data, examples, sampling, seed, precision):
    table = predict(model, tokenizer, data, examples, precision)
    table["right"] = table.correct.astype(float)
    return Evaluation(with_interval("right", table.right), table.drop(columns="correct"))

def baselines(data, examples, training, seed): return {"always_yes": sum(one.label for one in examples) / len(examples)}

register(Task("larger", "Pairs of numbers", "labels", Metric("right", "right answers", "right", share=True, change=True), evaluate,
              {"negated": negated} | pair_builders("swap"), {None: Recommended(8, 1, 1e-3, 1e-3, 1e-3, 1e-3)}, verbalizers=("no", "yes"),
              columns=dict(first=(), second=("second", "other"), label=()), example=example, baselines=baselines, beside=(Baseline("always_yes", "always yes", "right"),)))
register(Recipe("dpo-sft", ("dpo", "sft"), "the other order", after="dpo"))
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A module with a task and a recipe, imported here and known to new processes; a file of its data."
    (tmp_path / "own_larger.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SFTDPO_MODULES", "own_larger")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(sftdpo.__file__).parent.parent}")
    __import__("own_larger")
    rng = np.random.default_rng(0)
    pairs = [sorted(pair, reverse=i % 2 == 0) for i, pair in enumerate(rng.permutation(400).reshape(-1, 2).tolist()[:120])]
    rows = [f"{a},{b},{'larger' if a > b else 'smaller'}" for a, b in pairs]
    (tmp_path / "numbers.csv").write_text("First,other,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    yield tmp_path
    TASKS.pop("larger"), RECIPES.pop("dpo-sft"), sys.modules.pop("own_larger")


@pytest.mark.parametrize("words", [["plan", "--settings", "own.yaml"], ["train", "--task", "warm"], ["plan", "--recipes", "dpo-sft"]])
def test_a_name_that_a_module_would_register(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("backbone: bard\ntasks: [warm]\n")
    with pytest.raises(SystemExit): main(words)
    assert "name its module in the environment variable SFTDPO_MODULES" in capsys.readouterr().err


def test_a_task_and_a_recipe_of_ones_own_from_the_check_to_the_report(own, backbone, capsys):
    words = ["--data", str(own / "numbers.csv"), "--backbone", backbone]
    main(["data", "check", str(own / "numbers.csv"), "--task", "larger", "--backbone", backbone])
    assert "--tasks larger" in capsys.readouterr().out
    main(["compare", "--tasks", "larger", *words, "--recipes", "sft", "dpo", "dpo-sft", "--tunings", "full", "--train-size", "16",
          "--sft.precision", "fp32", "--dpo.precision", "fp32", "--out", str(own / "out")])
    shown = capsys.readouterr().out
    assert "right answers %" in shown and "against base" in shown and "dpo-sft full" in shown and "without training: always yes" in shown

    results, examples = read_results(own / "out"), read_examples(own / "out")
    assert {"right", "right_change", "baseline_always_yes"} <= set(results.metric) and set(results.recipe) == {"base", "sft", "dpo", "dpo-sft"}
    history = pd.read_csv(own / "out/runs" / results.run[results.recipe == "dpo-sft"].iloc[0] / "history.csv")
    assert list(history.kind.unique()) == ["dpo", "sft"]
    settings = (own / "out/runs" / results.run[results.recipe == "dpo"].iloc[0] / "settings.yaml").read_text()
    assert "rejected: negated" in settings
    assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", cells_table(results, "larger", examples).loc["dpo-sft full", "right answers %"])

    verdicts = {(one.claim, one.task): one for one in judge_claims(own / "out")}
    assert verdicts["C1", "larger"].verdict == "not asked" and verdicts["C2", "larger"].margin == 0.01

    main(["report", str(own / "out")])
    page = (own / "out/report.html").read_text(encoding="utf-8")
    assert "right answers" in page and "dpo-sft full" in page and "always yes" in page and "DPO → SFT" in page
    assert pd.read_csv(own / "out/report.tables/cells.csv").set_index("cell").loc["sft full", "mean"] == pytest.approx(examples[examples.recipe == "sft"].right.mean())


def test_new_processes_know_a_task_of_ones_own(own):
    "The command line lists it, and the columns of a file are recognised."
    (own / "bad.csv").write_text("first,second,label\n" + "1,2,smaller\n" * 9 + "3,4,perhaps\n", encoding="utf-8")
    asked = ["compare", "--help"], ["data", "check", str(own / "numbers.csv")], ["data", "check", str(own / "bad.csv")]
    calls = "".join(f"try: main({words!r})\nexcept SystemExit as end: print('ended', end.code or 0)\nelse: print('ended', 0)\n" for words in asked)
    done = subprocess.run([sys.executable, "-c", f"from sftdpo.cli import main\n{calls}"], capture_output=True, text=True)
    shown, good, bad = re.findall(r"(.*?)^ended (\d+)$", done.stdout, re.DOTALL | re.MULTILINE) or pytest.fail(done.stderr)
    assert "larger" in shown[0] and "dpo-sft" in shown[0]
    assert good[1] == "0" and "--tasks larger" in good[0], done.stderr
    assert bad[1] == "1" and "the label is 'perhaps', not larger or smaller" in bad[0]


def test_settings_name_the_tasks_and_recipes_there_are(own):
    assert Run(task="larger", data="numbers.csv", recipe="dpo-sft").stages[0].rejected == "negated"
    with pytest.raises(SettingsError, match="did you mean 'larger'"): Run(task="largr", data="numbers.csv")
    with pytest.raises(SettingsError, match="negated, swap"): Run(task="larger", data="numbers.csv", dpo=Stage("dpo", rejected="flip"))
    with pytest.raises(SettingsError, match="needs data of your own"): Run(task="larger")
    assert Run(task="larger", data="numbers.csv").sft == Stage("sft")
    assert [run.recipe for run in Study(tasks=("larger",), data="numbers.csv", recipes=("dpo-sft",)).runs()] == ["base", "dpo-sft", "dpo-sft"]


def test_a_search_of_a_recipe_of_ones_own_takes_over_the_first_rate(own, tmp_path):
    from sftdpo.engine.folder import StudyFolder
    from sftdpo.engine.search import search_rates
    study = Study(tasks=("larger",), data=str(own / "numbers.csv"), recipes=("dpo-sft",), tunings=("full",), train_size=16, search=dict(trials=3))
    asked = []
    def pretend(runs):
        for run in runs:
            asked.append(run)
            home = StudyFolder(tmp_path / "study").trials.run(run_name(run)).path
            home.mkdir(parents=True, exist_ok=True)
            (home / "sftdpo.json").write_text("{}")
            (home / "metrics.json").write_text(f'{{"right": {1 - abs(np.log10(run.stages[-1].learning_rate) + 3)}}}')
    chosen = search_rates(study, StudyFolder(tmp_path / "study"), inputs, pretend, say=lambda words: None)
    assert {(run.recipe, len(run.stages)) for run in asked} == {("dpo", 1), ("dpo-sft", 2)}
    assert {"larger dpo-sft full dpo.learning_rate", "larger dpo-sft full sft.learning_rate", "larger dpo-sft full dpo.beta"} <= set(chosen.cells)


@pytest.mark.parametrize("change, words", [
    (dict(answers="words"), "use 'labels', 'text' or 'pairs'"),
    (dict(primary=Metric("loss", "loss", "loss", better="lower")), "take its negative"),
    (dict(primary=Metric("score", "score", "score")), "say with `margin`"),
    (dict(primary=Metric("right", "right", share=True)), "name the column"),
    (dict(recommended={"bard": Recommended(8, 1, 1, 1, 1, 1)}), "under the key None"),
    (dict(rejected={}), "pair_builders"),
    (dict(columns={}, load=None), "give one of them"),
    (dict(columns=dict(one=(), other=()), example=None, verbalizers=(), load=None), "a function of a row"),
    (dict(name="paraphrase"), "replace=True"),
    (dict(name="a task"), "letters, digits"),
])
def test_a_record_that_cannot_work_is_refused(change, words):
    import dataclasses
    with pytest.raises(ValueError, match=re.escape(words)): register(dataclasses.replace(PARAPHRASE, **dict(name="mine") | change))
    assert list(TASKS) == ["paraphrase", "sonnet", "labels", "completions", "preferences"]


@pytest.mark.parametrize("recipe, words", [
    (Recipe("mine", ("sft", "sft"), "twice", after="sft"), "last_rate='second_sft_rate'"),
    (Recipe("mine", ("dpo", "sft"), "the other order"), "name the recipe of the stages ('dpo',)"),
    (Recipe("mine", (), "nothing"), "at least one"),
    (Recipe("mine", ("sft",), "a control", control_of="sftdpo"), "a registered recipe"),
    (Recipe("mine", ("sft",), "deeper", depth=(("sft",), ("dpo",))), "one per stage"),
])
def test_a_recipe_that_cannot_work_is_refused(recipe, words):
    with pytest.raises(ValueError, match=re.escape(words)): register(recipe)
    assert "mine" not in RECIPES


@pytest.mark.parametrize("study, task", [("smollm2-paraphrase", "paraphrase"), ("bard-sonnet", "sonnet")])
def test_table_figure_and_report_show_the_same_numbers(repository, study, task):
    folder = repository / "nbs/study/results" / study
    results, examples = read_results(folder), read_examples(folder)
    metric = TASKS[task].primary
    table = cells_table(results, task, examples)[metric.heading]
    report = {line["cell"]: line for line in cell_lines(cells_of(with_cells(results), with_cells(examples)), metric)}
    words = cell_comparison(cell_intervals(examples, metric.column), metric).alternative
    assert len(table) == len(report) > 5
    shown = 0
    for cell, text in table.items():
        mean, low, high = re.fullmatch(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", text).groups()
        assert report[cell][metric.title] == mean + metric.sign and report[cell]["95 % interval"] == f"{low} to {high}{metric.sign}"
        shown += (said := f"{cell} {mean}{metric.sign} ({low} to {high}{metric.sign})" in words)
        assert said or "and 1 more" in words
    assert shown >= len(table) - 1


@pytest.mark.parametrize("study", ["bard-sonnet", "smollm2-sonnet"])
def test_stored_sonnets_are_held_against_every_baseline(repository, study):
    "A study that lacks one would be asked less than the other, by the same rule."
    results = read_results(repository / "nbs/study/results" / study)
    runs = results[results["recipe"] == "base"].groupby("run")["metric"].agg(set)
    asked = {f"baseline_{one.name}" for one in TASKS["sonnet"].comparable_baselines()}
    assert len(runs) >= 5 and all(asked <= known for known in runs)


def test_the_readme_shows_what_is_stored(repository, monkeypatch):
    "Its figures are made by code from stored results; the text beside them has none."
    monkeypatch.chdir(repository / "nbs")
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: len(content))
    notebook, known, readme = nbformat.read("index.ipynb", as_version=4), {}, (repository / "README.md").read_text(encoding="utf-8")
    made = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown": assert not re.search(r"\d\.\d+ (%|times|points)|± ", cell.source), f"typed by hand: {cell.source}"
        if cell.cell_type != "code" or not re.match(r"#\| (echo: false|hide)\n", cell.source): continue
        printed, tree = StringIO(), ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) and "Markdown" in ast.unparse(tree.body[-1]) else None
        with redirect_stdout(printed): exec(compile(tree, "index.ipynb", "exec"), known)
        text = eval(ast.unparse(last), known).data if last else printed.getvalue()
        made += bool(text.strip())
        for line in text.strip().splitlines(): assert re.sub(r"\]\((?=(images|study|more)/)", "](nbs/", line.strip()) in readme, line
    assert made >= 4


def test_no_public_name_is_defined_in_two_modules():
    places = defaultdict(set)
    for file in Path(sftdpo.__file__).parent.rglob("*.py"):
        if file.stem.startswith("_"): continue
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [node.target.id] if isinstance(node, ast.AnnAssign) else \
                [target.id for target in node.targets if isinstance(target, ast.Name)] if isinstance(node, ast.Assign) else []
            for name in names:
                if not name.startswith("_"): places[name].add(file.stem)
    twice = {name: sorted(modules) for name, modules in sorted(places.items()) if len(modules) > 1}
    assert twice == {}
