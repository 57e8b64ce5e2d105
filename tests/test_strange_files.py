"Files as people have them: spreadsheets, shards, bombs, and the usual shapes of public data sets."
import csv
import dataclasses
import json
import re
import shlex

import pandas as pd
import pytest
from little import unbroken

import sftdpo.reading.files
from sftdpo.config import Reading
from sftdpo.data import DataError, UnusableRows, load_task
from sftdpo.reading.check import check_file
from sftdpo.reading.files import read_table, table_of
from sftdpo.reading.shapes import scored_pairs


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_a_look_at_a_table_is_not_longer_than_asked_for(tmp_path):
    table = read_table(write(tmp_path, "rows.csv", "a\n" + "1\n" * 39))
    assert [len(table.some(rows)) for rows in (1, 20, 38, 39, 100)] == [1, 20, 20, 39, 39]


def lines(*rows): return "".join(json.dumps(row) + "\n" for row in rows)


def examples(task): return [e for split in task.splits.values() for e in split]


# -- the first lines of spreadsheets, shards

def test_a_line_that_names_the_delimiter_is_no_header(tmp_path):
    path = write(tmp_path, "excel.csv", "\ufeffsep=;\r\nText;Label\r\n" + "".join(f"Größe {i}, Tee;{'gut' if i % 2 else 'schlecht'}\r\n" for i in range(20)))
    task = load_task("labels", path)
    assert len(examples(task)) == 20 and {e.prompt for e in examples(task)} == {f"Größe {i}, Tee\n" for i in range(20)}
    assert read_table(path).lines[0] == 3


def test_empty_names_at_the_end_of_the_header(tmp_path):
    rows = "".join(f"{'spam' if i % 2 else 'ham'},Call {i},,,\n" for i in range(20))
    table = read_table(write(tmp_path, "spam.csv", f"label,text,,,\n{rows}"))
    assert list(table.columns) == ["label", "text"] and not table.problems
    with pytest.raises(UnusableRows, match=r"line 22: \[' or not', '', ''\] stands in columns without a name \(a comma within a text"):
        load_task("labels", write(tmp_path, "spam.csv", f"label,text,,,\n{rows}ham,Call me, or not,,\n"))
    assert list(read_table(write(tmp_path, "index.csv", ",text,label\n0,a,b\n")).columns) == ["", "text", "label"]


def test_shards_with_a_hash_in_their_names_are_joined(tmp_path):
    pandas = pytest.importorskip("pandas")
    for i in range(2):
        pandas.DataFrame(dict(text=[f"t{i}{j}" for j in range(20)], label=["a", "b"] * 10)).to_parquet(tmp_path / f"train-0000{i}-of-00002-6ef3991c06080e1{i}.parquet")
    assert len(examples(load_task("labels", tmp_path))) == 40


# -- bombs: refused by size, in one short line

def short(error): return len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_a_parquet_file_that_unpacks_to_gigabytes(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["a" * 1_000_000]))
    parquet.write_table(pa.table(dict(text=long, label=["a", "b"] * 1500)), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"unpacks to 3,\d{3},\d{3},\d{3} bytes, and at most 2,000,000,000 are read") as error: read_table(tmp_path / "bomb.parquet")
    assert short(error)


def test_a_nested_parquet_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(sftdpo.reading.files, "LARGEST_BYTES", 1_000_000)
    deep = pa.array([[dict(content="b" * 1000)]] * 2000, pa.list_(pa.struct([("content", pa.string())])))
    parquet.write_table(pa.table(dict(messages=deep)), tmp_path / "deep.parquet", compression="zstd")
    assert (tmp_path / "deep.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match="unpacks to 2,"): read_table(tmp_path / "deep.parquet")
    parquet.write_table(pa.table(dict(messages=deep[:5])), tmp_path / "small.parquet")
    assert read_table(tmp_path / "small.parquet").values("messages")[0] == [dict(content="b" * 1000)]


@pytest.mark.parametrize("name, data", [
    ("wide.csv", ",".join(f"c{i}" for i in range(10_000)) + "\n" + ",".join("1" * 10_000) + "\n"),
    ("wide.jsonl", lines({f"c{i}": 1 for i in range(10_000)})),
    ("wide.json", json.dumps([{f"c{i}": 1 for i in range(10_000)}])),
])
def test_ten_thousand_columns(tmp_path, name, data):
    with pytest.raises(DataError, match=f"{name} has 10,000 columns, and at most 1,000 are read: keep those") as error: load_task("labels", write(tmp_path, name, data))
    assert short(error)


def test_hundreds_of_columns_are_not_printed(tmp_path):
    header = ",".join(f"c{i}" for i in range(900))
    with pytest.raises(DataError, match="and 888 more") as error: load_task("labels", write(tmp_path, "wide.csv", f"{header}\n{header}\n"))
    assert len(str(error.value)) < 1200


# -- the usual shapes of public data sets: named, with options that read them

USER = "Why does it matter in case {}?"
GOOD, BAD = "Because it shapes life number {}.", "No idea about item {}, ask someone."
def turns(i, answer, system=False):
    first = [dict(role="system", content="Be kind.")] * system
    return first + [dict(role="user", content=USER.format(i)), dict(role="assistant", content=answer.format(i))]


def rows_of(make, n=40): return lines(*(make(i) for i in range(n)))


SHAPES = dict(
    hh=("hh.jsonl", rows_of(lambda i: {w: f"\n\nHuman: {USER.format(i)}\n\nAssistant: {t.format(i)}" for w, t in (("chosen", GOOD), ("rejected", BAD))}),
        "pairs without a prompt", "\n\nHuman: " + USER.format(3) + "\n\nAssistant:", " " + GOOD.format(3), " " + BAD.format(3)),
    messages=("messages.jsonl", rows_of(lambda i: dict(messages=turns(i, GOOD, True))), "conversations", f"System: Be kind.\n\nUser: {USER.format(3)}\n\nAssistant:", " " + GOOD.format(3), None),
    ultrafeedback=("uf.jsonl", rows_of(lambda i: dict(prompt=USER.format(i), chosen=turns(i, GOOD), rejected=turns(i, BAD), messages=turns(i, GOOD), score_chosen=8.0)), "conversations",
                   f"User: {USER.format(3)}\n\nAssistant:", " " + GOOD.format(3), " " + BAD.format(3)),
    prompts=("pc.jsonl", rows_of(lambda i: dict(prompt=turns(i, GOOD)[:1], completion=turns(i, GOOD)[1:])), "conversations", f"User: {USER.format(3)}\n\nAssistant:", " " + GOOD.format(3), None),
    sharegpt=("sg.json", json.dumps([dict(id=f"c{i}", conversations=[{"from": "human", "value": USER.format(i)}, {"from": "gpt", "value": GOOD.format(i)}]) for i in range(40)]), "conversations",
              f"User: {USER.format(3)}\n\nAssistant:", " " + GOOD.format(3), None),
    factory=("lf.jsonl", rows_of(lambda i: dict(conversations=[{"from": "human", "value": USER.format(i)}], chosen={"from": "gpt", "value": GOOD.format(i)}, rejected={"from": "gpt", "value": BAD.format(i)})),
             "conversations", f"User: {USER.format(3)}\n\nAssistant:", " " + GOOD.format(3), " " + BAD.format(3)),
    shp=("shp.jsonl", rows_of(lambda i: dict(post_id=f"p{i}", domain="baking", history=USER.format(i), c_root_id_A=f"a{i}", c_root_id_B=f"b{i}", score_A=3 + 9 * (i % 2), score_B=8,
                                             human_ref_A=(GOOD if i % 2 else BAD).format(i), human_ref_B=(BAD if i % 2 else GOOD).format(i), labels=i % 2)),
         "two answers and their scores", USER.format(3) + "\n", GOOD.format(3), BAD.format(3)),
    rte=("rte.tsv", "index\tsentence1\tsentence2\tlabel\n" + "".join(f"{i}\tThe tea {i} was fine.\tIt was day {i}.\t{'not_' * (i % 2)}entailment\n" for i in range(40)), "pairs of sentences with labels",
         "The tea 3 was fine.\nIt was day 3.\n", "not_entailment", None),
    cola=("cola.tsv", "".join(f"gj04\t{i % 2}\t{'*' * (i % 2)}\tThe tea was fine on day {i}.\n" for i in range(40)), "a file without a header", "The tea was fine on day 3.\n", "1", None),
    spam=("spam.csv", b"v1,v2,,,\n" + "".join(f"{'ham' if i % 2 else 'spam'},Win £{i},,,\n" for i in range(40)).encode("latin-1"), "texts with labels", "Win £3\n", "ham", None),
    squad=("squad.jsonl", rows_of(lambda i: dict(id=str(i), title="T", context=f"Text {i}.", question=USER.format(i), answers=dict(text=[f"Life {i}"], answer_start=[3]))), "questions on a passage",
           f"Text 3.\n{USER.format(3)}\n", "Life 3", None),
    translation=("translation.jsonl", rows_of(lambda i: dict(translation=dict(en=f"The tea {i}.", de=f"Der Tee {i}."))), "translations", "The tea 3.\n", "Der Tee 3.", None),
    marked=("marked.jsonl", rows_of(lambda i: dict(text=f"### Human: {USER.format(i)}### Assistant: {GOOD.format(i)}")), "texts alone", f"### Human: {USER.format(3)}### Assistant:", " " + GOOD.format(3), None),
    alone=("alone.jsonl", rows_of(lambda i: dict(text=f"The tea was fine on day {i}.\nThe salt was poor on day {i}.\n")), "texts alone", "The tea was fine on day 3.\n", "The salt was poor on day 3.", None),
    sheet=("sheet.csv", "sep=;\nText;Kategorie\n" + "".join(f"Tag {i};{'gut' if i % 2 else 'schlecht'}\n" for i in range(40)), "texts with labels", "Tag 3\n", "gut", None))


@pytest.mark.parametrize("shape", SHAPES)
def test_usual_shapes_are_named_and_the_command_reads_them(shape, tmp_path, capsys):
    from sftdpo.cli import main, parse
    from sftdpo.reading.check import advice
    name, data, called, prompt, completion, rejected = SHAPES[shape]
    path = write(tmp_path, name, data)
    assert f"It looks like {called}: " in advice(None, path, Reading())
    try: stopped = main(["data", "check", str(path), "--backbone", "bard", "--reading.leaked", "drop"])
    except SystemExit as end: stopped = end.code
    said = unbroken(capsys.readouterr().out)
    assert bool(stopped) == ("  stops a run  " in said), "a shape that is recognised stops nothing"
    assert f"this looks like {called}: " in said and "--reading.leaked drop" in said
    study = parse(shlex.split(re.search(r"run it +sftdpo (compare .*)", said)[1])).study
    words = study.reading.verbalizers
    other = parse(shlex.split(re.search(r"or first +sftdpo (recommend .*)", said)[1]))
    assert (other.data, other.task, other.reading) == (study.data, study.tasks[0], study.reading.replace(unusable="drop")), "recommend leaves unusable rows out"
    task = load_task(study.tasks[0], study.data, study.reading)
    found = next(e for e in examples(task) if e.prompt == prompt)
    assert (found.completion, found.rejected) == (words.get(completion, completion), rejected)


@pytest.mark.parametrize("data", [{"text": {str(i): f"tea {i}" for i in range(40)}, "label": {str(i): "ab"[i % 2] for i in range(40)}},
                                  {"columns": ["text", "label"], "index": list(range(40)), "data": [[f"tea {i}", "ab"[i % 2]] for i in range(40)]},
                                  {"text": [f"tea {i}" for i in range(40)], "label": ["ab"[i % 2] for i in range(40)]}])
def test_json_by_columns_is_read_and_named(data, tmp_path, capsys):
    from sftdpo.cli import main, parse
    path = write(tmp_path, "columns.json", json.dumps(data))
    main(["data", "check", str(path)])
    said = unbroken(capsys.readouterr().out)
    assert "columns.json (JSON by columns, train): 40 rows, 40 usable" in said
    study = parse(shlex.split(re.search(r"run it +sftdpo (compare .*)", said)[1])).study
    assert {e.prompt for e in examples(load_task(study.tasks[0], study.data, study.reading))} == {f"tea {i}\n" for i in range(40)}


def test_json_that_holds_splits_says_how_to_part_it(tmp_path):
    rows = [dict(text=f"tea {i}", label="ab"[i % 2]) for i in range(20)]
    path = write(tmp_path, "splits.json", json.dumps(dict(train=rows, test=rows)))
    with pytest.raises(DataError, match="holds the splits 'train', 'test': save each as a file of its own, such as train.json and test.json"): load_task("labels", path)
    (tmp_path / "parts").mkdir()
    for name in ("train", "test"): write(tmp_path / "parts", f"{name}.json", json.dumps(rows))
    assert len(load_task("labels", tmp_path / "parts").test) == 20


def test_the_command_repeats_the_backbone(tmp_path, backbone, capsys):
    from sftdpo.cli import main
    name, data, *_ = SHAPES["hh"]
    main(["data", "check", str(write(tmp_path, name, data)), "--backbone", backbone])
    assert f"--backbone {shlex.quote(backbone)}" in capsys.readouterr().out


def test_winners_and_losers_have_usual_names(tmp_path):
    for first, second in (("chosen_response", "rejected_response"), ("response_j", "response_k"), ("winner", "loser")):
        task = load_task("preferences", [{"question": f"q{i} ", first: f"good {i}", second: f"bad {i}"} for i in range(20)])
        assert all(e.completion.startswith("good") and e.rejected.startswith("bad") for e in examples(task))


def test_what_fits_nothing_is_given_no_column_of_its_own_as_advice(tmp_path):
    from sftdpo.reading.check import check_file
    with pytest.raises(DataError, match="--reading.prompt COLUMN --reading.label COLUMN"): check_file(None, write(tmp_path, "x.csv", "first,last\n1,2\n"))


def test_compare_says_what_the_data_looks_like(tmp_path, backbone):
    from sftdpo.config import Study
    from sftdpo.study import compare
    name, data, *_ = SHAPES["hh"]
    study = Study("one", tasks=("preferences",), data=str(write(tmp_path, name, data)), backbone=backbone)
    with pytest.raises(DataError, match="It looks like pairs without a prompt: --tasks preferences --reading.beginning cut reads it"): compare(study, tmp_path / "out", progress=False)


BETTER = {  # columns of the two answers and of the better one; what it says of the first, of the second and of neither
    "letters": ("response_a", "response_b", "preferred", "A", "B", "tie"), "label": ("response_a", "response_b", "label", "a", "b", "both"),
    "numbers": ("answer_1", "answer_2", "better", 1, 2, 0), "from 0": ("response_0", "response_1", "better_response_id", 0, 1, 2),
    "columns": ("reply_a", "reply_b", "winner", "reply_a", "reply_b", ""), "models": ("answer_a", "answer_b", "winner", "model_a", "model_b", "tie (bothbad)")}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", BETTER)
def test_a_column_that_names_the_better_answer_is_read(tmp_path, shape, turned):
    "Probably the commonest form of human preferences. At e7860492 no option reads it, and a column `label` of this kind was learned as a label of the prompt alone."
    first, second, better, one, two, neither = BETTER[shape]
    rows = [{"prompt": f"How do I mend {i}?", first: f"first answer {i}", second: f"second answer {i}", better: neither if i == 5 else two if i % 3 else one} for i in range(45)]
    pd.DataFrame(rows)[["prompt", *((second, first) if turned else (first, second)), better]].to_csv(tmp_path / "pairs.csv", index=False)
    report = check_file(None, tmp_path / "pairs.csv")
    assert report.task == "preferences" and f"--reading.scores {better}" in report.command
    read = load_task("preferences", str(tmp_path / "pairs.csv"), Reading(chosen=second if turned else first, rejected=first if turned else second, scores=(better,), unusable="drop"))
    assert len(read.examples) == 44 and all(e.completion.startswith("second" if int(re.search(r"\d+", e.prompt)[0]) % 3 else "first") for e in read.examples)
    assert {e.rejected.split()[0] for e in read.examples} == {"first", "second"}


def test_a_column_that_may_name_anything_is_no_verdict(tmp_path):
    "Who judged, or which of two flags is set, does not say which answer is better; two columns of winners are scores."
    rows = [dict(prompt=f"How do I mend {i}?", response_a=f"first answer {i}", response_b=f"second answer {i}") for i in range(40)]
    for more, scores in ((lambda i: dict(annotator="AB"[i % 2]), ()), (lambda i: dict(better=i % 2), ()), (lambda i: dict(better=i % 3), ()),
                         (lambda i: dict(response_c=f"third answer {i}", label="abc"[i % 3]), ()), (lambda i: dict(label="abc"[i % 3]), ()),
                         (lambda i: dict(winner_a=i % 2, winner_b=1 - i % 2), ("winner_a", "winner_b"))):
        table = table_of(pd.DataFrame([row | more(i) for i, row in enumerate(rows)]), "pairs.csv")
        assert [found.scores for found in scored_pairs(table, Reading())] == [scores] * bool(scores)
    parts = {part: [row | dict(winner="a" if part == "test" else "ab"[i % 2]) for i, row in enumerate(rows)] for part in ("train", "test")}
    assert load_task("preferences", parts, Reading(chosen="response_a", rejected="response_b", scores=("winner",))).test[0].completion == "first answer 0", "a part may name one alone"
    with pytest.raises(DataError, match="the column 'better' of --reading.scores names neither 'response_a' nor 'response_b'"):
        load_task("preferences", [row | dict(better=i % 2) for i, row in enumerate(rows)], Reading(chosen="response_a", rejected="response_b", scores=("better",)))


def test_scores_that_do_not_order_are_named(tmp_path):
    rows = [dict(prompt=f"p{i} ", a=f"x{i}", b=f"y{i}", score_a=i % 3, score_b=1) for i in range(30)]
    reading = Reading(chosen="a", rejected="b", scores=("score_a", "score_b"))
    with pytest.raises(UnusableRows, match="10 of 30 rows cannot be used: row 2: the chosen completion is not known: both scores are 1"): load_task("preferences", rows, reading=reading)


# -- nothing is left out in silence

@pytest.mark.parametrize("task, row, column", [
    ("completions", lambda i: dict(instruction="Give the opposite of the word.", input=f"word{i}", output=f"not word{i}"), "input"),
    ("completions", lambda i: dict(instruction=f"Why {i}?", context=f"Text {i}: the answer is 7." if i % 2 else "", response=f"So {i}.", category="open_qa"), "context"),
    ("preferences", lambda i: dict(system="You are terse." if i % 2 else "", question=f"Why {i}?", chosen=f"So {i}.", rejected=f"No {i}."), "system")])
def test_columns_that_are_left_out_are_said_with_the_template_that_keeps_them(task, row, column, tmp_path):
    from sftdpo.reading.check import check_data
    rows = [row(i) for i in range(40)]
    loaded = load_task(task, rows)
    note, = (note for note in loaded.intake.notes if note.startswith("left out"))
    assert repr(column) in note and note in check_data(loaded).short()
    template, = shlex.split(re.search(r"--reading\.prompt ('.*')", note)[1])
    kept = load_task(task, rows, reading=Reading(prompt=template))
    assert not kept.intake.notes and {e.prompt for e in examples(kept)} >= {template.replace("\\n", "\n").format(**row) for row in rows[:1]}


@pytest.mark.parametrize("row", [lambda i: dict(prompt=f"p{i} ", completion=f"c{i}", label=i % 2 == 0), lambda i: dict(prompt=f"p{i} ", response=f"c{i}", helpfulness=i % 5)])
def test_ratings_that_are_left_out_are_said(row):
    from sftdpo.reading.check import check_data
    loaded = load_task("completions", [row(i) for i in range(40)])
    assert "every row is learned from, whatever it says there" in check_data(loaded).short()


# -- pairs that repeat the prompt, or contradict each other

def test_pairs_that_begin_with_the_prompt_are_noted_and_cut():
    from sftdpo.reading.check import check_data
    rows = [dict(prompt=f"Why {i}?", chosen=f"Why {i}?\nSo {i}.", rejected=f"Why {i}?\nNo {i}.") for i in range(30)]
    assert "in 30 pairs chosen and rejected begin with the prompt: --reading.beginning cut" in unbroken(check_data(load_task("preferences", rows)))
    cut = load_task("preferences", rows, reading=Reading(beginning="cut"))
    assert {(e.prompt, e.completion, e.rejected) for e in examples(cut)} == {(f"Why {i}?", f"\nSo {i}.", f"\nNo {i}.") for i in range(30)}
    assert "begin with the prompt" not in unbroken(check_data(cut))


def test_pairs_with_both_preferences_are_noted():
    from sftdpo.reading.check import check_data
    rows = [dict(prompt=f"Why {i % 15}?\n", chosen="So." if i < 15 else "No.", rejected="No." if i < 15 else "So.") for i in range(30)]
    assert "15 pairs stand with both preferences" in check_data(load_task("preferences", rows)).short()


# -- remedies work

def test_test_labels_of_minus_one_let_validation_judge(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = lambda n, label: datasets.Dataset.from_list([dict(sentence=f"text {n} {i}", label=label(i), idx=i) for i in range(n)])
    datasets.DatasetDict(train=part(40, lambda i: i % 2), validation=part(12, lambda i: i % 2), test=part(9, lambda i: -1)).save_to_disk(tmp_path / "glue")
    task = load_task("labels", tmp_path / "glue")
    assert len(task.test) == 12 and task.verbalizers == ("0", "1") and any("test has no labels and is not used" in note for note in task.intake.notes)


REMEDIES = [
    ("labels", "encoding.csv", ("text,label\n" + "".join(f"café {i},{'ab'[i % 2]}\n" for i in range(30))).encode("latin-1"), {}),
    ("labels", "bad.csv", "text,label\n" + "".join(f"tea {i},{'ab'[i % 2]}\n" for i in range(30)) + "tea,\n", {}),
    ("labels", "delimiter.csv", "text;label\n" + "".join(f"tea {i};{'ab'[i % 2]}\n" for i in range(30)), dict(delimiter=",")),
    ("labels", "tabs.csv", "text\tlabel\n" + "".join(f"tea {i}\t{'ab'[i % 2]}\n" for i in range(30)), dict(delimiter=",")),
    ("labels", "other.csv", "prompt,chosen,rejected\n" + "".join(f"p{i},c{i},r{i}\n" for i in range(30)), {}),
    ("completions", "talk.jsonl", SHAPES["prompts"][1], dict(conversations="stop")),
    ("labels", "many.csv", "text,label\n" + "".join(f"tea {i},word {i}\n" for i in range(300)), {}),
]


@pytest.mark.parametrize("task, name, data, given", REMEDIES, ids=[remedy[1] for remedy in REMEDIES])
def test_the_first_remedy_of_an_error_works(task, name, data, given, tmp_path):
    from sftdpo.cli import parse
    path = write(tmp_path, name, data)
    with pytest.raises(DataError) as error: load_task(task, path, reading=Reading(**given))
    options = re.findall(r"(--(?:reading\.[\w-]+|tasks)) ('[^']*'|[\w-]+)", str(error.value))
    words = dict(options)
    command = ["compare", "--tasks", words.pop("--tasks", task), "--data", str(path), *(word for option, value in words.items() for word in (option, value.strip("'")))]
    study = parse(command).study
    assert words or study.tasks != (task,)
    assert examples(load_task(study.tasks[0], path, reading=study.reading))


def test_a_tab_is_written_as_it_is_typed_and_a_wrong_delimiter_is_not_taken_for_texts(tmp_path):
    # At a6f58f35 --reading.delimiter '\t' was refused, and with ',' a file with ';' was checked as texts without labels.
    from sftdpo.reading.check import check_file
    assert {Reading(delimiter=written).delimiter for written in ("\\t", "tab", "\t")} == {"\t"}
    path = write(tmp_path, "some.csv", "text;label\n" + "".join(f"a cup of tea {i};{'ab'[i % 2]}\n" for i in range(30)))
    with pytest.raises(DataError, match="read it with --reading.delimiter ';'"): check_file(None, path, Reading(delimiter=","))


def test_labels_that_differ_in_case_are_merged(tmp_path):
    rows = "".join(f"text {i},{('Yes', 'yes ', 'NO', 'no')[i % 4]}\n" for i in range(60))
    path = write(tmp_path, "messy.csv", f"text,label\n{rows}")
    assert any("--reading.similar-labels merge" in note for note in load_task("labels", path).intake.notes)
    merged = load_task("labels", path, reading=Reading(similar_labels="merge"))
    assert len(merged.verbalizers) == 2 and sum(merged.describe()["balance"]["train"].values()) == len(merged.train) and not merged.intake.problems


def test_labels_are_merged_into_those_that_have_answers(tmp_path):
    "At 0fae5a8 naming the rarer of two spellings stopped: that label 'never occurs'."
    rows = "".join(f"text {i},{('Yes', 'yes', 'yes', 'no')[i % 4]}\n" for i in range(60))
    path = write(tmp_path, "messy.csv", f"text,label\n{rows}")
    merged = load_task("labels", path, reading=Reading(similar_labels="merge", verbalizers={"Yes": "A", "no": "B"}))
    assert merged.verbalizers == ("A", "B") and merged.describe()["balance"]["train"]["A"] > 2 * merged.describe()["balance"]["train"]["B"] and not merged.intake.problems
    both = load_task("labels", path, reading=Reading(similar_labels="merge", verbalizers={"Yes": "A", "yes": "C", "no": "B"}))
    assert both.verbalizers == ("A", "C", "B") and not both.intake.problems, "who names both means both"


def test_a_label_in_another_case_is_told_with_what_reads_it(tmp_path):
    "At 280782a `evaluate` left out each row of a class that a new file wrote with a capital, and did not say how to keep it."
    from sftdpo.data import load_judged
    path = write(tmp_path, "new.csv", "text,label\n" + "".join(f"text {i},{('Yes', 'no')[i % 2]}\n" for i in range(20)))
    with pytest.raises(UnusableRows, match="the label is 'Yes', none of 'yes', 'no' \\(--reading.similar-labels merge reads it as 'yes'\\)"): load_judged("labels", path, Reading(), {"yes": "A", "no": "B"}, {})
    assert len(load_judged("labels", path, Reading(similar_labels="merge"), {"yes": "A", "no": "B"}, {}).test) == 20


@pytest.mark.parametrize("task, columns, row", [("labels", "text,label", "one {i},{ab}"), ("completions", "prompt,completion", "say {i},it is {i}")])
def test_a_task_of_ones_own_is_judged_as_it_was_trained(task, columns, row, tmp_path, monkeypatch):
    "At 6d2b5f9 its labels were refused, or its completions had no end, where a file judges."
    from sftdpo.data import load_judged
    from sftdpo.tasks import TASKS
    monkeypatch.setitem(TASKS, "mine", dataclasses.replace(TASKS[task], name="mine"))
    (tmp_path / "rows.csv").write_text(columns + "\n" + "".join(row.format(i=i, ab="ab"[i % 2]) + "\n" for i in range(20)))
    mine, known = (load_judged(name, tmp_path / "rows.csv") for name in ("mine", task))
    assert (len(mine.test), mine.end_of_text, mine.verbalizers) == (len(known.test), known.end_of_text, known.verbalizers) == (20, task == "completions", ("a", "b") * (task == "labels"))


def test_150_labels(tmp_path):
    path = write(tmp_path, "intents.csv", "text,intent\n" + "".join(f"text {i},intent_{i % 150}\n" for i in range(450)))
    task = load_task("labels", path)
    from sftdpo.reading.check import check_data
    assert len(task.verbalizers) == 150 and max(map(len, unbroken(check_data(task)).splitlines())) < 1500 and max(map(len, str(check_data(task)).splitlines())) <= 80


# -- settings files, and paths

@pytest.mark.parametrize("text, told", [
    ("a: &a [x, x]\nb: &b [*a, *a]\n", "line 2 has the alias *a: write the value out"),
    ("a: " + "[" * 3000 + "]" * 3000, "nested deeper than 20 levels"),
    ("a: 1\n" * 300_000, "too many for settings|too many"),
    (b"name: caf\xe9\n", "line 1: the byte 0xe9 is not UTF-8"),
    ("a: [", "not YAML")])
def test_settings_files_that_cannot_be_used(text, told, tmp_path, capsys):
    from sftdpo.cli import main
    path = write(tmp_path, "study.yaml", text)
    with pytest.raises(SystemExit) as end: main(["compare", "--settings", str(path)])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "study.yaml" in said and any(words in said for words in told.split("|"))


def test_a_settings_file_that_is_not_there(capsys):
    from sftdpo.cli import main
    with pytest.raises(SystemExit) as end: main(["compare", "--settings", "nofile.yaml"])
    assert end.value.code == 2 and "--settings nofile.yaml: there is no such file: check the path" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["data", "check", "~nosuchuser/x.csv"], ["compare", "--tasks", "labels", "--data", "~nosuchuser/x.csv"], ["compare", "--settings", "~nosuchuser/x.yaml"]])
def test_a_user_that_does_not_exist(words, tmp_path, capsys):
    from sftdpo.cli import main
    with pytest.raises(SystemExit) as end: main(words + (["--out", str(tmp_path / "out")] if words[0] == "compare" else []))
    said = capsys.readouterr().err
    assert end.value.code == 2 and "~nosuchuser" in said and "Traceback" not in said


# -- a saved model is judged as it was trained

@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    "A model of two labels that was trained with a template and answers of its own."
    from tiny import tiny_model

    from sftdpo.config import Run, Stage
    from sftdpo.model import save_policy
    from sftdpo.study import train_run
    folder = tmp_path_factory.mktemp("trained")
    base = str(save_policy(tiny_model("gpt2", tokenizer), tokenizer, folder / "base"))
    text = "sentence\tlabel\n" + "".join(f"The {'good' if i % 2 else 'bad'} line {i}.\t{i % 2}\n" for i in range(120))
    reading = Reading(prompt="Say: {sentence}\\n", verbalizers={"0": "N", "1": "Y"})
    run = Run(backbone=base, task="labels", data=str(write(folder, "two.tsv", text)), reading=reading, sft=Stage("sft", epochs=4, batch_size=8, learning_rate=3e-3))
    return folder, run, train_run(run, folder / "out", progress=False)


def judged(capsys, *words):
    from sftdpo.cli import main
    main(["evaluate", *words])
    said = capsys.readouterr().out
    return said, {name: float(value) / 100 for name, value in re.findall(r"^(\S.*?)  +([\d.]+) %", said, re.MULTILINE)}


def test_evaluate_remembers_the_training(trained, capsys):
    folder, run, metrics = trained
    said, found = judged(capsys, str(folder / "out"))
    assert found["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-3) and "judged: 24 examples" in said


def test_all_rows_of_a_named_file_judge(trained, capsys):
    folder, *_ = trained
    path = write(folder, "new.tsv", "sentence\tlabel\n" + "".join(f"The {'good' if i % 2 else 'bad'} new {i}.\t{i % 2}\n" for i in range(100)))
    said, _ = judged(capsys, str(folder / "out" / "model"), "--data", str(path))
    assert "judged: 100 examples of new" in said


def test_a_file_with_one_class_is_judged(trained, capsys):
    folder, *_ = trained
    path = write(folder, "one.tsv", "sentence\tlabel\n" + "".join(f"The good new {i}.\t1\n" for i in range(30)))
    said, found = judged(capsys, str(folder / "out"), "--data", str(path))
    assert "judged: 30 examples" in said and 0 <= found["accuracy"] <= 1


def test_other_names_of_the_labels(trained, capsys):
    from sftdpo.cli import main
    folder, *_ = trained
    path = str(write(folder, "names.tsv", "sentence\tlabel\n" + "".join(f"The {'good' if i % 2 else 'bad'} new {i}.\t{'pos' if i % 2 else 'neg'}\n" for i in range(30))))
    same = str(write(folder, "same.tsv", "sentence\tlabel\n" + "".join(f"The {'good' if i % 2 else 'bad'} new {i}.\t{i % 2}\n" for i in range(30))))
    with pytest.raises(SystemExit): main(["evaluate", str(folder / "out"), "--data", path])
    told = capsys.readouterr().err
    assert "holds 'neg', 'pos'" in told and "--reading.verbalizers LABEL ANSWER" in told and "the answers are 'N', 'Y'" in told
    _, found = judged(capsys, str(folder / "out"), "--data", path, "--reading.verbalizers", "pos", "Y", "neg", "N")
    assert found == judged(capsys, str(folder / "out"), "--data", same)[1]
    with pytest.raises(SystemExit): main(["evaluate", str(folder / "out"), "--data", path, "--reading.verbalizers", "pos", "yes", "neg", "no"])
    assert "the model learned the answers 'N', 'Y': use these" in capsys.readouterr().err


def test_one_bad_byte_does_not_spoil_rows_that_are_utf8(tmp_path):
    "Where other rows hold UTF-8 beyond ASCII, the row is to be corrected; another encoding would garble the others."
    lines = [f"Café number {i},{'ab'[i % 2]}\n".encode() for i in range(40)]
    lines[7] = "Café,a\n".encode("latin-1")
    (tmp_path / "cafe.csv").write_bytes(b"text,label\n" + b"".join(lines))
    with pytest.raises(DataError, match="not UTF-8, as other rows are.*Correct or delete") as error: load_task("labels", tmp_path / "cafe.csv")
    assert "--reading.encoding" not in str(error.value)
    (tmp_path / "old.csv").write_bytes(b"text,label\n" + b"".join(f"Café number {i},{'ab'[i % 2]}\n".encode("latin-1") for i in range(40)))
    with pytest.raises(DataError, match="--reading.encoding latin-1"): load_task("labels", tmp_path / "old.csv")


# -- texts over several lines that are well quoted

TEXTS = dict(code="def f{i}(a,b):\n    return g(a,b)\n", json='{{\n  "name": "Person {i}",\n  "age": 20\n}}', address="Dear team,\nMain Street {i},Springfield\nThanks\n", tabs="if (a > {i}) {{\n\treturn 1;\n}}")

@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_well_quoted_file_is_believed(kind, delimiter, tmp_path):
    "At 7f3c9e5c lines of code, JSON and addresses within quotes were read as rows: one such file of 200 gave the labels 'b)', '1)' and 'x)'."
    rows = [[TEXTS[kind].format(i=i), "ab"[i % 2]] for i in range(40)]
    with open(tmp_path / "rows.csv", "w", newline="") as file: csv.writer(file, delimiter=delimiter).writerows([["text", "label"], *rows])
    table = read_table(tmp_path / "rows.csv")
    assert not table.problems and [list(row) for row in zip(*table.columns.values())] == rows


def test_two_stray_quotes_merge_no_rows(tmp_path):
    "Speech that opens in one row and closes in the next, in a table whose fields are not quoted."
    lines = [f'{"speech" if i % 20 in (3, 4) else "plain"}\t{chr(34) * (i % 20 == 3)}I shall go {i} today{chr(34) * (i % 20 == 4)}' for i in range(100)]
    table = read_table(write(tmp_path, "rows.tsv", "label\ttext\n" + "\n".join(lines) + "\n"))
    assert not [text for text in table.columns["text"] if "\n" in text]


def test_no_line_of_a_refused_record_is_a_row(tmp_path):
    "At 7f3c9e5c the lines inside a record that was refused were read as rows."
    text = "text,label\nfine,a\n" + 'dull,b\n"def f(a,b):\n    return g(a,b)\n",a\n' * 5 + 'this "is" odd,a,b\n'
    table = read_table(write(tmp_path, "rows.csv", text))
    assert set(table.columns["text"]) == {"fine", "dull"} and len(table.problems) == 16, "each of the lines is named"
    assert "so none of these 3 lines is read: correct the quotes, or save the table as JSON lines or Parquet" in table.problems[0].reason


def test_a_test_table_without_the_column_of_labels(tmp_path):
    "At 7f3c9e5c Kaggle's test.csv, which has no labels, stopped the run."
    write(tmp_path, "set/train.csv", "id,text,target\n" + "".join(f"{i},Tea {i} is fine,{i % 2}\n" for i in range(40)))
    write(tmp_path, "set/test.csv", "id,text\n" + "".join(f"{i},Milk {i} is fine\n" for i in range(40)))
    task = load_task("labels", tmp_path / "set", Reading(prompt="{text}\\n", label="target"))
    assert len(task.examples) == 40 and "test.csv has no labels and is not used: a part of train judges" in task.intake.notes
    from sftdpo.reading.check import check_file
    assert not check_file(None, tmp_path / "set").stops
    write(tmp_path, "set/test.csv", "id,text,gold\n" + "".join(f"{i},Milk {i} is fine,0\n" for i in range(40)))
    with pytest.raises(DataError, match="differ in their columns"): load_task("labels", tmp_path / "set")
