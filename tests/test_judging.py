"How models are judged and asked, through files and the command line: nothing is measured by length, memory or luck alone."
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from little import unbroken
from tiny import tiny_model

from sftdpo.cli import main
from sftdpo.config import Run, from_dict
from sftdpo.data import shared_questions
from sftdpo.engine.folder import StudyFolder
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.store import read_settings


def judged(capsys, *words):
    "What `sftdpo evaluate` prints, by name: a value and the ends of its interval."
    main(["evaluate", *map(str, words)])
    found = re.findall(r"^(\S.*?)  +([\d.]+)( %)?(?: \[([\d.]+), ([\d.]+)\])?$", capsys.readouterr().out, re.MULTILINE)
    return {name: tuple(float(end or "nan") / (100 if share else 1) for end in (value, low, high)) for name, value, share, low, high in found}


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
    assert "2 of 4 judged pairs (50.0%) share a question with a training pair; 100% of them are duplicates, 50% of the others" in unbroken(capsys.readouterr().out)


def test_data_check_names_six_words_from_training_texts(tmp_path, capsys):
    "Finding 13. At 72cf482 the check says nothing of them."
    line, folder = "I love thee in such sort, as thou being mine", tmp_path / "poems"
    rows = [(f"Poem {i}:", f"Number {i}, let me confess: {line}.") for i in range(40)]
    csv = lambda rows: "prompt,completion\n" + "".join(f'{a},"{b}"\n' for a, b in rows)
    folder.mkdir()
    (folder / "train.csv").write_text(csv(rows))
    (folder / "test.csv").write_text(csv([("Poem 96:", f"{line.upper()}!"), ("Poem 97:", "nothing of this was said by anyone before")]))
    main(["data", "check", str(folder), "--task", "completions", "--out", str(tmp_path / "said")])
    assert "5 passages of six words that stand in a training text too, such as 'i love thee in such sort'" in unbroken(capsys.readouterr().out)
    assert [len(runs) for runs in json.loads((tmp_path / "said" / "data.json").read_text())["copied"].values()] == [5]


def test_accuracy_on_pairs_that_share_no_question(pairs, tmp_path, capsys):
    "Finding 13. It stands beside the plain one, with its count; calibration stands beside a perfect policy's, entropy beside both."
    found = judged(capsys, "bard", "--task", "paraphrase", "--data", pairs, "--out", tmp_path / "told.csv")
    assert found["examples_disjoint"][0] == 2
    table = pd.read_csv(tmp_path / "told.csv")
    assert found["accuracy, disjoint"][0] == pytest.approx(table.correct[1:3].mean(), abs=1e-3)
    assert found["accuracy"][0] == pytest.approx(table.correct.mean(), abs=1e-3) and found["accuracy"][1] < found["accuracy"][0] < found["accuracy"][2]
    assert found["calibration error"][1] <= found["calibration error"][2] and 0 < found["calibration error of a perfect policy"][0] < 1
    assert 0 < found["entropy of the answer, nats"][0] <= .6932


def test_every_label_run_has_the_best_baseline_beside_it(backbone, tmp_path):
    "Gates of issue 15. A word decides, so TF-IDF is right on all rows; at 72cf482 there is no such number."
    rows = "".join(f"the day number {i} was {'fine' if i % 2 else 'grey'},{'yes' if i % 2 else 'no'}\n" for i in range(120))
    (tmp_path / "days.csv").write_text("text,label\n" + rows)
    main(["compare", "--tasks", "labels", "--data", str(tmp_path / "days.csv"), "--backbone", backbone, "--recipes", "sft", "--tunings", "full",
          "--train-size", "40", "--sft.epochs", "1", "--out", str(tmp_path / "study")])
    results = pd.read_csv(tmp_path / "study" / "results.csv")
    trained = results[results.recipe == "sft"].set_index("metric").value
    assert trained["baseline_tfidf"] == 1 and .3 < trained["baseline_majority"] < .7


# -- a saved model knows its task

TEAMS = {"billing team": ("invoice", "charge"), "technical support": ("crash", "error"), "delivery and returns": ("parcel", "courier")}


def mails(number, labelled=True, start=0):
    "Made-up mails whose words decide the team; the columns before them would pass for a prompt."
    rows = [(f"note {i}", f"My {words[i % 2]} number {start + i}, please", team) for i in range(number) for team, words in [list(TEAMS.items())[i % 3]]]
    return ["text,mail" + ",team" * labelled, *(",".join([a, f'"{b}"', *[c] * labelled]) for a, b, c in rows)]


def write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module", params=["full", "lora"])
def team_model(request, tokenizer, tmp_path_factory):
    "What `sftdpo train` keeps of three labels of several tokens each, with a template; and what it said."
    from contextlib import redirect_stdout
    from io import StringIO

    from sftdpo.model import save_policy
    home = tmp_path_factory.mktemp("teams")
    base = str(save_policy(tiny_model("gpt2", tokenizer), tokenizer, home / "base"))
    words = ["train", "--task", "labels", "--data", write(home / "mails.csv", mails(120)), "--reading.prompt", r"Mail: {mail}\nTeam:", "--reading.label", "team", "--backbone", base,
             "--tuning", request.param, "--sft.epochs", "8", "--sft.batch-size", "8", "--sft.learning-rate", "3e-3", "--out", str(home / "out")]
    with redirect_stdout(StringIO()) as said: main(words)
    return home, said.getvalue()


def asked(capsys, *words):
    "What a command prints, and how it ends."
    capsys.readouterr()
    try: main([str(word) for word in words])
    except SystemExit as left: code = left.code
    else: code = 0
    told = capsys.readouterr()
    return code, told.out + told.err


def test_labels_that_are_no_single_token_get_letters_by_themselves(team_model):
    "Issue 18.4. At 72cf482 training stops: the verbalizer is so many tokens, choose others."
    home, said = team_model
    assert said.count("the model answers 'A' for 'billing team', 'B' for 'delivery and returns', 'C' for 'technical support'") == 1
    known = json.loads((home / "out" / "model" / "task.json").read_text())
    assert known["answers"] == {"billing team": "A", "delivery and returns": "B", "technical support": "C"}
    assert known["columns"] == {"prompt": "Mail: {mail}\nTeam:", "label": "team"}


def test_letters_give_what_the_same_letters_give_when_they_are_typed(team_model, tmp_path, capsys):
    home, _ = team_model
    known = json.loads((home / "out" / "model" / "task.json").read_text())
    from sftdpo.config import Reading
    from sftdpo.data import fit_task, load_task
    from sftdpo.model import load_tokenizer
    tokenizer = load_tokenizer(home / "base")
    typed = Reading(prompt=r"Mail: {mail}\nTeam:", label="team", verbalizers=known["answers"])
    assert fit_task(load_task("labels", home / "mails.csv", typed), tokenizer, 256).fingerprint == known["fingerprint"]


def test_data_check_gives_letters_too(tmp_path, capsys):
    path = write(tmp_path / "mails.csv", mails(60))
    code, told = asked(capsys, "data", "check", path, "--reading.prompt", "{mail}\n", "--reading.label", "team")
    assert code == 0 and "'A' for 'billing team'" in told and "stops a run" not in told and "--reading.verbalizers" not in told


def test_predict_answers_rows_without_labels(team_model, tmp_path, capsys):
    "Issue 18.4: template, answers and tokenizer are the model's; answers are the user's own labels."
    home, _ = team_model
    path = write(tmp_path / "new.csv", mails(300, labelled=False, start=500))
    code, told = asked(capsys, "predict", home / "out", path, "--out", tmp_path / "answers.csv")
    table = pd.read_csv(tmp_path / "answers.csv")
    assert code == 0 and "300 rows answered" in told and len(table) == 300 and set(table["answer"]) <= set(TEAMS)
    probabilities = table[[f"probability_{team}" for team in TEAMS]]
    assert probabilities.sum(axis=1).to_numpy() == pytest.approx(1) and (probabilities.idxmax(axis=1) == "probability_" + table["answer"]).all()
    assert table["prompt"][0] == "Mail: My invoice number 500, please\nTeam:" and table["id"][0] == "line-2"


def test_predict_and_evaluate_agree_and_all_rows_are_judged(team_model, tmp_path, capsys):
    home, _ = team_model
    labelled, plain = write(tmp_path / "more.csv", mails(60, start=900)), write(tmp_path / "plain.csv", mails(60, labelled=False, start=900))
    for name in ("answers.parquet", "answers.jsonl"): assert asked(capsys, "predict", home / "out", plain, "--out", tmp_path / name)[0] == 0
    assert asked(capsys, "predict", home / "out" / "model", labelled, "--out", tmp_path / "same.parquet")[0] == 0  # its labels are not looked at
    code, told = asked(capsys, "evaluate", home / "out", "--data", labelled, "--out", tmp_path / "judged.csv")
    assert code == 0 and "judged: 60 examples of more" in told
    answers, judged = pd.read_parquet(tmp_path / "answers.parquet"), pd.read_csv(tmp_path / "judged.csv")
    same = pd.read_parquet(tmp_path / "same.parquet")
    assert list(same["team"]) == list(judged["label"]), "the file's other columns stand beside the answers"
    pd.testing.assert_frame_equal(answers, same.drop(columns="team"))
    assert list(answers["answer"]) == list(judged["prediction"]) == list(pd.read_json(tmp_path / "answers.jsonl", lines=True)["answer"])
    accuracy = float(re.search(r"^accuracy +([\d.]+) %", told, re.MULTILINE)[1]) / 100
    assert set(judged["label"]) == set(TEAMS) and (judged["label"] == answers["answer"]).mean() == pytest.approx(accuracy, abs=1e-3)
    assert list(answers["prompt"]) == list(judged["prompt"]), "made of two columns"


def test_columns_of_mixed_values_do_not_cost_the_answers(team_model, tmp_path, capsys):
    "Parquet has no column of texts and numbers."
    home, _ = team_model
    rows = [dict(mail="My refund, please", note=1), dict(mail="My parcel, please", note="late"), dict(mail="My parcel, please", note=None)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert asked(capsys, "predict", home / "out", tmp_path / "mixed.jsonl", "--reading.prompt", "{mail}", "--out", tmp_path / "answers.parquet")[0] == 0
    answers = pd.read_parquet(tmp_path / "answers.parquet")
    assert list(answers["note"])[:2] == ["1", "late"] and "prompt" not in answers and answers["mail"][0] == "My refund, please", "the prompt is that column"


def test_the_files_columns_come_back_as_they_were(team_model, tmp_path, capsys):
    "At 2313f6f5 whole numbers beside empty cells became floats, JSON lines cut floats to ten decimals, dates vanished, and of two columns of one name one was lost."
    import datetime
    home, _ = team_model
    given = pd.DataFrame(dict(mail=["My refund, please", "My parcel, please"], key=pd.array([9007199254740993, None], dtype="Int64"), small=[0.000123456789012345, 1e-20],
                              day=[datetime.date(2026, 1, 2), None], answer=["a", "b"], **{"answer (given)": ["c", "d"]}, tags=[["x"], ["y"]]))
    given.to_parquet(tmp_path / "given.parquet")
    for ending in ("parquet", "jsonl", "csv"):
        code, told = asked(capsys, "predict", home / "out", tmp_path / "given.parquet", "--reading.prompt", "{mail}", "--out", tmp_path / f"answers.{ending}")
        assert code == 0 and "the column 'tags' is not written beside the answers: it holds lists" in unbroken(told)
    found = pd.read_parquet(tmp_path / "answers.parquet")
    assert found["key"][0] == 9007199254740993 and pd.isna(found["key"][1]) and list(found["small"]) == list(given["small"]) and found["day"][0] == "2026-01-02"
    assert list(found["answer (given 2)"]) == ["a", "b"] and list(found["answer (given)"]) == ["c", "d"]
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [9007199254740993, None] and [line["small"] for line in lines] == list(given["small"])
    assert '9007199254740993,0.000123456789012345' in (tmp_path / "answers.csv").read_text()


def test_letters_that_cannot_be_written_do_not_cost_the_answers(team_model, tmp_path, capsys):
    "At 2313f6f5 predict answered all rows and then ended without a file; a number of 31 digits ended it with a traceback."
    home, _ = team_model
    (tmp_path / "new.csv").write_bytes(b"mail,customer\nMy refund,Ren\xe9\nMy parcel,Ann\n")
    (tmp_path / "new.jsonl").write_text(json.dumps(dict(mail="My refund", number=10**30, name="x")) + "\n" + json.dumps(dict(mail="My parcel", number=1, name="\ud800")) + "\n")
    for name, ending in (("new.csv", "csv"), ("new.csv", "parquet"), ("new.jsonl", "jsonl"), ("new.jsonl", "parquet")):
        code, told = asked(capsys, "predict", home / "out", tmp_path / name, "--reading.prompt", "{mail}", "--out", tmp_path / f"answers.{ending}")
        assert code == 0 and "has letters that are no UTF-8, first in line" in unbroken(told), told


@pytest.mark.parametrize("words", [["predict", "MODEL", "new.csv", "--out", "new.csv"], ["evaluate", "MODEL", "--data", "new.csv", "--out", "new.csv"],
                                   ["submit", "bard", "new.csv", "new.csv"], ["data", "check", "data.json", "--out", "."]])
def test_the_file_with_the_rows_is_never_overwritten(words, team_model, tmp_path, capsys, monkeypatch):
    "At 2313f6f5 only predict refused it."
    home, _ = team_model
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "new.csv", mails(6))
    (tmp_path / "data.json").write_text(json.dumps([dict(text=f"mail {i}", label="ab"[i % 2]) for i in range(9)]))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    code, told = asked(capsys, *[str(home / "out") if word == "MODEL" else word for word in words])
    assert code == 2 and "the file with the rows: give another" in unbroken(told) and {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_output_that_cannot_be_written_is_refused_before_rows_are_answered(team_model, tmp_path, capsys):
    home, _ = team_model
    path = write(tmp_path / "new.csv", mails(3, labelled=False))
    for out, said in ((tmp_path, "is a folder"), (Path(path) / "a.csv", "cannot be written")):
        code, told = asked(capsys, "predict", home / "out", path, "--out", out)
        assert code == 2 and said in unbroken(told) and "answered" not in told, told
    code, told = asked(capsys, "submit", "bard", path, tmp_path)
    assert code == 2 and "is a folder: give a file in it" in unbroken(told)


def test_what_only_the_training_file_needed_is_not_asked_of_another(tmp_path, capsys):
    "Its encoding, the names of its columns, its column of ids. At 2313f6f5 a file in UTF-8 was read as cp1252, and a header was answered as a row."
    rows = [f"naïve mail {i},{'ab'[i % 2]},{i}" for i in range(40)]
    (tmp_path / "old.csv").write_bytes("\n".join(rows).encode("cp1252"))
    code, told = asked(capsys, "train", "--task", "labels", "--data", tmp_path / "old.csv", "--reading.encoding", "cp1252", "--reading.columns", "text", "label", "key", "--reading.id", "key",
                       "--sft.epochs", "1", "--tuning", "full", "--recipe", "sft", "--out", tmp_path / "out")
    assert code == 0, told
    (tmp_path / "new.csv").write_text("text\nnaïve café\nplain\n", encoding="utf-8")
    code, told = asked(capsys, "predict", tmp_path / "out", tmp_path / "new.csv", "--out", tmp_path / "answers.csv")
    assert code == 0 and "2 rows answered" in told, told
    assert list(pd.read_csv(tmp_path / "answers.csv")["text"]) == ["naïve café", "plain"]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_table_that_datasets_saved_is_a_file(team_model, tmp_path, capsys, shards):
    "All its rows judge, as those of a CSV do; at 2313f6f5 it was split as if it were to train, at cb0b3cb1 where it had several shards."
    import datasets
    home, _ = team_model
    datasets.Dataset.from_list([dict(mail=f"My {('invoice', 'parcel')[i % 2]} number {i}", team=list(TEAMS)[i % 2]) for i in range(10)]).save_to_disk(tmp_path / "new", num_shards=shards)
    code, told = asked(capsys, "evaluate", home / "out", "--data", tmp_path / "new", "--reading.prompt", "{mail}", "--reading.label", "team")
    assert code == 0 and "judged: 10 examples" in told, told
    code, told = asked(capsys, "predict", home / "out", tmp_path / "new", "--reading.prompt", "{mail}", "--out", tmp_path / "answers.csv")
    assert code == 0 and "10 rows answered" in told, told


def test_texts_to_continue_are_taken_whole(backbone, tmp_path, capsys):
    "At 2313f6f5 the last word of each was cut off and called a completion, without a word."
    (tmp_path / "old.csv").write_text("text\n" + "".join(f"I walk {i} and sing\n" for i in range(40)))
    code, told = asked(capsys, "train", "--task", "completions", "--data", tmp_path / "old.csv", "--reading.prompt", "text", "--reading.split", " ", "--backbone", backbone, "--sft.epochs", "1",
                       "--recipe", "sft", "--sampling.samples", "1", "--sampling.max-new-tokens", "4", "--out", tmp_path / "out")
    assert code == 0, told
    (tmp_path / "new.csv").write_text("text\nI walk and\nWhy\n")
    code, told = asked(capsys, "predict", tmp_path / "out", tmp_path / "new.csv", "--sampling.samples", "1", "--sampling.max-new-tokens", "4", "--out", tmp_path / "answers.csv")
    table = pd.read_csv(tmp_path / "answers.csv")
    assert code == 0 and "2 rows answered" in told and list(table["text"]) == ["I walk and", "Why"] and "completion" not in table, told


def test_a_backbone_is_judged_on_the_task_that_the_columns_fit(tmp_path, capsys):
    "Before, any file was taken for question pairs."
    rows = [f"{text} {i},{label}" for i in range(6) for text, label in (("Please refund my ticket", "Billing"), ("I cannot log in", "Account"))]
    code, told = asked(capsys, "evaluate", "bard", "--data", write(tmp_path / "clean.csv", ["text,label", *rows]))
    assert code == 0 and "judged: 12 examples" in told
    code, told = asked(capsys, "evaluate", "bard", "--data", write(tmp_path / "other.csv", ["text,team", *rows]))
    assert code == 2 and "the columns ['text', 'team'] fit no task" in told


def test_predict_in_python(team_model, tmp_path, capsys):
    from sftdpo.study import predict_saved
    home, _ = team_model
    path = write(tmp_path / "new.csv", mails(9, labelled=False))
    assert asked(capsys, "predict", home / "out", path, "--out", tmp_path / "answers.parquet")[0] == 0
    pd.testing.assert_frame_equal(predict_saved(str(home / "out"), path, progress=False), pd.read_parquet(tmp_path / "answers.parquet"))


def test_the_model_folder_stays_what_plain_libraries_open(team_model):
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer
    home, _ = team_model
    folder = home / "out" / "model"
    loader = AutoPeftModelForCausalLM if (folder / "adapter_config.json").exists() else AutoModelForCausalLM
    ids = AutoTokenizer.from_pretrained(folder)("Mail:", return_tensors="pt").input_ids
    assert loader.from_pretrained(folder)(input_ids=ids).logits.isfinite().all()


def test_rows_that_cannot_be_answered(team_model, tmp_path, capsys):
    home, _ = team_model
    path, out = write(tmp_path / "new.csv", [*mails(5, labelled=False), "note,"]), tmp_path / "answers.csv"
    code, told = asked(capsys, "predict", home / "out", path, "--reading.prompt", "{mail}", "--out", out)
    assert code == 2 and "line 7: the column 'mail' is empty" in told.replace("the prompt is empty", "the column 'mail' is empty") and not out.exists()
    code, told = asked(capsys, "predict", home / "out", path, "--reading.prompt", "{mail}", "--reading.unusable", "drop", "--out", out)
    assert code == 0 and "1 of 6 rows cannot be used and is left out: line 7: the prompt is empty" in told and "5 rows answered" in told and len(pd.read_csv(out)) == 5


def test_rows_whose_labels_the_model_does_not_know_are_told(team_model, tmp_path, capsys):
    "At 4ab63658 a model that had left rows out of its own file left such rows out too, and said that all rows were judged."
    home, _ = team_model
    lines = mails(6, start=900)
    path = write(tmp_path / "more.csv", [*lines, '"a","My refund, please",money'])
    code, told = asked(capsys, "evaluate", home / "out", "--data", path, "--reading.unusable", "drop")
    assert code == 0 and "judged: 6 examples of more (All usable rows of more.csv)" in told
    assert "note: 1 of 7 rows cannot be used and is left out: line 8: the label is 'money'" in told


def test_columns_that_only_the_training_named_are_told(team_model, tmp_path, capsys):
    home, _ = team_model
    (tmp_path / "other.csv").write_text("body,group\nMy invoice,billing team\n")
    for command in ("evaluate", "predict"):
        code, told = asked(capsys, command, home / "out", *(["--data"] if command == "evaluate" else []), tmp_path / "other.csv")
        assert code == 2 and "The model was trained with --reading." in told and "for other columns give this option anew" in told
    code, told = asked(capsys, "evaluate", home / "out", "--data", tmp_path / "other.csv", "--reading.prompt", r"Mail: {body}\nTeam:", "--reading.label", "group")
    assert code == 0 and "judged: 1 example" in told


def test_answers_are_written_whole_or_not_at_all(team_model, tmp_path, monkeypatch, capsys):
    home, _ = team_model
    path, out = write(tmp_path / "new.csv", mails(300, labelled=False)), tmp_path / "answers.csv"
    out.write_text("before")
    real, calls = __import__("sftdpo.study", fromlist=["x"]).label_answers, []
    def stops(*given):
        calls.append(len(given[3]))
        if len(calls) > 1: raise KeyboardInterrupt
        return real(*given)
    monkeypatch.setattr("sftdpo.study.label_answers", stops)
    assert asked(capsys, "predict", home / "out", path, "--out", out)[0] != 0
    assert len(calls) == 2 and out.read_text() == "before" and sorted(one.name for one in tmp_path.iterdir()) == ["answers.csv", "new.csv"]


def test_predict_writes_what_follows_a_prompt(backbone, tmp_path, capsys):
    "Of completions, the drawn text; the same seed gives the same text, and several samples a line each."
    rows = "".join(f"Today: I walk {i}. Yesterday:,I walked {i}.\n" for i in range(40))
    (tmp_path / "past.csv").write_text("today,yesterday\n" + rows)
    named = ["--reading.prompt", "today", "--reading.completion", "yesterday"]
    main(["train", "--task", "completions", "--data", str(tmp_path / "past.csv"), *named, "--backbone", backbone, "--sft.epochs", "1", "--sampling.max-new-tokens", "20",
          "--sampling.samples", "1", "--out", str(tmp_path / "out")])
    (tmp_path / "new.csv").write_text("id,today\na,Today: I run. Yesterday:\nb,Today: I sing. Yesterday:\n")
    words = ["predict", tmp_path / "out", tmp_path / "new.csv", "--sampling.max-new-tokens", "12", "--sampling.samples", "2"]
    for name, more in (("one", []), ("two", []), ("other", ["--seed", "7"])):
        code, told = asked(capsys, *words, *more, "--out", tmp_path / f"{name}.parquet")
        assert code == 0 and "2 rows answered, 4 texts" in told, told
    one, two, other = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "two", "other"))
    pd.testing.assert_frame_equal(one, two)
    assert list(one["id"]) == ["a", "a", "b", "b"] and list(one["sample"]) == [0, 1, 0, 1] and not one.equals(other) and one["answer"].str.len().min() > 0
    code, told = asked(capsys, "evaluate", tmp_path / "out", "--data", tmp_path / "past.csv")
    assert code == 0 and "trained on other rows of this data; it is judged on those that it has not seen" in told, told
    code, told = asked(capsys, "train", "--task", "completions", "--data", tmp_path / "past.csv", *named, "--backbone", backbone, "--sft.epochs", "1", "--sampling.max-new-tokens", "20",
                       "--sampling.samples", "1", "--out", tmp_path / "out", "--tuning", "lora")
    kept, = re.findall(r"trained here before are in (.*), each in its run's folder", unbroken(told))
    assert code == 0 and len(list(Path(kept).glob("*/policy"))) == 2, told


def test_more_labels_than_letters(tokenizer, tmp_path):
    "Beyond the alphabet, numbers and other words of one token stand for labels."
    from sftdpo.data import fit_task, load_task
    (tmp_path / "many.csv").write_text("text,label\n" + "".join(f"text {i},some intent {i % 77}\n" for i in range(770)))
    fitted = fit_task(load_task("labels", tmp_path / "many.csv"), tokenizer, 256)
    assert len(set(fitted.verbalizers)) == 77 == len(fitted.intake.labels) and all(len(tokenizer(word)["input_ids"]) == 1 for word in fitted.verbalizers)
    assert all(e.completion == fitted.verbalizers[e.label] for e in fitted.train)


def test_questions_are_compared_with_those_that_trained(pairs, tmp_path):
    "With --train-size, judged pairs were set apart that share a question with any row of the file. At 62ea385b 2 of 4 are left, whatever was trained on."
    sizes = {}
    for size in (2, 20):
        main(["compare", "--tasks", "paraphrase", "--data", str(pairs), "--recipes", "sft", "--tunings", "lora", "--sft.steps", "1", "--train-size", str(size), "--out", str(tmp_path / f"{size}")])
        name, = (name for name in StudyFolder(tmp_path / f"{size}").finished_runs() if "sft" in name)
        inputs = Inputs().of(from_dict(Run, read_settings(tmp_path / f"{size}", name)))
        shared = shared_questions(inputs.judged, inputs.training)
        sizes[size] = 4 - len(shared)
        found = json.loads(StudyFolder(tmp_path / f"{size}").run(name).metrics.read_text())
        assert len(inputs.training) == size and found["examples_disjoint"] == 4 - len(shared)
    assert sizes[2] > sizes[20]
