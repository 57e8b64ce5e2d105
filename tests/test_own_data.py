"Data of one's own: every way in which a file can be wrong, texts that must come through unharmed, and ten thousand hostile files."
import copy
import csv
import io
import json
import os
import random
import re
import shlex
from dataclasses import make_dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from little import unbroken

import sftdpo.reading.files
from sftdpo.config import Reading
from sftdpo.data import (
    DataError,
    Example,
    UnusableRows,
    fit_task,
    keep,
    load_judged,
    load_prompts,
    load_task,
    make_pairs,
    without_rejected,
)
from sftdpo.engine.export import COURSE_TOKENS, paraphrase_submission, sonnet_submission, write_pairs, write_predictions
from sftdpo.reading.check import check_data, check_file, reading_options, reasons, write_check
from sftdpo.reading.files import find_files, not_a_text, read_table, table_of, write_problems
from sftdpo.reading.rows import fit, longer_than, suggest_verbalizers, tokenize

qqp = "id,question1,question2,is_duplicate\n"


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return path


def moods(rows=30):
    return "text,mood\n" + "".join(f"Day {i}.,{('good', 'bad', 'mixed')[i % 3]}\n" for i in range(rows))


# -- every way in which a file can be wrong: the message names the place, the value and the remedy

@pytest.mark.parametrize("task, name, data, message", [
    # no table at all
    ("labels", "empty.csv", b"", "empty.csv is empty: is it the right file"),
    ("labels", "blank.csv", b"\xef\xbb\xbf \r\n\n", "blank.csv is empty"),
    ("labels", "zip.csv", b"PK\x03\x04" + bytes(99), "an Excel workbook or another zip archive: save the sheet as CSV"),
    ("labels", "old.csv", b"\xd0\xcf\x11\xe0" + bytes(99), "an old Excel workbook: save the sheet as CSV"),
    ("labels", "packed.csv", b"\x1f\x8b" + bytes(99), "packed with gzip: unpack it"),
    ("labels", "pickle.csv", b"\x80\x04\x95" + bytes(99), "a Python pickle, which can run code and is never opened"),
    ("labels", "noise.csv", bytes(range(256)) * 9, "control characters, so it is not a text file"),
    ("labels", "head.csv", b"text,mood\n", "a header and no rows"),
    ("completions", "broken.parquet", b"PAR1 and no more", "cannot be read as Parquet .*is the file whole"),
    ("completions", "broken.json", b'[{"prompt": 1', r"not JSON .* at character \d+.*array of objects"),
    ("completions", "number.json", b"3", "holds a int: write an array of objects"),
    ("completions", "none.json", b"[]", "holds no rows"),
    ("completions", "deep.jsonl", b"[" * 100_000, "nested too deep"),
    # columns
    ("labels", "names.csv", "text,feeling\nx,good\n", r"line 1: the task 'labels' finds no column for label among \['text', 'feeling'\].*--tasks labels --reading.label COLUMN"),
    ("labels", "other.csv", "prompt,chosen,rejected\na,b,c\n", "The columns fit the task 'preferences': --tasks preferences"),
    ("paraphrase", "other.jsonl", '{"prompt": "a", "completion": "b"}\n', "The columns fit the task 'completions'"),
    ("labels", "twice.csv", "text,label,text\na,b,c\n", "line 1: the column 'text' stands twice: rename one"),
    ("labels", "quote.csv", 'text,"label\nfoo,bar\n', "finds no column for label"),
    ("labels", "ragged.csv", "text;label\na,b\nc,d\n", r"none of 2 rows has the 2 columns of the header \['text', 'label'\]; line 2: 1 field where the header has 2.*--reading.delimiter"),
    # rows
    ("paraphrase", "label.csv", qqp + "1,A?,B?,maybe\n", "line 2: the label is 'maybe', not 0 or 1"),
    ("paraphrase", "label.csv", qqp + "1,A?,B?,\n", "line 2: the label is '', not 0 or 1"),
    ("paraphrase", "label.csv", qqp + "1,A?,B?,nan\n", "line 2: the label is 'nan', not 0 or 1"),
    ("paraphrase", "empty.csv", qqp + "1,A?,B?,1\n\n2,A?, ,0\n", "1 of 2 rows cannot be used: line 4: an empty question.*--reading.unusable drop"),
    ("paraphrase", "short.csv", qqp + "1,A?,B?,1\n2,A?,0\n", "line 3: 3 fields where the header has 4"),
    ("paraphrase", "quote.csv", qqp + '1,"A?,B?,1\n2,C?,D?,1\n', "1 of 2 rows cannot be used: line 2: a quote opens in field 2 and does not close: check the quotes"),
    ("paraphrase", "quote.csv", qqp + '1,"A" or B,B?,1\n2,C?,D?,1\n', "line 2: text stands after the quote that closes field 2"),
    ("paraphrase", "pair.csv", qqp + '1,"A?,B?,1\n2,C?,D?,1\n3,so",D?,1\n', "line 2: a quote opens here and closes on line 4, and line 3 looks like a row of its own"),
    ("paraphrase", "null.csv", qqp + "1,A?,B?,1\n2,A\0?,B?,1\n", "line 3: the question holds a null byte at character 2"),
    ("paraphrase", "latin.csv", (qqp + "1,café?,B?,1\n").encode("latin-1"), "line 2: the question holds the byte 0xe9, which is not UTF-8 .saved in another encoding. --reading.encoding latin-1.*Give the encoding that the file was saved with: --reading.encoding latin-1"),
    ("completions", "surrogate.jsonl", '{"prompt": "a\\ud800", "completion": "b"}\n', r"line 1: the prompt holds a lone surrogate U\+D800 at character 2"),
    ("completions", "missing.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "line 2: the completion is missing"),
    ("completions", "nan.jsonl", '{"prompt": "a", "completion": NaN}\n', "line 1: the completion is nan, not a text"),
    ("completions", "inf.jsonl", '{"prompt": -Infinity, "completion": "b"}\n', "line 1: the prompt is -inf, not a text"),
    ("completions", "turn.jsonl", '{"prompt": "a", "completion": [{"role": "user"}]}\n', "line 1: the completion is a conversation with a turn that holds no text"),
    ("completions", "units.jsonl", '{"prompt": "a", "completion": [{"value": 3, "unit": "kg"}]}\n', "line 1: the completion is a list, not a text: give a column with one value"),
    ("labels", "rows.json", '{"text": ["a"], "text ": ["b"]}', "rows.json: the column 'text' stands twice: rename one of them"),
    ("completions", "json.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": \n', "line 2: not JSON"),
    ("completions", "digits.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": ' + "9" * 9999 + "}\n", "line 2: not usable JSON"),
    ("preferences", "same.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "line 1: the chosen completion equals the rejected one, 'b'"),
    ("labels", "one.csv", "text,label\na,good\nb,good\n", "holds 1 label .'good'., and telling labels apart needs two"),
    ("labels", "many.csv", "text,label\n" + "".join(f"a,{i}x\n" for i in range(257)), "holds 257 different labels, and at most 256 .*--tasks completions"),
    ("labels", "few.csv", "text,label\na,good\nb,bad\n", "no examples are left for train: more rows are needed"),
])
def test_errors(tmp_path, task, name, data, message):
    path = write(tmp_path, name, data)
    with pytest.raises(DataError, match=f"(?s){message}") as error:
        load_task(task, path)
    assert name in str(error.value)


def test_paths_that_lead_nowhere(tmp_path):
    for data, message in (("nowhere.csv", "no such file or folder"), ("a\0b", "no such file or folder"), ("a" * 300, "cannot be a path"), (str(tmp_path), "holds no training file"), ("/dev/null", "is not a file")):
        with pytest.raises(DataError, match=message): load_task("labels", data)
    with pytest.raises(DataError, match="is for data of your own: give --data FILE"): load_task("labels")
    with pytest.raises(DataError, match="data is a int"): load_task("labels", 3)
    write(tmp_path, "a-train.csv", moods()), write(tmp_path, "b-train.csv", moods())
    with pytest.raises(DataError, match="2 files that could be for train"): load_task("labels", tmp_path)


def test_a_huge_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sftdpo.reading.files, "LARGEST_BYTES", 100)
    with pytest.raises(DataError, match=r"has \d+ bytes, and at most 100 are read: keep a part of it"): load_task("labels", write(tmp_path, "huge.csv", moods()))


@pytest.mark.parametrize("reading, message", [
    (dict(delimiter=";"), "finds no column for prompt and label"), (dict(encoding="utf-16"), "a header and no rows|is not utf-16"),
    (dict(label="mod"), "--reading.label names the column 'mod', and the columns are .*did you mean 'mood'"), (dict(prompt="{txt}"), "did you mean 'text'"),
    (dict(prompt="{text"), "a single '{' at character 1 of '{text'"), (dict(label="mood", verbalizers={"good": "A", "bad": "B", "fine": "C"}), "the label 'fine' of --reading.verbalizers never occurs"),
    (dict(label="mood", verbalizers={"good": "A", "bad": "B"}), "10 of 30 rows cannot be used: line 4: the label is 'mixed', none of 'good', 'bad'"),
    (dict(label="mood", verbalizers={"good": "A", "bad": "A", "mixed": "C"}), "two labels the same answer"), (dict(label="mood", test="nowhere.csv"), "There is no file nowhere.csv"),
])
def test_readings_that_do_not_fit(tmp_path, reading, message):
    with pytest.raises(DataError, match=message): load_task("labels", write(tmp_path, "moods.csv", moods()), reading=Reading(**reading))


def test_fewer_rows_than_asked_for(tmp_path):
    from sftdpo.data import subset
    task = load_task("labels", write(tmp_path, "moods.csv", moods()), reading=Reading(label="mood"))
    with pytest.raises(DataError, match="500 examples were asked for, of 15"): subset(task.train, 500, 0)


def test_over_long_texts(tmp_path, tokenizer):
    rows = [dict(prompt="short ", completion="x")] * 20 + [dict(id="long", prompt="word " * 400 + "end ", completion="x")] * 1
    task = load_task("completions", rows)
    with pytest.raises(DataError, match=r"examples is longer than the 100 tokens .*'long'.*--reading.too-long drop.*--reading.too-long truncate"): fit_task(task, tokenizer, 100)
    dropped, cut = (fit_task(task, tokenizer, 100, way) for way in ("drop", "truncate"))
    count = lambda data: sum(len(s) for s in data.splits.values())
    assert (count(dropped), count(cut)) == (20, 21) and sum(dropped.intake.too_long.values()) == sum(cut.intake.too_long.values()) == 1
    long = next(e for s in cut.splits.values() for e in s if e.id == "long")
    assert long.prompt.endswith("word end ") and not longer_than([long], tokenizer, True, 100) and len(tokenize([long], tokenizer, True, 100)) == 1
    with pytest.raises(DataError, match="the completion alone is too long"): fit([Example("x", "a", "word " * 400)], tokenizer, True, 100, "truncate")
    with pytest.raises(DataError, match="None would be left"): fit([Example("x", "a", "word " * 400)], tokenizer, True, 100, "drop")


def test_byte_bound_is_a_bound(tokenizer):
    texts = ["plain words", "naïve 😀 ß", "\n\t ", "\u202e\u200b", "<script>", "日本語" * 5, "a" * 300]
    for limit in (1, 5, 20, 80):
        found = {i for i, *_ in longer_than([Example(str(i), t, t) for i, t in enumerate(texts)], tokenizer, True, limit)}
        assert found == {i for i, t in enumerate(texts) if 2 * len(tokenizer(t)["input_ids"]) + 1 > limit}


def test_many_bad_rows_are_counted_listed_and_written(tmp_path):
    path = write(tmp_path, "bad.csv", qqp + "".join(f"{i},A{i}?,B?,{'1' if i % 3 else 'x'}\n" for i in range(60)))
    with pytest.raises(UnusableRows, match=r"20 of 60 rows cannot be used: line 2: the label is 'x', not 0 or 1, and 19 more like it .line 5, line 8, line 11, ....\. Correct or delete them, or leave") as error: load_task("paraphrase", path)
    listed = write_problems(error.value.problems, tmp_path / "out" / "unusable.csv")
    rows = list(csv.DictReader(open(listed, newline="")))
    assert len(rows) == 20 and [r["line"] for r in rows[:3]] == ["2", "5", "8"] and rows[0]["reason"] == "the label is 'x', not 0 or 1"
    task = load_task("paraphrase", path, reading=Reading(unusable="drop"))
    assert sum(len(s) for s in task.splits.values()) == 40 and len(task.intake.problems) == 20


def test_course_sample_loads_500_and_names_2(shared):
    path = shared / "qqp" / "raw_course_sample.csv"
    with pytest.raises(UnusableRows, match="2 of 502 rows cannot be used") as error: load_task("paraphrase", path)
    assert [(p.place, p.unit) for p in error.value.problems] == [("line 302", "line"), ("line 303", "line")]
    task = load_task("paraphrase", path, reading=Reading(unusable="drop"))
    assert sum(len(s) for s in task.splits.values()) == 500
    assert len(load_judged("paraphrase", path, Reading(unusable="drop")).test) == 500
    report = check_file("paraphrase", path)
    assert report.rows == 502 and len(report.problems) == 2 and "--reading.unusable drop" in report.command and "raw_course_sample.csv line 302" in unbroken(str(report))


# -- what is accepted

def test_delimiters_are_found_out(tmp_path):
    for delimiter in ",;|\t": assert read_table(write(tmp_path, "some.csv", f"text{delimiter}mood\nx y{delimiter}good\n")).columns == dict(text=["x y"], mood=["good"])


def test_line_ends_and_marks(tmp_path):
    for mark, code in ((b"", "utf-8"), (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        path = write(tmp_path, "some.csv", mark + 'text,mood\r\nnaïve,a\r"two\r\nlines",b\nlast,c'.encode(code))
        assert read_table(path).columns == dict(text=["naïve", "two\r\nlines", "last"], mood=["a", "b", "c"])
    assert read_table(write(tmp_path, "latin.csv", "text\ncafé\n".encode("latin-1")), encoding="latin-1").columns == dict(text=["café"])


def test_hostile_texts_come_through(tmp_path, tokenizer):
    texts = ["<script>alert(1)</script>", "\x07bell\x1b[31m", "\u202eright to left\u202c", "NaN", "inf", "null", "None", "=1+1", "'; DROP TABLE x;--", "{prompt}", "{0.__class__}", "%s %n",
             "a" * 1_000_000, "\u2028\u2029\x85\x0b\x0c.", "<|endoftext|>", '"', '""', "\\", "\ufeff", "e\u0301", "😀", "\x7f", "  spaces  "]
    rows = [dict(prompt=t, completion=t, n=i) for i, t in enumerate(texts)]
    table = tmp_path / "some.csv"
    with open(table, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "completion", "n"]); writer.writeheader(); writer.writerows(rows)
    lines = write(tmp_path, "some.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    for data in (table, lines, rows, keep(rows, tmp_path / "kept")):
        task = load_task("completions", data, reading=Reading(prompt="{prompt}", id="n"))
        examples = sorted((e for s in task.splits.values() for e in s), key=lambda e: int(e.id))
        assert [e.prompt for e in examples] == [e.completion for e in examples] == texts
    report = check_data(task)
    assert "\x1b" not in str(report) and "\u202e" not in report._repr_markdown_() and json.dumps(report.to_dict())
    short = [e for e in examples if len(e.prompt) < 100]
    for e, row in zip(short, tokenize(short, tokenizer, False)): assert tokenizer.decode(row.prompt) == e.prompt


def test_shapes_of_data_in_python(tmp_path):
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    rows = [dict(prompt=f"p{i} ", chosen=f"c{i}", rejected=f"r{i}") for i in range(20)]
    frame, dataset = pandas.DataFrame(rows), datasets.Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "one")
    split = datasets.DatasetDict(train=dataset, validation=dataset.select(range(5)), test=dataset.select(range(7)))
    split.save_to_disk(tmp_path / "three")
    frame.to_parquet(tmp_path / "p.parquet"), frame.to_csv(tmp_path / "c.csv", index=False), frame.to_csv(tmp_path / "t.tsv", sep="\t"), frame.to_feather(tmp_path / "f.feather")
    write(tmp_path, "a.json", json.dumps(rows)), write(tmp_path, "d.json", json.dumps(dict(data=rows)))
    texts = {(r["prompt"], r["chosen"], r["rejected"]) for r in rows}
    for data in (rows, frame, dataset, dataset.shuffle(seed=1), keep(frame, tmp_path / "kept"), *(tmp_path / name for name in ("one", "p.parquet", "c.csv", "t.tsv", "f.feather", "a.json", "d.json"))):
        task = load_task("preferences", data)
        assert {(e.prompt, e.completion, e.rejected) for s in task.splits.values() for e in s} == texts, data
        assert [len(s) for s in task.splits.values()] == [13, 3, 4] and task.end_of_text
    for data in (split, dict(train=rows, dev=rows[:5], test=rows[:7]), tmp_path / "three"):
        assert [len(s) for s in load_task("preferences", data).splits.values()] == [20, 5, 7]
    assert not load_task("preferences", rows, reading=Reading(end_of_text=False)).end_of_text


def test_missing_values_in_a_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(dict(text=["a", None, "c"] * 9, label=[0, 1, float("nan")] * 9))
    with pytest.raises(UnusableRows, match="18 of 27 rows cannot be used: row 2: the prompt is missing, and 8 more like it .*; row 3: the label is missing, and 8 more like it"): load_task("labels", frame.assign(label=[0, 1, None] * 9, x=0).replace({"a": "a"}))
    table = table_of(frame)
    assert table.values("label")[:3] == [0.0, 1.0, None]


def test_labels_and_their_answers(tmp_path):
    path = write(tmp_path, "stars.csv", "review,stars\n" + "".join(f"Text {i},{i % 12}.0\n" for i in range(60)))
    task = load_task("labels", path, reading=Reading(label="stars"))
    assert task.verbalizers == tuple(map(str, range(12))) and task.train[0].prompt.endswith("\n")
    task = load_task("labels", path, reading=Reading(label="stars", verbalizers={str(i): chr(65 + i) for i in range(11, -1, -1)}))
    assert task.verbalizers[0] == "L" and all(e.completion == task.verbalizers[e.label] for e in task.train)


def test_folders_and_files_of_their_own(tmp_path):
    for name, rows in (("train", 30), ("dev", 9), ("test", 12)): write(tmp_path / "all", f"{name}.csv", moods(rows))
    reading = Reading(label="mood")
    assert [len(s) for s in load_task("labels", tmp_path / "all", reading=reading).splits.values()] == [30, 9, 12]
    (tmp_path / "all" / "test.csv").unlink()
    assert [len(s) for s in load_task("labels", tmp_path / "all", reading=reading).splits.values()] == [21, 9, 9]  # dev judges
    own = replace(reading, test=str(tmp_path / "all" / "dev.csv"))
    assert [len(s) for s in load_task("labels", tmp_path / "all" / "train.csv", reading=own).splits.values()] == [21, 9, 9]
    for i in range(2): write(tmp_path / "shards", f"train-0000{i}-of-00002.csv", moods(30))
    examples = [e for s in load_task("labels", tmp_path / "shards", reading=reading).splits.values() for e in s]
    assert len(examples) == len({e.id for e in examples}) == 60
    with open(tmp_path / "shards" / "train-00001-of-00002.csv", "a") as file: file.write("no mood,\n")
    with pytest.raises(DataError, match="1 of 61 rows cannot be used: train-00001-of-00002.csv line 32"): load_task("labels", tmp_path / "shards", reading=reading)
    assert {role: [p.name for p in paths] for role, paths in find_files(tmp_path / "all").items()} == {"train": ["train.csv"], "validation": ["dev.csv"]}


def test_the_hub_from_a_local_folder(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas"); pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"): (tmp_path / "set").mkdir(exist_ok=True), pandas.DataFrame([dict(prompt=f"{split} {i} ", completion="x") for i in range(20)]).to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    task = load_task("completions", f"hub:{tmp_path / 'set'}")
    assert [len(s) for s in task.splits.values()] == [16, 4, 20] and task.name == "set"
    with pytest.raises(DataError, match="cannot be had from the Hub"): load_task("completions", "hub:no/such-set-anywhere")


def test_splits_stay_the_same_and_differ_by_fold(tmp_path):
    path = write(tmp_path, "moods.csv", moods(60))
    first, again, other = (load_task("labels", path, Reading(label="mood"), 5, fold) for fold in (1, 1, 2))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert not {e.id for e in first.test} & {e.id for e in other.test}


def test_repeated_ids_get_the_line():
    task = load_task("completions", [dict(id="a", prompt=f"p{i}", completion="c") for i in range(9)])
    ids = [e.id for s in task.splits.values() for e in s]
    assert len(set(ids)) == 9 and "a (3)" in ids


def test_leaks_are_counted_and_dropped(tmp_path):
    write(tmp_path, "train.csv", moods(30) + "DAY  3.,good\n"), write(tmp_path, "test.csv", "text,mood\nday 3.,good\nOther.,bad\n")
    reading = Reading(label="mood")
    kept, dropped = (load_task("labels", tmp_path, reading=replace(reading, leaked=way)) for way in ("keep", "drop"))
    count = lambda task: len(task.train) + len(task.validation)
    assert count(kept) - count(dropped) == 2 == sum(dropped.intake.leaked.values())
    shared = check_data(kept).shared
    assert shared["train in test"] + shared["validation in test"] == 2
    assert not any(check_data(dropped).shared.values())


# -- pairs, and out again

def test_given_pairs_and_builders():
    rows = [dict(prompt=f"p{i} ", chosen=f"good {i} words here", rejected=f"bad {i}") for i in range(20)]
    task = load_task("preferences", rows)
    assert make_pairs(task.train, "given", 0) == task.train
    assert all(e.rejected is None for e in without_rejected(task.train))
    for builder in ("swap", "corrupt"):
        assert all(p.rejected not in (p.completion, e.rejected) for p, e in zip(make_pairs(task.train, builder, 0), task.train))
    with pytest.raises(DataError, match="13 of 13 examples have none"): make_pairs(without_rejected(task.train), "given", 0)


@pytest.mark.filterwarnings("ignore")
def test_trl_trains_on_the_pairs_unchanged(tmp_path, tiny_gpt2):
    import datasets
    from trl import DPOConfig, DPOTrainer
    model, tokenizer = tiny_gpt2
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    model.save_pretrained(tmp_path / "model")
    pairs = make_pairs([Example(str(i), f"Shall I {i} ", f"compare thee {i}") for i in range(8)], "swap", 0)
    data = datasets.load_from_disk(str(write_pairs(pairs, tmp_path / "pairs")))
    assert data.column_names == ["prompt", "chosen", "rejected"]
    trainer = DPOTrainer(str(tmp_path / "model"), args=DPOConfig(output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, report_to="none", use_cpu=True, bf16=False, disable_tqdm=True),
                         train_dataset=data, processing_class=tokenizer)
    assert trainer.train().training_loss == pytest.approx(0.6931, abs=1e-3)


def test_predictions_keep_texts_and_probabilities(tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(dict(id=["a", "b"], probability_yes=[.1, 1 / 3], prompt=['"q"\r\nx,\ty', "naïve \u202e😀\r"]))
    for name in ("t.csv", "t.parquet", "t.jsonl", "t.tsv"):
        path = write_predictions(table, tmp_path / name)
        assert table_of(path).values("prompt") == list(table.prompt)
        assert [float(v) for v in table_of(path).values("probability_yes")] == pytest.approx(list(table.probability_yes), abs=1e-9)
    with pytest.raises(DataError, match="use one of .csv"): write_predictions(table, tmp_path / "t.pkl")


def test_submission_files(tmp_path, shared):
    pandas = pytest.importorskip("pandas")
    text = paraphrase_submission(pandas.DataFrame(dict(id=["AB", "c"], prediction=[1, 0])), tmp_path / "p.csv").read_text()
    assert text == "id \t Predicted_Is_Paraphrase \nab, 8505 \nc, 3919 \n" and COURSE_TOKENS == (3919, 8505)
    with pytest.raises(DataError, match="contains a comma"): paraphrase_submission(pandas.DataFrame(dict(id=["a,b"], prediction=[1])), tmp_path / "p.csv")
    course_reads = lambda text: [s.strip() for s in re.split(r"\n\s*\d+\s*\n", text)[1:]]  # the course's rule
    true = course_reads((shared / "sonnets" / "TRUE_sonnets_held_out_dev.txt").read_text(encoding="utf-8"))
    assert course_reads(sonnet_submission(true, tmp_path / "s.txt").read_text(encoding="utf-8")) == true and len(true) == 12
    assert len(course_reads(sonnet_submission(["a\n7\nb", "c\n8", "d\n\n9\n\n10\ne"], tmp_path / "s.txt").read_text())) == 3


# -- the report on load

def test_report_tells_what_is_wrong(tmp_path, tokenizer):
    rows = [dict(prompt=f"question {i % 25} ", completion="answer " * (1 + 40 * (i == 3))) for i in range(30)]
    report = check_file(None, rows, Reading(), lambda: (tokenizer, 100))
    assert report.task == "completions" and report.rows == 30
    assert sum(some["count"] for some in report.too_long.values()) == 1 and any("too long" in s for s in report.stops)
    assert sum(some["exact"] for some in report.duplicates.values()) + report.shared["train in test"] + report.shared["validation in test"] + report.shared["train in validation"] >= 4
    assert "--reading.too-long drop" in report.command and 2 <= len(report.short().splitlines()) <= 4
    paths = write_check(report, tmp_path)
    assert json.loads(paths[0].read_text())["rows"] == 30


def test_report_of_a_file_that_cannot_run(tmp_path):
    report = check_file("labels", write(tmp_path, "one.csv", "text,label\n" + "a,good\n" * 9))
    assert "telling labels apart needs two" in report.stops[0] and report.rows == 9
    with pytest.raises(DataError, match="fit no task"): check_file(None, write(tmp_path, "x.csv", "a,b\n1,2\n"))
    with pytest.raises(DataError, match="is empty"): check_file(None, write(tmp_path, "x.csv", ""))


def test_report_names_equal_pairs_once():
    rows = [dict(prompt=f"p{i} ", chosen="same" if i < 3 else f"a{i}", rejected="same") for i in range(30)]
    found = str(check_file("preferences", rows))
    assert "3 rows: the chosen completion equals the rejected one" in unbroken(found) and found.count("equals the rejected") == 1


def test_a_number_among_texts_is_told(tmp_path):
    "A slip such as 12 among sentences was read as the text '12' without a word."
    rows = [dict(prompt=f"p{i}\n", completion=f"a{i} and more") for i in range(30)]
    file = lambda name: write(tmp_path, name, "".join(json.dumps(row) + "\n" for row in rows))
    assert not any("a number" in note for note in check_file("completions", file("texts.jsonl")).notes)
    rows[4]["completion"] = rows[7]["completion"] = 12
    told = "'completion' holds texts, and a number in 2 rows, read as text (first: 12, line 5)"
    assert told in check_file("completions", file("some.jsonl")).notes
    rows = [dict(row, completion=i) for i, row in enumerate(rows)]
    assert not any("a number" in note for note in check_file("completions", file("numbers.jsonl")).notes)


def test_verses_are_no_table(tmp_path):
    with pytest.raises(DataError, match="One column is too few: a row needs a prompt and at least one answer or text") as told:
        check_file(None, write(tmp_path, "verses.txt", "Shall I compare thee\nThou art more lovely\n" * 9))
    assert "--reading" not in str(told.value)


def test_report_tells_long_answers(tmp_path, tokenizer):
    own = Reading(label="mood", verbalizers=dict(good="quite good", bad="rather bad", mixed="a mixture"))  # chosen by the user: nothing else stands for them
    report = check_file("labels", write(tmp_path, "m.csv", moods()), own, lambda: (tokenizer, 100))
    assert any(n > 1 for n in report.verbalizers.values()) and set(report.suggestion) == set(own.verbalizers.values()) and "--reading.verbalizers" in report.stops[-1]
    fixed = load_task("labels", tmp_path / "m.csv", reading=Reading(label="mood", verbalizers={label: report.suggestion[answer] for label, answer in own.verbalizers.items()}))
    assert fit_task(fixed, tokenizer, 100) is fixed
    with pytest.raises(DataError, match="such as --reading.verbalizers"): fit_task(load_task("labels", tmp_path / "m.csv", reading=own), tokenizer, 100)


def test_suggestions_are_single_distinct_tokens(tokenizer):
    better = suggest_verbalizers(("Yes", "No way", "yes "), tokenizer)
    ids = [tokenizer(word)["input_ids"] for word in better.values()]
    assert len(better) == 3 and all(len(i) == 1 for i in ids) and len({i[0] for i in ids}) == 3


@pytest.mark.parametrize("name", ["hubs.csv", "embedded.csv"])
def test_a_file_named_like_built_in_data_is_a_file(tmp_path, monkeypatch, name):
    write(tmp_path, name, moods(60))
    monkeypatch.chdir(tmp_path)
    report = check_file(None, name)
    assert report.sizes and report.recommend.startswith(f"sftdpo recommend {name} --task labels")


def test_the_command_is_understood_by_the_command_line(tmp_path):
    from sftdpo.config import from_dict, to_dict
    reading = Reading(prompt="{text}\n", verbalizers={"0": "no", "1": "yes"}, unusable="drop", end_of_text=False, delimiter=";")
    assert from_dict(Reading, to_dict(reading)) == reading
    tyro = pytest.importorskip("tyro")
    assert tyro.cli(make_dataclass("Command", [("reading", Reading, Reading())]), args=reading_options(reading)).reading == reading


def test_reasons_gather():
    from sftdpo.reading.files import Problem
    some = [Problem("f", i, f"the label is {word!r}, none of 'a', 'b'") for i, word in enumerate(["x", "y's", 'z"', "'\"", "1"])]
    assert reasons(some) == [("the label is 'x', none of 'a', 'b' (in the first of them)", 5, ["f line 0", "f line 1", "f line 2"])]
    assert reasons(some[:1] * 3)[0][:2] == ("the label is 'x', none of 'a', 'b'", 3)
    same = [Problem("f", i, f"the chosen completion equals the rejected one, {word!r}") for i, word in enumerate(["a", "it's", "b"])]
    odd = [Problem("f", i, f"the prompt holds the byte {byte:#04x}, which is not UTF-8 (saved in another encoding? --reading.encoding {name})") for i, (byte, name) in enumerate([(0xe9, "latin-1"), (0x80, "cp1252")])]
    assert [reason for reason, *_ in reasons(same + odd)] == ["the chosen completion equals the rejected one, 'a' (in the first of them)",
                                                             "the prompt holds the byte 0xe9, which is not UTF-8 (saved in another encoding? --reading.encoding latin-1) (in the first of them)"]


def labelled(folder, texts, name="some.csv", labels=("good", "bad")):
    return write(folder, name, "text,label\n" + "".join(f"{text},{labels[i % len(labels)]}\n" for i, text in enumerate(texts)))


def test_an_encoding_that_is_not_utf_8(tmp_path):
    for encoding, word, name in (("latin-1", "café", "latin-1"), ("cp1252", "café “so”", "cp1252")):
        path = write(tmp_path, "old.csv", b"text,label\n" + "".join(f"{word} {i},{'ab'[i % 2]}\n" for i in range(200)).encode(encoding))
        report = check_file("labels", path)
        assert f"--reading.encoding {name} --out" in report.command and "Correct or delete" not in report.stops[0] and report.stops[0].count("not UTF-8") == 1
        assert "200 rows, 0 usable" in str(report) and len(str(report)) < 1200
        assert load_task("labels", path, reading=Reading(encoding=name)).train[0].prompt.startswith(word)
    some = write(tmp_path, "some.csv", b"text,label\n" + "".join(f"{'café' if i % 9 == 0 else 'tea'} {i},{'ab'[i % 2]}\n" for i in range(90)).encode("latin-1"))
    report = check_file("labels", some)
    assert "90 rows, 80 usable" in str(report) and "--reading.encoding latin-1 --out" in report.command and "--reading.encoding latin-1" in report.stops[0]


GERMAN = [("ich will weg {}", "Kündigung"), ("wann kommt sie {}", "Frage"), ("Danke sehr {}", "Dank"), ("die Lieferung war zu spät {}", "Frage")]

def in_encoding(folder, encoding, rows, delimiter=","):
    return write(folder, "old.csv", f"text{delimiter}label\n".encode() + "".join(f"{rows[i % len(rows)][0].format(i)}{delimiter}{rows[i % len(rows)][1]}\n" for i in range(80)).encode(encoding))


def test_recommend_reads_a_file_in_its_encoding(tmp_path):
    "At 7f3c9e5c it left out every row with an accent, and with them a whole label."
    from sftdpo.recommend import rows_of_file
    said = []
    loaded, reading = rows_of_file(in_encoding(tmp_path, "cp1252", GERMAN, ";"), None, "bard", Reading(unusable="drop"), said.append)
    assert loaded.labels == ("Dank", "Frage", "Kündigung") and len(loaded.examples) == 80 and reading.encoding == "latin-1"
    assert "--reading.encoding latin-1, in which line 2 reads 'ich will weg 0, Kündigung'" in said[0] and not any("left out" in line for line in said)
    with pytest.raises(DataError, match="Name its own encoding, such as --reading.encoding gbk"): rows_of_file(in_encoding(tmp_path, "cp1251", [("Tea {}", "a"), ("Погода {}", "a"), ("Привет {}", "b")]), None, "bard", Reading(unusable="drop"), said.append)
    few = in_encoding(tmp_path, "cp1251", [("Tea {}", "a"), ("Milk {}", "b"), ("Привет {}", "b")])
    assert len(rows_of_file(few, None, "bard", Reading(unusable="drop"), said.append)[0].examples) > 20, "a few such rows are left out"


def test_of_two_labels_one_is_not_utf_8(tmp_path):
    "At 7f3c9e5c the error was 'holds 1 label ... is it the right column?'"
    path = in_encoding(tmp_path, "latin-1", GERMAN[:2])
    for unusable in ("stop", "drop"):
        with pytest.raises(UnusableRows, match="40 of 80 rows cannot be used: line 2: the label holds the byte 0xfc.*Give the encoding that the file was saved with: --reading.encoding latin-1, in which line 2 reads 'Kündigung, ich will weg 0'"): load_task("labels", path, Reading(unusable=unusable))
    assert "--reading.encoding latin-1" in check_file(None, path).command


@pytest.mark.parametrize("encoding, rows", [("gbk", [("今天天气很好{}", "积极"), ("服务太差了{}", "消极")]), ("shift_jis", [("今日は天気がいい{}", "良い"), ("ひどいサービス{}", "悪い")]),
                                            ("cp1251", [("Привет как дела {}", "хорошо"), ("Очень плохая погода {}", "плохо")])])
def test_encodings_of_other_alphabets(encoding, rows, tmp_path):
    "At 7f3c9e5c the remedy was latin-1 or cp1252, which reads nonsense without a problem."
    path = in_encoding(tmp_path, encoding, rows)
    with pytest.raises(UnusableRows) as error: load_task("labels", path)
    assert "Name its own encoding, such as --reading.encoding gbk, shift_jis or cp1251" in str(error.value) and f"as {encoding} it reads '{rows[0][0].format(0)[:5]}" in str(error.value)
    assert "latin-1" not in str(error.value) and "cp1252" not in str(error.value)
    report = check_file(None, path)
    assert not report.command and "latin-1" not in str(report) and "such as --reading.encoding gbk" in " ".join(str(report).split())
    assert {e.completion for e in load_task("labels", path, Reading(encoding=encoding)).examples} == {label for _, label in rows}


def test_an_encoding_that_reads_nothing_is_not_named(tmp_path):
    "At 7f3c9e5c a file of an old Mac was to be read as cp1252, which it is not, or as latin-1, with control characters for its accents."
    path = in_encoding(tmp_path, "mac_roman", [("Très bon café {}", "été"), ("déjà vu naïf {}", "hiver"), ("à bientôt {}", "hiver")])
    with pytest.raises(UnusableRows, match="Name its own encoding, such as --reading.encoding mac_roman or cp850 .as mac_roman it reads 'été, Très bon café 0'"): load_task("labels", path)
    assert not check_file("labels", path).command


def test_counts_are_true_where_nothing_can_be_used_or_loading_stops(tmp_path):
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(dict(prompt=[["a", "b"]] * 200, completion=["x"] * 200)).to_parquet(tmp_path / "list.parquet")
    report = check_file("completions", tmp_path / "list.parquet")
    assert "200 rows, 0 usable" in str(report) and report.stops[0].count("is a list") == 1 and "Write each list as one text" in report.stops[0] and "Correct" not in report.stops[0]
    report = check_file("labels", labelled(tmp_path, "abcdef", labels=["good"]))
    assert report.files[0]["usable"] is None and "6 rows" in str(report) and "usable" not in str(report)
    assert json.loads(write_check(report, tmp_path / "out")[0].read_text())["rows"] == 6
    for i in range(2): write(tmp_path / "shards", f"train-0000{i}-of-00002.csv", "text,label\n" + " ,a\n ,b\n ,b\n" + "b\n")
    report = check_file("labels", tmp_path / "shards")
    assert (report.files[0]["rows"], report.files[0]["usable"], len(report.problems)) == (8, 0, 8)
    assert {Path(problem.file).name for problem in report.problems} == {f"train-0000{i}-of-00002.csv" for i in range(2)}


def test_null_bytes_in_every_row(tmp_path):
    for line in ("tea\0 leaves and so on {},{}\n", "tea leaves and so on {},{}\0\n"):
        report = check_file("labels", write(tmp_path, "null.csv", "text,label\n" + "".join(line.format(i, "ab"[i % 2]) for i in range(200))))
        assert "200 rows, 0 usable" in str(report) and "holds a null byte" in report.stops[0] and "without null bytes" in report.stops[0] and not report.sizes
    with pytest.raises(DataError, match="the column name .* holds a null byte"): load_task("labels", write(tmp_path, "null.csv", "text,label\0\na,b\n"))


def test_labels_that_may_be_misspelt_or_missing(tmp_path):
    from sftdpo.data import nearly_equal
    rows = "".join(f"text {i},{'billing' if i % 2 else ' refund '}\n" for i in range(200))
    report = check_file("labels", write(tmp_path, "near.csv", f"text,label\n{rows}x,biling\ny,Billing \nz,NaN\nw,nan\nv,null\nt,NA\nu,\n"))
    assert set(report.balance["train"]) == {"Billing", "biling", "billing", "refund"}
    assert "the label 'biling' stands in 1 row (line 202): did you mean 'billing', which" in unbroken(report) and any("'Billing' (1) and 'billing' (100)" in note for note in report.notes)
    assert [p.line for p in report.problems] == list(range(204, 209)) and "stands for a missing value" in report.problems[0].reason
    named = write(tmp_path, "named.csv", f"text,label\n{rows}z,NA\n")
    assert load_task("labels", named, reading=Reading(verbalizers={"NA": "none", "billing": "b", "refund": "r"})).verbalizers == ("none", "b", "r")
    with pytest.raises(UnusableRows, match="the label is 'nan', which stands for a missing value.*and 8 more"): load_task("labels", labelled(tmp_path, "abcdefghi", labels=["nan"]))
    assert not nearly_equal({"positive": 1, "negative": 900, "class 1": 1, "class 2": 500, "good": 40, "bad": 2})
    assert nearly_equal({"Yes": 40, "yes": 60}) == [("Yes", "yes")]


def test_hints_on_columns(tmp_path):
    rows = "".join(f"text {i},{'good' if i % 2 else 'bad'}\n" for i in range(20))
    bare, whole = write(tmp_path, "bare.csv", rows), write(tmp_path, "whole.csv", f"text,label\n{rows}")
    with pytest.raises(DataError, match="'bad' occurs again in the column that it names: is the header missing"): load_task("labels", bare)
    report = check_file(None, bare)
    assert "is the header missing" in report.stops[0] and "a file without a header: --tasks labels --reading.columns text label" in report.notes[0]
    with pytest.raises(DataError, match="The name of the only column, 'text,label', holds ',': read it with --reading.delimiter ','"): load_task("labels", whole, reading=Reading(delimiter=";"))
    with pytest.raises(DataError, match="3 fields where the header has 2 .a comma within a text that is not quoted"): load_task("labels", write(tmp_path, "commas.csv", f"text,label\n{rows}so, so,good\n"))
    other = str(write(tmp_path, "other.csv", "texts,label\na,good\n"))
    with pytest.raises(DataError, match="whole.csv and other.csv differ in their columns: only whole.csv has 'text', only other.csv has 'texts'"): load_task("labels", whole, reading=Reading(test=other))
    other = str(write(tmp_path, "other.csv", "review,label\na,good\n"))
    assert "only other.csv has 'review'" in load_task("labels", whole, reading=Reading(test=other)).intake.notes[0]
    keys = write(tmp_path, "keys.jsonl", '{"text": "a", "label": "b"}\n{"txt": "a", "label": "c"}\n')
    with pytest.raises(DataError, match="line 2: the prompt is missing .the row has 'label', 'txt'"): load_task("labels", keys)


def test_options_are_spelled_as_the_command_line_has_them(tokenizer):
    with pytest.raises(DataError) as error: fit([Example("x", "word " * 90, "a")], tokenizer, True, 10)
    assert "--reading.too-long drop" in str(error.value) and "too_long" not in str(error.value)
    report = check_file("completions", [dict(prompt=f"{'word ' * 90 if i == 3 else i} ", completion="a") for i in range(20)], Reading(), lambda: (tokenizer, 50))
    assert report.stops == ["1 example is too long: leave them out (--reading.too-long drop) or cut their prompts (--reading.too-long truncate)"]


def test_one_of_a_thing_is_said_as_one(tmp_path):
    from sftdpo.engine.plain_text import counted
    from sftdpo.reading.examples import subset
    assert [counted(n, "row") for n in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
    with pytest.raises(DataError, match="1 example was asked for, of 0"): subset([], 1, 0)
    report = check_file("labels", labelled(tmp_path, ["a"] * 2 + list("bcdefghijklm"), labels=["good"] * 2 + ["bad"]), Reading())
    assert not re.search(r"\b1 (examples|duplicates|rows)\b", f"{report}{report.short()}")


def test_copies_of_a_text_stay_on_one_side(tmp_path):
    from sftdpo.data import _hold_out, _hold_out_texts
    path = labelled(tmp_path, [f"{'Text' if i % 2 else ' TEXT'}  {i // 3}" for i in range(300)])
    task = load_task("labels", path)
    assert not any(check_data(task).shared.values()) and [abs(len(s) - n) <= 3 for s, n in zip(task.splits.values(), (192, 48, 60))] == [True] * 3
    ten = [Example(str(i), f"p{i}", "a", label=0) for i in range(50)]
    assert _hold_out_texts(ten, 0) == _hold_out(ten, 0)
    pairs = write(tmp_path, "pairs.csv", qqp + "".join(f"{i},Who is {i // 2}?,Who was {i // 2}?,{i % 2}\n" for i in range(100)))
    assert not any(check_data(load_task("paraphrase", pairs)).shared.values())
    assert sum(map(len, load_task("labels", labelled(tmp_path, ["same"] * 30 + ["other"])).splits.values())) == 31  # nothing to keep apart
    for name in ("train", "dev"): write(tmp_path / "course", f"{name}.csv", pairs.read_text())
    train, validation = _hold_out(load_judged("paraphrase", pairs).test, 0)
    assert load_task("paraphrase", tmp_path / "course").validation == validation  # the published split


def test_one_prompt_never_trains_and_judges(tmp_path):
    "Several answers to a prompt stay on one side; a prompt of many copies is no likelier to be held out; one prompt for all splits by text."
    from sftdpo.data import _hold_out_texts, prompt_key
    pairs = [Example(f"{i}-{j}", f"Ask {i}?", f"good {i}{j}", f"bad {i}{j}") for i in range(100) for j in range(3)]
    for seed in range(3):
        train, test = _hold_out_texts(pairs, seed)
        assert not {prompt_key(e) for e in train} & {prompt_key(e) for e in test} and 50 <= len(test) <= 60
    crowd = [Example(f"{i}-{j}", f"text {i}", "a", label=0) for i in range(600) for j in range(5 if i < 100 else 1)]
    shares = [sum(int(e.id.split("-")[0]) < 100 for e in _hold_out_texts(crowd, seed)[1]) / 200 for seed in range(5)]
    assert abs(sum(shares) / 5 - 0.5) < 0.08
    poems = [Example(str(i), "Write a poem:", f"poem {i // 2}") for i in range(100)]
    train, test = _hold_out_texts(poems, 0)
    assert len(test) == 20 and not {e.completion for e in train} & {e.completion for e in test}
    write(tmp_path, "own.jsonl", "".join(json.dumps(dict(prompt=f"p{i // 2}", completion=f"c{i}")) + "\n" for i in range(20)))
    write(tmp_path, "test.jsonl", '{"prompt": "p1", "completion": "other"}\n')
    notes = check_file("completions", tmp_path / "own.jsonl", Reading(test=str(tmp_path / "test.jsonl"))).split_notes
    assert "the prompts of 1 of 1 test example stand in train too, perhaps with other completions" in notes


def test_a_named_column_plays_no_other_part(tmp_path):
    rows = [dict(title=f"t{i}", text=f"body {i}") for i in range(9)]
    with pytest.raises(DataError, match="finds no column for prompt"): load_task("completions", rows, reading=Reading(completion="text"))
    rows = [dict(headline=f"t{i}", source="AB"[i % 2]) for i in range(9)]
    with pytest.raises(DataError, match="finds no column for prompt"): load_task("labels", rows, reading=Reading(label="Source"))


def test_a_file_that_is_named_judges_and_dev_chooses(tmp_path):
    for name, rows in (("train", 30), ("dev", 9)): write(tmp_path / "all", f"{name}.csv", moods(rows))
    final = write(tmp_path, "final.csv", moods(12))
    for task in (load_task("labels", tmp_path / "all", reading=Reading(label="mood", test=str(final))),):
        assert [len(s) for s in task.splits.values()] == [30, 9, 12]
    for name in ("train", "dev", "test"): write(tmp_path / "pairs", f"{name}.csv", qqp + "".join(f"{i},Who {i} {name}?,Why {i} {name}?,{i % 2}\n" for i in range(20)))
    task = load_task("paraphrase", tmp_path / "pairs")
    assert len(task.test) == 20 and any("dev.csv judges, and test.csv is not used" in note for note in task.intake.notes)
    own = load_task("paraphrase", tmp_path / "pairs", reading=Reading(test=str(tmp_path / "pairs" / "test.csv")))
    assert [len(s) for s in own.splits.values()] == [20, 20, 20] and "test" in own.test[0].prompt


def test_no_file_of_a_folder_is_passed_over_in_silence(tmp_path):
    for name in ("train.csv", "reviews_test.csv"): write(tmp_path / "mixed", name, moods(9))
    assert {role: [p.name for p in paths] for role, paths in find_files(tmp_path / "mixed").items()} == {"train": ["train.csv"], "test": ["reviews_test.csv"]}
    for name in ("reviews_train.csv", "test.csv"): write(tmp_path / "other", name, moods(9))
    assert {role: [p.name for p in paths] for role, paths in find_files(tmp_path / "other").items()} == {"train": ["reviews_train.csv"], "test": ["test.csv"]}
    for name in ("train.csv", "train.jsonl"): write(tmp_path / "twice", name, moods(9))
    with pytest.raises(DataError, match="2 files that could be for train .train.csv, train.jsonl."): find_files(tmp_path / "twice")


def test_a_cell_of_several_values_is_no_text():
    numpy = pytest.importorskip("numpy")
    with pytest.raises(DataError, match="is a ndarray, not a text"): load_task("completions", [dict(prompt="p", completion=numpy.array(["a", "b"]))] * 9)
    assert load_task("completions", [dict(prompt=f"p{i}", completion=numpy.int64(i)) for i in range(9)]).train[0].completion.isdigit()


def test_a_list_is_no_conversation(tmp_path):
    "At 0fae5a8 a list of labels was to be read with --reading.conversations write, which changed nothing."
    import numpy
    with pytest.raises(DataError, match="is a list, not a text: give a column with one value in each row"): load_task("labels", [dict(text=f"t {i}", label=["a", "b"]) for i in range(30)])
    with pytest.raises(DataError, match="is a ndarray, not a text: give"): load_task("labels", [dict(text=f"t {i}", label=numpy.array(0)) for i in range(30)])
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    with pytest.raises(DataError, match="a conversation must be written out"): load_task("completions", [dict(prompt="p", completion=talk)] * 30, Reading(conversations="stop"))


def test_pairs_of_questions_without_their_columns(tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b\n" + "one?,two?\n" * 9)
    with pytest.raises(DataError, match=r"pairs.csv, line 1: .* no column for question1 and question2 among \['a', 'b'\] .*usually called sentence1, question1.* Give the columns such names\.$"): load_prompts("paraphrase", tmp_path / "pairs.csv")


def test_pairs_of_questions_read_with_the_wrong_delimiter(tmp_path):
    path = write(tmp_path, "pairs.csv", "id;question1;question2;is_duplicate\n" + "1;one?;two?;0\n" * 9)
    for load in (load_judged, load_prompts):
        with pytest.raises(DataError, match="read it with --reading.delimiter ';'"): load("paraphrase", path, Reading(delimiter=","))
        assert len(load("paraphrase", path, Reading(delimiter=";")).test) == 9
    path = write(tmp_path, "bare.csv", "one?,two?\n" * 9)
    with pytest.raises(DataError, match="is the header missing"): load_prompts("paraphrase", path)


def test_labels_of_which_one_is_named(tmp_path):
    rows = [dict(text=f"t {i}", label="abc"[i % 3]) for i in range(30)]
    with pytest.raises(DataError, match="--reading.verbalizers names 'a' alone, .*also holds 'b', 'c'"): load_task("labels", rows, Reading(verbalizers={"a": "A"}))


def test_answers_that_are_found_do_not_cross(tmp_path):
    "At 0fae5a8 the answer 'no' stood for the label 'NO', and 'No' for 'no'."
    from sftdpo.model import load_backbone
    from sftdpo.reading.rows import suggest_verbalizers
    tokenizer = load_backbone("bard")[1]
    found = suggest_verbalizers(["NO", "no", "Yes", "yes"], tokenizer)
    assert len(set(found.values())) == 4 and all(answer == label or answer not in found for label, answer in found.items())


def test_few_judging_rows_are_told_of_folds(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(100)))
    assert "with --folds 5 most rows do" in unbroken(check_file("labels", str(tmp_path / "rows.csv")))


@pytest.mark.parametrize("folds", [0, 3])
def test_a_study_in_folds_is_not_told_to_use_folds(tmp_path, folds):
    "At 8e87def3 each of its folds was told that --folds 5 lets most rows judge, and a table whose baseline is always right that it judges nearly all."
    from sftdpo.config import Study
    from sftdpo.engine.inputs import Inputs
    from sftdpo.engine.store import StudyFolder
    from sftdpo.study import reports_on
    from sftdpo.tables import nothing_learned
    rows = write(tmp_path, "rows.csv", "text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(100)))
    study = Study("few", tasks=("labels",), data=str(rows), recipes=("sft",), tunings=("full",), folds=folds)
    reports = [report for _, report in reports_on(StudyFolder(tmp_path / "study"), study.runs(), Inputs())]
    assert len(reports) == (folds or 1) and all(("--folds" in report.short()) == (not folds) for report in reports)
    results = pd.DataFrame([dict(task="labels", recipe=recipe, tuning="", metric=metric, value=value, seed=0, fold=fold)
                            for fold in range(1, folds + 1) or [0] for recipe in ("base", "sft")
                            for metric, value in (("accuracy", 0.5), ("baseline_tfidf", 1.0))])
    assert ("--folds" in nothing_learned(results, pd.DataFrame())) == (not folds)



def test_a_check_says_what_will_stop_its_own_command(tokenizer, tmp_path):
    path = write(tmp_path, "long.jsonl", "".join(json.dumps(dict(prompt=f"p {i}", completion="word " * (400 if i == 3 else 2))) + "\n" for i in range(20)))
    report = check_file("completions", path, Reading(too_long="truncate"), lambda: (tokenizer, 256))
    assert any("the completion alone is too long" in stop for stop in report.stops) and "--reading.too-long drop" in report.command
    assert check_file("completions", path, Reading(too_long="drop"), lambda: (tokenizer, 256)).stops == []


# -- any text in gives the same text out, or a named error

anything = st.text(st.characters(codec=None), min_size=0, max_size=40) | st.sampled_from(['"', '""', '",', ',"', "a\nb", "\r", "\r\n", "\t", "\0", "\ud800", "NaN", "", " ", '"a\n1,2,3"', "\ufeff"])
modest = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def usable(text):
    if "\0" in text or not text.strip(): return False
    try: text.encode()
    except UnicodeEncodeError: return False
    return True


def as_csv(rows, delimiter):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerows(rows)
    return file.getvalue()


def loads_as(data, rows, folder):
    "The examples are the usable rows, text for text, and the rest is named; or a named error says why not."
    try: task = load_task("completions", data, reading=Reading(unusable="drop"))
    except DataError as error: assert str(error); return False
    examples = [e for s in task.splits.values() for e in s]
    assert sorted((e.prompt, e.completion) for e in examples) == sorted(r for r in rows if usable(r[0]) and usable(r[1]))
    assert len(examples) + len(task.intake.problems) == len(rows)
    return True


@modest
@given(st.lists(st.tuples(anything, anything), min_size=1, max_size=6), st.sampled_from("csv tsv jsonl list parquet".split()))
def test_text_in_is_text_out(tmp_path_factory, rows, kind):
    folder = tmp_path_factory.getbasetemp() / "round"
    folder.mkdir(exist_ok=True)
    rows = rows + [(f"good {i}", "fine") for i in range(6)]
    dicts = [dict(prompt=a, completion=b) for a, b in rows]
    if kind == "list": data = dicts
    elif kind == "jsonl": data = write(folder, "some.jsonl", "".join(json.dumps(d) + "\n" for d in dicts))
    elif kind == "parquet":
        try: data = keep(dicts, folder / "kept")
        except DataError as error: assert "Parquet" in str(error); return
    else:
        text = as_csv([("prompt", "completion"), *rows], "," if kind == "csv" else "\t")
        try: data = write(folder, f"some.{kind}", text.encode())
        except UnicodeEncodeError: return  # such a file cannot be written
    try: task = load_task("completions", data, reading=Reading(unusable="drop"))
    except DataError as error: assert str(error); return
    found = sorted((e.prompt, e.completion) for s in task.splits.values() for e in s)
    good = sorted(r for r in rows if usable(r[0]) and usable(r[1]))
    if kind in ("csv", "tsv"):  # a quoted text may hold lines that look like rows: then the row is named
        assert set(found) >= {r for r in good if not set('"\r\n\t') & set("".join(r))}
        assert found == good or task.intake.problems
    else:
        assert found == good and len(found) + len(task.intake.problems) == len(rows)


@modest
@given(st.text(max_size=60))
@example("<|endoftext|>")
@example("\u202e e\u0301 😀")
def test_tokens_decode_to_the_text(tokenizer, text):
    if not text: return
    row, = tokenize([Example("x", text, text)], tokenizer, False, 10_000)
    assert tokenizer.decode(row.prompt) == tokenizer.decode(row.completions[0]) == text


@modest
@given(st.binary(max_size=300), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.arrow", "a.txt"]), st.sampled_from([b"", b"text,label\n", b'{"text": "a", "label": "b"}\n', b"PAR1", b"ARROW1", b"\xff\xfe", b"\xef\xbb\xbf"]))
def test_any_bytes_load_or_are_named(tmp_path_factory, noise, name, start):
    path = write(tmp_path_factory.getbasetemp(), name, start + noise)
    try: check_file("labels", path)
    except DataError as error: assert name in str(error)


@modest
@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
def test_templates_only_put_values_in(template, columns):
    from sftdpo.data import _prompt_of
    from sftdpo.reading.shapes import Shape, template_pieces
    try: pieces = template_pieces(template, columns)
    except DataError as error: assert "reading.prompt" in str(error); return
    values = {column: "{x}" for _, column in pieces if column is not None}
    if not values and not pieces[0][0].strip(): return  # an empty prompt
    assert _prompt_of(Shape("labels", {}, tuple(pieces)), values).count("{x}") >= sum(column is not None for _, column in pieces)


# -- ten thousand hostile files, of rows that are known to be good or bad

LETTERS = list("abcXYZ 012?!.;|'<>&=%\\/é漢😀\u202e\u200b\x07\x1b\u2028\x85") + [", ", '"', "NaN", "{x}", "<b>"]


def good_text(rng, newlines=True):
    text = "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 12)))
    if newlines and rng.random() < .2: text += rng.choice(["\n", "\r\n", "\r"]) + "more" * rng.randint(0, 2)
    return text if text.strip() else text + "x"


def quoted(text, delimiter, rng):
    needs = any(c in text for c in f'"\r\n{delimiter}')
    return '"' + text.replace('"', '""') + '"' if needs or rng.random() < .2 else text


BAD_TEXTS = ["", "  ", "null\0byte", "\udcff\udcfe"]  # the last is written as bytes that are not UTF-8


def hostile_table(rng, task):
    "Bytes, name, and how many rows are good and bad; the number of good rows is known because they are made to be."
    delimiter = rng.choice(",\t;")
    names = {"labels": ["id", "text", "label"], "completions": ["prompt", "completion"], "preferences": ["prompt", "chosen", "rejected"], "paraphrase": ["id", "question1", "question2", "is_duplicate"]}[task]
    texts = [n for n in names if n not in ("id", "label", "is_duplicate")]
    lines, good, bad = [delimiter.join(names)], 0, 0
    for i in range(rng.randint(1, 9)):
        row = {"id": f"r{i}", "label": rng.choice(["yes", "no"]), "is_duplicate": rng.choice(["0", "1", "1.0"])} | {t: f"{good_text(rng)}{j}" for j, t in enumerate(texts)}
        cells = [quoted(row[n], delimiter, rng) for n in names]
        fate = rng.choice(["good"] * 5 + ["short", "long", "open", "after", "text", "label"])
        if fate == "label" and "label" not in names and "is_duplicate" not in names: fate = "text"
        if fate in ("short", "long"): cells = [quoted(re.sub(r"[\r\n]", " ", row[n]), delimiter, rng) for n in names]  # over two lines they could be two rows
        if fate == "short": cells.pop()
        elif fate == "long": cells.append("more")
        elif fate == "open":
            k = rng.randrange(len(names))
            cells = [row[n].replace('"', "").replace("\n", " ").replace("\r", " ").replace(delimiter, " ") or "x" for n in names]
            cells[k] = '"' + cells[k]
            if delimiter == "\t" and names[k] not in ("label", "is_duplicate"): fate = "good"  # tabs decide: the quote is a letter
        elif fate == "after":
            k = names.index(texts[0])
            cells = [row[n].replace('"', "").replace("\n", " ").replace("\r", " ").replace(delimiter, " ") or "x" for n in names]
            cells[k] = '"so" ' + cells[k]
            if delimiter == "\t": fate = "good"
        elif fate == "text": cells[names.index(rng.choice(texts))] = rng.choice(BAD_TEXTS)
        elif fate == "label": cells[-1] = rng.choice(["maybe", "", "2", "\0"])
        good, bad = (good + 1, bad) if fate == "good" else (good, bad + 1)
        lines.append(delimiter.join(cells))
        if rng.random() < .1: lines.append(rng.choice(["", "  "]))
    ends = rng.choice([["\n"], ["\r\n"], ["\r"], ["\n", "\r\n", "\r"]])
    text = "".join(line + rng.choice(ends) for line in lines)
    raw = text.encode("utf-8", "surrogateescape")
    return (b"\xef\xbb\xbf" if rng.random() < .2 else b"") + (raw if rng.random() < .5 else raw.rstrip(b"\r\n") if not lines[-1].strip() == "" else raw), rng.choice(["a.csv", "a.tsv", "a.txt"]), delimiter, good, bad


def hostile_lines(rng, task):
    names = {"labels": ["text", "label"], "completions": ["prompt", "completion"], "preferences": ["prompt", "chosen", "rejected"], "paraphrase": ["question1", "question2", "is_duplicate"]}[task]
    lines, good, bad = [], 0, 0
    for i in range(rng.randint(1, 9)):
        row = {n: f"{good_text(rng)}{j}" for j, n in enumerate(names)} | {n: v for n, v in dict(label=rng.choice(["yes", "no"]), is_duplicate=rng.choice([0, 1, "1"])).items() if n in names}
        line, fate = json.dumps(row, ensure_ascii=rng.random() < .5), rng.choice(["good"] * 4 + ["value", "cut", "kind", "key"])
        if i == 0: fate = "good"  # the columns are known from the rows that can be read
        if fate == "value": line = json.dumps(row | {rng.choice(names): rng.choice([None, "", " ", float("nan"), [1], {"a": 1}, "\ud800", "a\0"])})
        elif fate == "cut": line = line[:-rng.randint(1, 3)]
        elif fate == "kind": line = rng.choice(["[]", "3", '"a"', "null", "nonsense", "{}}", "[" * 5000])
        elif fate == "key" and (absent := rng.choice(names)): line = json.dumps({n: row[n] for n in names if n != absent})
        good, bad = (good + 1, bad) if fate == "good" else (good, bad + 1)
        lines.append(line)
    return "".join(line + rng.choice(["\n", "\r\n"]) for line in lines).encode("utf-8"), "a.jsonl", "", good, bad


@pytest.mark.parametrize("files", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_hostile_files(files, tmp_path):
    "No bare traceback, and no wrong row count: what is good is read, what is bad is named."
    from sftdpo.data import _examples_of
    from sftdpo.reading.shapes import find_shape
    rng, usable_files, problems = random.Random(0), 0, []
    for number in range(files):
        task = rng.choice(["labels", "completions", "preferences", "paraphrase"])
        raw, name, delimiter, good, bad = (hostile_lines if rng.random() < .3 else hostile_table)(rng, task)
        path = tmp_path / name
        path.write_bytes(raw)
        try:
            table = read_table(path, delimiter)
            shape = find_shape(table.columns, task, Reading(), str(path))
            examples, problems = _examples_of(table, shape, {"yes": "yes", "no": "no"})
            found = len(examples), len(problems)
            usable_files += 1
        except UnusableRows as error: found = 0, len(error.problems)
        except DataError as error:
            assert name in str(error), (number, error)
            assert good == 0 or "control characters" in str(error), (number, raw, error)
            continue
        assert found == (good, bad), (number, task, raw[:2000], problems, found, (good, bad))
        assert all(p.line > 0 and p.reason for p in problems)
    assert usable_files > 0.8 * files


@pytest.mark.slow
def test_four_hundred_thousand_rows(tmp_path):
    "The size of the whole QQP: loaded, checked and tokenized in under a minute and 2 GB, on two cores that do nothing else."
    import subprocess
    import sys
    rng = random.Random(0)
    words = [f"{a}{b}" for a in "shall compare thee summer lovely temperate winds darling buds lease date learn write best way".split() for b in ("", "s", "ing", "ed")]
    with open(tmp_path / "big.tsv", "w", encoding="utf-8") as file:
        file.write("id\tsentence1\tsentence2\tis_duplicate\n")
        for i in range(400_000): file.write(f"{i}\t{' '.join(rng.choices(words, k=11))} {i}?\t{' '.join(rng.choices(words, k=11))}?\t{i % 3 // 2}.0\n")
    code = """if True:
        import resource, sys, time
        start = time.perf_counter()
        from importlib.resources import files
        from transformers import AutoTokenizer
        from sftdpo.reading.check import check_data
        from sftdpo.data import fit_task, load_task, tokenize
        tokenizer = AutoTokenizer.from_pretrained(str(files('sftdpo') / 'assets' / 'bard'))
        task = fit_task(load_task('paraphrase', sys.argv[1]), tokenizer, 512)
        check_data(task, tokenizer, 512)
        rows = {split: tokenize(examples, tokenizer, False, 512) for split, examples in task.splits.items()}
        print(sum(map(len, rows.values())), time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)"""
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="true", RAYON_NUM_THREADS="2")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "big.tsv")], check=True, capture_output=True, text=True, env=environment)
    count, seconds, gigabytes = map(float, done.stdout.split())
    assert count == 400_000 and seconds < 60 and gigabytes < 2, done.stdout


def test_one_label_is_not_taken_for_texts(tmp_path):
    "The check of a file with one label proposed to cut its texts in two."
    (tmp_path / "one.csv").write_text("text,label\n" + "".join(f"the parcel number {i} has not come yet,late\n" for i in range(60)))
    report = check_file(None, str(tmp_path / "one.csv"))
    assert "holds 1 label" in report.stops[0] and not report.command and not any("texts alone" in note for note in report.notes)


def test_texts_are_not_taken_for_labels(tmp_path):
    "Before, a model was trained on a hundred labels that stood in one row each."
    path = write(tmp_path, "swapped.csv", "ref,text\n" + "".join(f"T{i},a text of number {i}\n" for i in range(40)))
    with pytest.raises(DataError, match="the column 'text' holds 40 labels in 40 rows, most of them in only one row: is it the right column"):
        load_task("labels", path, reading=Reading(prompt="ref", label="text"))
    load_task("completions", path, reading=Reading(completion="text", prompt="ref"))  # the remedy works


@pytest.mark.parametrize("value", [[], (), np.array([])])
def test_an_empty_conversation_is_called_empty(value):
    assert str(not_a_text(value)) == "is an empty list: leave the row out, or give it a text"


def test_labels_in_two_forms_of_unicode_are_alike(tmp_path):
    "macOS writes accents as letters of their own. At 2313f6f5 such labels were taken for different ones, without a note."
    import unicodedata
    names = [unicodedata.normalize("NFD" if i % 5 == 0 else "NFC", ("café", "thé")[i % 2]) for i in range(60)]
    path = write(tmp_path, "drinks.csv", "text,label\n" + "".join(f"cup {i},{name}\n" for i, name in enumerate(names)))
    assert "the form of accents" in unbroken(check_file("labels", str(path)))
    assert load_task("labels", str(path), Reading(similar_labels="merge")).labels == ("café", "thé")


def test_the_remedy_for_answers_of_several_tokens_names_the_labels(tmp_path, tokenizer):
    path = write(tmp_path, "moods.csv", "text,label\n" + "".join(f"Day {i}.,{i % 2}\n" for i in range(60)))
    data = load_task("labels", str(path), Reading(verbalizers={"0": "most displeased", "1": "it's splendid"}))
    with pytest.raises(DataError) as told: fit_task(data, tokenizer, 512)
    assert re.search(r"--reading.verbalizers 0 \S+ 1 \S+\.", str(told.value)), told.value


@pytest.mark.parametrize("columns, values", [("text,target", "01"), ("question,answer", ("yes", "no"))])
def test_few_different_answers_are_taken_for_labels(columns, values, tmp_path):
    "At 7f3c9e5c they were taken for completions in silence."
    path = write(tmp_path, "rows.csv", f"{columns}\n" + "".join(f"Is it fine on day {i}?,{values[i % 2]}\n" for i in range(40)))
    report = check_file(None, path)
    assert report.task == "labels" and "this looks like texts with labels: --tasks labels" in report.notes[0] and not report.stops
    from sftdpo.cli import parse
    assert load_task("labels", path, parse(shlex.split(report.command)[1:]).study.reading).labels == tuple(sorted(values))
    assert check_file("completions", path).task == "completions" and check_file(None, path, Reading(completion=columns.split(",")[1])).task == "completions"
    texts = write(tmp_path, "texts.csv", f"{columns}\n" + "".join(f"Is it fine on day {i}?,It is {values[i % 2]} on day {i}.\n" for i in range(40)))
    assert check_file(None, texts).task == "completions"


def test_nothing_in_one_of_several_columns_is_an_empty_text():
    "At 7f3c9e5c a null in Alpaca's input made the row unusable, and an empty text did not."
    rows = [dict(instruction=f"Do {i}", input=None if i % 2 else "", output=f"Done {i}") for i in range(20)]
    assert {e.prompt for e in load_task("completions", rows, Reading(prompt="{instruction}\\n{input}\\n")).examples} == {f"Do {i}\n\n" for i in range(20)}
