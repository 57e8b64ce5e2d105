"""How models are judged, through files and the command line: nothing is measured by length, memory or luck alone."""
import json

import pandas as pd
import pytest

from sftdpo.cli import main


def judged(capsys, *words):
    "What `sftdpo evaluate` prints, as numbers by name."
    main(["evaluate", *map(str, words)])
    found = dict(line.split() for line in capsys.readouterr().out.splitlines() if len(line.split()) == 2)
    return {name: float(value) for name, value in found.items() if name != "written:"}


@pytest.fixture
def pairs(tmp_path):
    "A folder of question pairs, two of whose four judged ones share a question with training."
    row = lambda i, a, b, label: f"{i}\t{a}\t{b}\t{label}\n"
    header, folder = "id\tsentence1\tsentence2\tis_duplicate\n", tmp_path / "pairs"
    folder.mkdir()
    (folder / "train.tsv").write_text(header + "".join(
        row(i, "Who is 3?" if i < 15 else f"Who is {i + 100}?", f"What is {i + 100}?" if i < 15 else "What is 4?", i % 2) for i in range(30)))
    (folder / "dev.tsv").write_text(header + row(100, "who is  3?", "Where is he?", 1) + row(101, "Why?", "When?", 0)
                                    + row(102, "Why not?", "When then?", 1) + row(103, "A?", "What is 4?", 1))
    return folder


def test_data_check_counts_pairs_that_share_a_question(pairs, capsys):
    "Finding 13. At 72cf482 the check says nothing of them."
    main(["data", "check", str(pairs), "--task", "paraphrase"])
    assert "2 of 4 judged pairs (50.0%) share a question with a training pair; 100% of them are duplicates, 50% of the others" in capsys.readouterr().out


def test_data_check_names_six_words_from_training_texts(tmp_path, capsys):
    "Finding 13. At 72cf482 the check says nothing of them."
    line, folder = "I love thee in such sort, as thou being mine", tmp_path / "poems"
    rows = [(f"Poem {i}:", f"Number {i}, let me confess: {line}.") for i in range(40)]
    csv = lambda rows: "prompt,completion\n" + "".join(f'{a},"{b}"\n' for a, b in rows)
    folder.mkdir()
    (folder / "train.csv").write_text(csv(rows))
    (folder / "test.csv").write_text(csv([("Poem 96:", f"{line.upper()}!"), ("Poem 97:", "nothing of this was said by anyone before")]))
    main(["data", "check", str(folder), "--task", "completions", "--out", str(tmp_path / "said")])
    assert "5 runs of six words from training texts, such as 'i love thee in such sort'" in capsys.readouterr().out
    assert [len(runs) for runs in json.loads((tmp_path / "said" / "data.json").read_text())["copied"].values()] == [5]


def test_accuracy_on_pairs_that_share_no_question(pairs, tmp_path, capsys):
    "Finding 13. It stands beside the plain one, with its count; calibration stands beside a perfect policy's, entropy beside both."
    found = judged(capsys, "bard", "--task", "paraphrase", "--data", pairs, "--out", tmp_path / "told.csv")
    assert found["examples_disjoint"] == 2
    table = pd.read_csv(tmp_path / "told.csv")
    assert found["accuracy_disjoint"] == pytest.approx(table.correct[1:3].mean(), abs=1e-4)
    assert found["calibration_error_low"] <= found["calibration_error_high"] and 0 < found["calibration_error_perfect"] < 1
    assert 0 < found["entropy"] <= .6932


def test_every_label_run_has_the_best_baseline_beside_it(backbone, tmp_path):
    "Gates of issue 15. A word decides, so TF-IDF is right on all rows; at 72cf482 there is no such number."
    rows = "".join(f"the day number {i} was {'fine' if i % 2 else 'grey'},{'yes' if i % 2 else 'no'}\n" for i in range(120))
    (tmp_path / "days.csv").write_text("text,label\n" + rows)
    main(["compare", "--tasks", "labels", "--data", str(tmp_path / "days.csv"), "--backbone", backbone, "--recipes", "sft", "--tunings", "full",
          "--train-size", "40", "--sft.epochs", "1", "--out", str(tmp_path / "study")])
    results = pd.read_csv(tmp_path / "study" / "results.csv")
    trained = results[results.recipe == "sft"].set_index("metric").value
    assert trained["baseline_tfidf"] == 1 and .3 < trained["baseline_majority"] < .7
