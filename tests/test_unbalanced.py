"Where one label has most of the rows, macro F1 decides: in the check, the search, the tables, the verdicts, the report, the recommendation."
import dataclasses
import io
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest
from little import unbroken
from sklearn.metrics import f1_score

from sftdpo.config import Search, Stage, Study
from sftdpo.data import load_task
from sftdpo.engine.folder import StudyFolder
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.safe_files import read_json
from sftdpo.engine.store import read_examples, read_results, task_of
from sftdpo.measures.answers import macro_f1_parts
from sftdpo.reading.check import check_file
from sftdpo.report import write_report
from sftdpo.stats import interval
from sftdpo.study import compare
from sftdpo.tables import best_baseline, print_tables


def written(path, rows, of_second):
    "A file of labelled texts in which every so many rows has the second label."
    lines = [f"{'good' if i % of_second else 'poor'} row number {i},{'yes' if i % of_second else 'no'}" for i in range(rows)]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def study(tmp_path_factory, tokenizer):
    "A finished study of 120 rows, of which one in six has the rarer label, with searched rates."
    from tiny import tiny_model

    from sftdpo.model import save_policy
    home = tmp_path_factory.mktemp("unbalanced")
    backbone = str(save_policy(tiny_model("gpt2", tokenizer), tokenizer, home / "backbone"))
    stage = dict(epochs=1, batch_size=16, learning_rate=1e-3, precision="fp32", evaluations=0)
    one = Study("rare", tasks=("labels",), data=written(home / "rare.csv", 120, 6), backbone=backbone, recipes=("sft",), tunings=("full",), seeds=(0, 1),
                sft=Stage("sft", **stage), dpo=Stage("dpo", **stage), search=Search(trials=3, seeds=(900,), further=0), weights="best")
    folder = home / "study"
    compare(one, folder, progress=False, inputs=Inputs())
    return folder


def test_values_per_example_have_macro_f1_as_their_mean():
    rng = np.random.default_rng(0)
    for classes in (2, 3, 5):
        labels, said = rng.integers(classes, size=(2, 57))
        assert macro_f1_parts(labels, said).mean() == pytest.approx(f1_score(labels, said, average="macro"))


def test_intervals_of_macro_f1_hold_the_truth():
    "From 300 rows of which a sixth is rare; the truth is that of a million rows."
    def drawn(size, seed):
        rng = np.random.default_rng(seed)
        labels = (rng.random(size) < 1 / 6).astype(int)
        return labels, np.where(rng.random(size) < .8, labels, 1 - labels)
    truth, held = macro_f1_parts(*drawn(10**6, 0)).mean(), 0
    for seed in range(1, 301):
        found = interval(pd.DataFrame(dict(seed=0, id=range(300), value=macro_f1_parts(*drawn(300, seed)))))
        held += found.low <= truth <= found.high
    assert .915 <= held / 300 <= .98


@pytest.mark.parametrize("of_second, expected", [(6, "macro_f1"), (4, "accuracy"), (2, "accuracy")])
def test_the_training_rows_decide_which_metric_is_primary(tmp_path, of_second, expected):
    path = written(tmp_path / "rows.csv", 120, of_second)
    data = load_task("labels", path)
    assert data.record.primary.name == expected
    assert {fold: load_task("labels", path, folds=3, fold=fold).record.primary.name for fold in (1, 2, 3)} == dict.fromkeys((1, 2, 3), expected)
    assert ("macro F1 is the primary metric" in unbroken(check_file("labels", path))) == (expected == "macro_f1")


def test_the_search_chooses_by_macro_f1(study):
    trials = pd.read_csv(StudyFolder(study).search)
    assert set(trials["metric"]) == {"macro_f1"}
    homes = [StudyFolder(study).trials.run(name) for name in StudyFolder(study).trials.finished_runs() if "-sft-" in name]
    reached = [read_json(home.metrics)["macro_f1"] for home in homes]
    assert sorted(trials["score"]) == pytest.approx(sorted(reached))


def test_the_best_model_is_kept_by_macro_f1(study):
    names = set(read_results(study)["metric"])
    assert "validation_macro_f1" in names and "validation_accuracy" not in names and "macro_f1_change" in names


def test_tables_are_about_macro_f1_and_name_rare_labels(study):
    results, shown = read_results(study), io.StringIO()
    assert task_of(results).primary.name == "macro_f1" and best_baseline(results)[0].endswith("macro F1")
    with redirect_stdout(shown): print_tables(results, study)
    words = " ".join(shown.getvalue().split())
    assert "primary metric: macro F1, as one label has 83 % of the training rows" in words
    assert "labels with fewer than 10 judged rows, of which these results say little: no" in words, words
    examples = read_examples(study)
    means = examples.groupby("run").macro_f1.mean()
    stored = results[results["metric"] == "macro_f1"].set_index("run")["value"]
    assert means.to_dict() == pytest.approx(stored.to_dict())


@pytest.mark.usefixtures("undrawn")
def test_the_report_says_so(study):
    page = write_report(study).read_text(encoding="utf-8")
    assert "macro F1, as one label has 83 % of the training rows" in page and "fewer than 10 judged rows" in page


def constant_study():
    "Results in which every cell always gives the commonest label, of which 84 % of the rows have it, but full SFT knows the rare one too."
    lines, rows = [], []
    for recipe, tuning in (("base", "-"), *((recipe, tuning) for recipe in ("sft", "dpo", "sft-dpo", "sft-sft") for tuning in ("full", "lora"))):
        for seed in (0,) if recipe == "base" else range(5):
            run, rng = f"{recipe}-{tuning}-{seed}", np.random.default_rng(seed)
            labels = np.array([0] * 840 + [1] * 160)
            said = np.where(rng.random(1000) < .9, labels, 1 - labels) if (recipe, tuning) == ("sft", "full") else np.where(rng.random(1000) < .005, 1 - labels, 0)
            rows.append(pd.DataFrame(dict(run=run, task="labels", recipe=recipe, tuning=tuning, seed=seed, fold=0, id=[f"r{i}" for i in range(1000)], label=labels, prediction=said,
                                          correct=(labels == said).astype(float), macro_f1=macro_f1_parts(labels, said))))
            metrics = dict(accuracy=(labels == said).mean(), macro_f1=macro_f1_parts(labels, said).mean(), baseline_majority=.84, baseline_majority_f1=f1_score(labels, labels * 0, average="macro"))
            lines += [dict(run=run, task="labels", backbone="b", data="d", train_size=1000, recipe=recipe, tuning=tuning, seed=seed, fold=0, split="test", metric=name, value=value) for name, value in metrics.items()]
    return pd.DataFrame(lines), pd.concat(rows, ignore_index=True)


def test_a_constant_answer_is_not_strong_by_macro_f1():
    from sftdpo.verdicts.evidence import Evidence
    from sftdpo.verdicts.gates import strong
    from sftdpo.verdicts.verdict import Margins
    results, examples = constant_study()
    shares = results.drop_duplicates("run").assign(metric="majority_share", value=.84)
    evidence = Evidence(pd.concat([results, shares]), examples, "labels", Margins())
    assert evidence.values(("sft", "full"))["value"].mean() == pytest.approx(results[(results.recipe == "sft") & (results.tuning == "full") & (results.metric == "macro_f1")].value.mean())
    assert strong(evidence, [("sft", "full")])[-1].passed and not strong(evidence, [("sft", "lora")])[-1].passed
    balanced = dataclasses.replace(evidence, results=results)
    assert balanced.record.primary.name == "accuracy" and balanced.values(("sft", "lora"))["value"].isin([0, 1]).all()


def test_verdicts_are_about_macro_f1():
    from sftdpo.claims import judge_results
    results, examples = constant_study()
    shares = results.drop_duplicates("run").assign(metric="majority_share", value=.84)
    means = results[results.metric == "macro_f1"].groupby(["recipe", "tuning"])["value"].mean()
    by_f1, by_accuracy = (next(one for one in judge_results(table, examples, claims=["C3"]) if one.where == "sft") for table in (pd.concat([results, shares]), results))
    assert by_f1.effects[0][1].mean == pytest.approx(means["sft", "full"] - means["sft", "lora"])
    assert any("Decided by macro F1" in note for note in by_f1.notes) and not any("macro F1" in note for note in by_accuracy.notes)
    assert by_accuracy.effects[0][1].mean < by_f1.effects[0][1].mean / 3


def test_a_study_that_was_begun_before_goes_on_by_accuracy(study):
    "Results without the share of the commonest label are judged as they were."
    results = read_results(study)
    assert task_of(results[results["metric"] != "majority_share"]).primary.name == "accuracy"
