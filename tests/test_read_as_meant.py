"Files and objects that can be read in two ways: as their writer meant them, or not at all."
import codecs
import csv
import json
import shlex

import datasets
import numpy as np
import pandas as pd
import pytest

from sftdpo.config import Reading, SettingsError
from sftdpo.data import DataError, Example, Row, load_judged, load_task
from sftdpo.measures.forgetting import held_out_text, text_windows
from sftdpo.reading.check import check_file, length_quantiles
from sftdpo.reading.examples import shuffle_completions
from sftdpo.reading.files import as_text, keep, plain_markdown, read_delimited, table_of, tables_of
from sftdpo.reading.rows import opening
from sftdpo.reading.shapes import Shape, common_beginning, find_shape, wider_template

ROWS = [dict(text=f"text {i} of some words", category="ab"[i % 2], stars=str(i % 5)) for i in range(60)]
BOTH = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["neg", "pos"]))


@pytest.fixture()
def classes():
    "Rows whose labels are numbers with names."
    return datasets.Dataset.from_dict(dict(text=[f"text {i} of it" for i in range(60)], label=[i % 2 for i in range(60)]), features=BOTH)


def test_a_column_of_the_prompt_is_not_the_answer():
    columns, template = list(ROWS[0]), Reading(prompt="{category}: {text}\n")
    with pytest.raises(DataError, match="finds no column for label"): find_shape(columns, "labels", template)
    assert find_shape(columns, "labels", Reading(prompt="{text}\n")).columns["label"] == "category"
    assert find_shape(["question", "answer", "reply"], "completions", Reading(prompt="{question} {answer}")).columns["completion"] == "reply"
    for reading in (Reading(prompt="text", label="text"), Reading(prompt="{category}: {text}\n", label="category")):
        with pytest.raises(DataError, match="is named for the label and stands in the prompt too"): find_shape(columns, "labels", reading)
    report = check_file(None, ROWS, template)
    assert report.columns["label"] == "stars" and "category" not in report.command.split("--reading.label")[1]


def test_a_name_in_two_braces_is_text():
    "At 8de1bc6d the label was not found, as a column that stands in the prompt."
    rows = [dict(text=f"text {i} of it", label="ab"[i % 2]) for i in range(30)]
    examples = load_task("labels", rows, Reading(prompt=r"{{Label}} {text}\n")).examples
    assert all(e.prompt.startswith("{Label} text ") for e in examples) and {e.completion for e in examples} == {"a", "b"}


@pytest.mark.parametrize("name, header, row, reading, task", [
    ("glued", ["prompt", "chosen", "rejected"], lambda i: [f"Frage {i}?", f"Frage {i}?Ja {i}", f"Frage {i}?Nein {i}"], Reading(beginning="cut"), "preferences"),
    ("split", ["body"], lambda i: [f"two and {i}={i + 2} and more"], Reading(prompt="body", split="="), "completions")])
def test_the_command_for_glued_texts_works(tmp_path, name, header, row, reading, task):
    with open(path := tmp_path / f"{name}.csv", "w", newline="") as file: csv.writer(file).writerows([header, *map(row, range(60))])
    report = check_file(task, str(path), reading)
    template = report.command.split("--reading.prompt ")[1].split("'")[1]
    again = check_file(task, str(path), Reading(**{**vars(reading), "prompt": template}))
    assert template.endswith(r"}\n") and not again.stops and again.command == report.command
    assert load_task(task, str(path), Reading(**{**vars(reading), "prompt": template})).train[0].prompt.endswith("\n")


def test_several_columns_cannot_be_cut_or_split():
    rows = [dict(a="x", b="y", chosen="xa", rejected="xb")]
    with pytest.raises(DataError, match=r"cut compares one column, and --reading.prompt '\{a\} \{b\}' has 2: give --reading.prompt COLUMN"):
        load_task("preferences", rows, Reading(prompt="{a} {b}", beginning="cut"))


def test_a_byte_order_mark_is_never_part_of_a_name():
    raw = codecs.BOM_UTF8 + "text,label\ncaf\xe9,a\n".encode("latin-1")
    from sftdpo.reading.files import decode
    assert decode(raw, "mine.csv", "latin-1") == "text,label\ncaf\xe9,a\n" and decode(raw, "mine.csv", "cp1252").startswith("text")
    for encoding in ("utf-16-be", "utf-16-le"):
        with pytest.raises(DataError, match=f"--reading.encoding {encoding}"): decode("text,label\nabc,a\n".encode(encoding), "mine.csv")


def test_spaces_before_quotes():
    table = read_delimited('text, label\n"a 1, b", "y"\n"she said ""no""", "n"\nplain, y\n', "some.csv")
    assert table.values("text") == ["a 1, b", 'she said "no"', "plain"] and table.values("label") == ["y", "n", " y"] and not table.problems
    assert read_delimited('text,label\na, "y"\n', "some.csv").values("label") == [' "y"']  # no space in the header: part of the text


def test_json_by_the_names_of_rows(tmp_path):
    by_row = {f"q{i}": dict(text=f"text {i}", label="ab"[i % 2]) for i in range(60)}
    by_column = {"text": {f"q{i}": f"text {i}" for i in range(60)}, "label": {f"q{i}": "ab"[i % 2] for i in range(60)}}
    for name, found in (("rows", by_row), ("columns", by_column)): (tmp_path / f"{name}.json").write_text(json.dumps(found))
    rows, columns = (table_of(tmp_path / f"{name}.json") for name in ("rows", "columns"))
    assert rows.values("text") == columns.values("text") and list(rows.columns) == ["id", "text", "label"] and rows.values("id")[:2] == ["q0", "q1"]


def test_names_of_classes(classes, tmp_path):
    classes.to_parquet(tmp_path / "mine.parquet")
    classes.save_to_disk(tmp_path / "saved")
    for data in (classes, tmp_path / "mine.parquet", tmp_path / "saved"): assert load_task("labels", data).intake.labels == ("neg", "pos")
    assert load_task("labels", classes, Reading(verbalizers={"0": "bad", "1": "good"})).intake.labels == ("0", "1")
    assert load_judged("labels", tmp_path / "mine.parquet", answers={"neg": "neg", "pos": "pos"}).test[1].label == 1
    assert load_judged("labels", tmp_path / "mine.parquet", answers={"0": "0", "1": "1"}).test[1].label == 1  # a model that learned numbers
    unlabelled = table_of(datasets.Dataset.from_dict(dict(text=["a"], label=[-1]), features=BOTH))
    from sftdpo.reading.files import with_class_names
    assert with_class_names(unlabelled).values("label") == [None]


def test_of_several_splits_none_is_guessed(classes):
    with pytest.raises(DataError, match=r"2 splits that could be for train \('train_sft', 'train_prefs'\): name the one that is meant 'train'"):
        tables_of(datasets.DatasetDict(train_sft=classes, train_prefs=classes))


def test_kept_data_is_not_mixed_with_earlier_data(tmp_path):
    folder = keep(dict(train=ROWS, test=ROWS[:9]), tmp_path / "kept")
    with pytest.raises(DataError, match="holds test.parquet, of which there is none in this data: delete it"): keep(dict(train=ROWS), folder)
    (folder / "test.parquet").unlink()
    assert list(tables_of(keep(dict(train=ROWS), folder))) == ["train"]


def test_short_floats_are_as_they_were_written(tmp_path):
    assert as_text(np.float32(0.1)) == "0.1" and as_text(np.float16(0.5)) == "0.5" and as_text(np.float64(0.1)) == "0.1"
    pd.DataFrame(dict(x=np.array([0.1, 2.0], dtype="float32"))).to_parquet(tmp_path / "x.parquet")
    assert [as_text(value) for value in table_of(tmp_path / "x.parquet").values("x")] == ["0.1", "2"]


def test_a_text_in_markdown_is_nothing_but_text():
    assert plain_markdown("costs $5 or $6, #1 ~a~") == r"costs \$5 or \$6, \#1 \~a\~"


def test_further_columns_come_before_the_cue():
    pieces = (("Mail: ", "body"), ("\nMood: ", None))
    assert wider_template(Shape("labels", {}, pieces), ["hour", "context"]) == r"{context}\nMail: {body}\n{hour}\nMood: "
    assert wider_template(Shape("labels", {}, (("", "text"), ("\n", None))), ["hour"]) == r"{text}\n{hour}\n"


def test_a_shuffled_completion_ends_as_it_did():
    assert shuffle_completions([Example("a", "p", "one\ntwo\n")], 0) == ["two\none\n"]


def test_the_longest_text_is_always_looked_at(tokenizer):
    texts = ["short"] * 10_100
    texts[7] = "long " * 50
    assert length_quantiles(texts, tokenizer)["longest"] > length_quantiles(texts, tokenizer)["99 %"]


def test_held_out_text_is_read_as_it_is_or_refused(tmp_path, tokenizer):
    path = tmp_path / "held.txt"
    for text, encoding, told in (("naïve café olé", "latin-1", "byte 0xef at 2 is not UTF-8: save it as UTF-8"), ("two words", "utf-16", "is not UTF-8"), ("two words", "utf-16-le", "null bytes")):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(SettingsError, match=told): held_out_text(str(path), "gpt2")
    path.write_bytes(codecs.BOM_UTF8 + "two wörds".encode())
    assert held_out_text(str(path), "gpt2") == "two wörds"
    path.write_bytes(b"a " * 499_999 + "xé".encode())  # cut within a letter
    assert held_out_text(str(path), "gpt2").endswith("a x")


def test_every_window_begins_as_a_text_does(tokenizer):
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast
    with_start = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.eos_token, eos_token=tokenizer.eos_token)
    start = with_start.bos_token_id
    with_start.backend_tokenizer.post_processor = TemplateProcessing(single=f"{with_start.bos_token} $A", special_tokens=[(with_start.bos_token, start)])
    assert opening(with_start) == [start]
    text = "one two three four five six seven eight nine ten " * 9
    plain, begun = text_windows(text, tokenizer, 60, 20), text_windows(text, with_start, 60, 20)
    assert all(isinstance(row, Row) and row.prompt[0] == start and len(row.prompt) == 2 and len(row.prompt + row.completions[0]) == 20 for row in begun)
    assert [row.prompt[0] for row in plain] != [start] * len(plain) and len(begun) == 3


def test_kept_data_keeps_the_names_of_classes(classes, tmp_path):
    "At 7f3c9e5c `keep` lost them: the labels were 0 and 1."
    assert load_task("labels", keep(classes, tmp_path / "kept")).labels == load_task("labels", classes).labels == ("neg", "pos")
    assert len(datasets.load_dataset("parquet", data_dir=str(tmp_path / "kept"))["train"]) == 60


def test_columns_without_names_are_not_lost():
    "At 7f3c9e5c the second column without a name took the place of the first."
    table = read_delimited(",text,,label\n" + "".join(f"{i},Tea {i},keep {i},{'ab'[i % 2]}\n" for i in range(4)), "rows.csv")
    assert list(table.columns) == ["column1", "text", "column3", "label"] and table.columns["column1"][3] == "3" and table.columns["column3"][3] == "keep 3"


def test_where_a_text_was_taken_from_is_no_prompt(tmp_path):
    "At 7f3c9e5c a column `source` was the prompt, and the texts were left out."
    path = tmp_path / "rows.csv"
    path.write_text("tweet,source,label\n" + "".join(f"My tea {i} is fine today,app{i % 15},{'ab'[i % 2]}\n" for i in range(80)))
    report = check_file(None, path)
    assert report.columns["prompt"] == "{tweet}\n" and not report.stops
    path.write_text("source,target\n" + "".join(f"My tea {i} is fine today.,Mein Tee {i} ist heute gut.\n" for i in range(80)))
    assert check_file(None, path).columns["prompt"].startswith("{source}")


# -- what columns and labels mean

@pytest.mark.parametrize("columns, labels, task", [
    (("sentence1", "sentence2", "label"), ["entailment", "not_entailment"], "labels"), (("sentence1", "sentence2", "label"), list("012"), "labels"),
    (("sentence1", "sentence2", "label"), list("01"), "paraphrase"), (("sentence1", "sentence2", "is_duplicate"), ["0.0", "1.0"], "paraphrase"),
    (("question1", "question2", "label"), ["not_duplicate", "duplicate"], "paraphrase")])
def test_sentences_are_questions_only_where_names_or_labels_say_so(columns, labels, task, tmp_path):
    "At cb0b3cb1, GLUE's RTE was read as question pairs, its class names were ignored, and of three classes the third was left out without a word."
    names = [one for one in labels if one.isidentifier()]
    rows = {columns[0]: [f"The tea {i} is hot." for i in range(60)], columns[1]: [f"Tea {i} is cold." for i in range(60)],
            columns[2]: [i % len(labels) if names else labels[i % len(labels)] for i in range(60)]}
    features = datasets.Features({**{name: datasets.Value("string") for name in columns}, **({columns[2]: datasets.ClassLabel(names=names)} if names else {})})
    data = datasets.Dataset.from_dict(rows, features=features)
    report = check_file(None, data)
    assert report.task == task and not report.problems
    doubt = [note for note in report.notes if "reads them as sentences with labels" in note]
    assert bool(doubt) == (columns[2] == "label" and labels == ["0", "1"])
    if doubt:
        options = shlex.split(doubt[0].partition("else: ")[2].partition(" reads")[0])
        assert dict(zip(options[::2], options[1::2])) == {"--tasks": "labels", "--reading.prompt": r"{sentence1}\n{sentence2}\n", "--reading.label": "label"}


@pytest.mark.parametrize("name, values, told", [
    ("label", ["True", "False"], True), ("rating", list("12345"), True), ("Quality", ["fine", "poor"], True), ("checked", ["good", "bad"], True),
    ("checked", ["4.5", "2,0"], True), ("category", ["open", "closed"], False), ("label", ["True"], False),
    ("id", ["1", "2"], False), ("Unnamed: 0", ["1", "2"], False), ("__index_level_0__", [1, 2], False)])
def test_what_rates_an_answer_is_seen_in_text_too(name, values, told):
    "At cb0b3cb1, `label` with True and False had its note in JSON lines and none in a CSV file, where each cell is text; pandas' index was taken for a rating."
    rows = [dict(prompt=f"What is {i}?", completion=f"It is number {i}.") | {name: values[i % len(values)]} for i in range(40)]
    assert any("delete the rows that are not to be imitated" in note for note in load_task("completions", rows).intake.notes) == told


@pytest.mark.parametrize("measured", ["{}.5e-{:02}", "+{}.25E+{:02}", "2024-05-{:02}T12:{:02}:09Z", "2024-05-{:02}T12:{:02}:09.125+02:00"])
def test_numbers_and_times_are_no_texts(measured):
    "At 8e87def3 the longer of two columns was the prompt, though it held times, or numbers with an exponent."
    rows = [{"when": measured.format(1 + i % 28, 10 + i % 50), "note": f"late {i}", "kind": "ab"[i % 2]} for i in range(60)]
    report = check_file(None, rows)
    assert report.columns["prompt"] == "{note}\n" and report.unused == ["when"] and "left out" not in str(report)


@pytest.mark.parametrize("address", ["https://example.org/tickets/2024/{}?view=full", "customer.number.{}@mail.example.org"])
def test_addresses_are_no_texts_beside_others(address):
    "At 0fe45744 a column of addresses was the prompt where they were longer than the texts."
    rows = [{"source": address.format(i), "note": f"late {i}", "kind": "ab"[i % 2]} for i in range(60)]
    for name in ("where", "source"): assert check_file(None, [{name if key == "source" else key: value for key, value in row.items()} for row in rows]).columns["prompt"] == "{note}\n"
    assert any("left out: 'where'; --reading.prompt" in note for note in check_file(None, [{"where": row["source"], "note": row["note"], "kind": row["kind"]} for row in rows]).notes)
    alone = check_file(None, [{"where": row["source"], "kind": row["kind"]} for row in rows])
    assert alone.columns["prompt"] == "{where}\n", "which addresses are harmful is a question too"


def test_texts_without_blanks_are_no_addresses():
    rows = [{"post": f"今天天气很好第{i}天//@小明:转发微博", "city": f"Town {i}", "kind": "ab"[i % 2]} for i in range(60)]
    assert check_file(None, rows).columns["prompt"] == "{post}\n"
    hosts = [{"url": f"https://host{i}.example.org/some/page", "host": f"host{i}.example.org", "kind": "ab"[i % 2]} for i in range(60)]
    assert check_file(None, hosts).columns["prompt"] == "{url}\n", "a host is an address too"


def test_rows_that_a_reviewer_rejected_are_told():
    "At cb0b3cb1, Prodigy's rejected rows were learned without a word, and where all were accepted the answer to learn was 'accept'."
    rows = [dict(text=f"some text {i}", label="AB"[i % 2], answer=["accept", "reject", "ignore"][i % 3]) for i in range(60)]
    for task in (None, "labels"): assert any("left out: 'answer'; every row is used" in note for note in check_file(task, rows).notes)
    assert not any("every row is used" in note for note in check_file("labels", [row | dict(answer="accept") for row in rows]).notes)
    choice = [dict(text=f"some text {i}", accept=["AB"[i % 2]], answer="accept") for i in range(60)]
    with pytest.raises(DataError, match="'answer' holds 'accept' in every row, which teaches nothing"): check_file(None, choice)


def test_a_column_that_holds_the_answer_is_kept_out_of_the_prompt():
    "At cb0b3cb1, the template proposed for Alpaca took in `text`, which holds the whole example, and nothing was said of one that did."
    rows = [dict(instruction=f"Do the thing of number {i}.", input=f"with word{i}", output=f"the result of thing {i}", text=f"### Do the thing of number {i}.\n### the result of thing {i}") for i in range(40)]
    notes = load_task("completions", rows).intake.notes
    assert "left out: 'text', which holds the answer" in notes and r"left out: 'input'; --reading.prompt '{instruction}\n{input}\n' takes it in" in notes
    assert any("the prompt takes in 'text', which holds the answer" in note for note in load_task("completions", rows, Reading(prompt=r"{instruction}\n{text}\n")).intake.notes)
    quoted = [dict(question=f"Who won game {i}?", context=f"In game {i} Anna{i} won by far.", answer=f"Anna{i}") for i in range(40)]
    note, = load_task("completions", quoted).intake.notes
    assert r"--reading.prompt '{context}\n{question}\n' takes it in" in note, "a passage may hold the answer"


@pytest.mark.parametrize("start", ["\n\nHuman: tell me\n\nAssistant:", "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "### Instruction:\nq\n\n### Response:",
                                   "[INST] q [/INST]\n<|assistant|>", "User: How?\nAnswer in one line.\n\nModel:", "Human: q\n\nAssistant: Sure.\n\nAI is "])
def test_a_prompt_ends_after_a_speakers_mark_and_not_after_an_ordinary_word(start):
    "At cb0b3cb1, 'Answer in one line' ended the prompt after its first word, and 'AI is good' after 'AI'."
    end = "Human: q\n\nAssistant:" if start.endswith("AI is ") else start.rstrip("\n")
    assert common_beginning(f"{start}Good", f"{start}No idea").rstrip("\n") == end


def test_files_in_a_dict_are_read_as_asked_for(tmp_path):
    "At cb0b3cb1, encoding, delimiter and columns were forgotten there."
    (tmp_path / "old.csv").write_bytes("".join(f"été {i}|{'ab'[i % 2]}\n" for i in range(40)).encode("latin-1"))
    reading = Reading(encoding="latin-1", delimiter="|", columns=("text", "label"))
    assert load_task("labels", dict(train=tmp_path / "old.csv"), reading).examples == load_task("labels", tmp_path / "old.csv", reading).examples


@pytest.mark.parametrize("turns, told", [
    (lambda i: [dict(role="user", content=f"q {i}"), dict(role="assistant", content=None, tool_calls=[1]), dict(role="assistant", content="a")], "has a turn without text, as calls of tools have (first: row 1, turn 2)"),
    (lambda i: [dict(type="human", content=f"q {i}"), dict(type="ai", content="a")], "a turn here has 'type', 'content' (row 1)"),
    (lambda i: [dict(role="user", parts=[dict(text=f"q {i}")])], "a turn here has 'role', 'parts' (row 1)"), (lambda i: [dict(human=f"q {i}", assistant="a")], "a turn here has 'human', 'assistant' (row 1)")])
def test_conversations_of_another_form_are_told(turns, told):
    "At cb0b3cb1, the columns fitted no task, and one was too few. A file with calls of tools in every third row had no conversations either."
    rows = [dict(messages=turns(i)) for i in range(60)]
    for task in (None, "completions"):
        with pytest.raises(DataError) as error: load_task(task, rows) if task else check_file(None, rows)
        assert "If 'messages' is to hold conversations, each of its turns needs" in str(error.value) and told in str(error.value)
    good = [row if i % 3 == 0 else dict(messages=[dict(role="user", content=f"q {i}"), dict(role="assistant", content=f"a {i}")]) for i, row in enumerate(rows)]
    if "calls" in told: assert len(check_file("completions", good).problems) == 20


def test_a_spreadsheets_errors_among_texts_are_told(tmp_path):
    "At cb0b3cb1, #REF! and nan were learned as texts without a word."
    cells = {3: ("#NAME?", "It is 3."), 5: ("What is 5?", "#REF!"), 6: ("What is 6?", "nan")}
    (tmp_path / "some.csv").write_text("prompt,completion\n" + "".join(",".join(cells.get(i, (f"What is {i}?", f"It is {i}."))) + "\n" for i in range(40)))
    notes = load_task("completions", tmp_path / "some.csv").intake.notes
    assert notes == ["'prompt' holds a spreadsheet's error or no value in 1 row, read as text (first: #NAME?, line 5): correct or delete it",
                     "'completion' holds a spreadsheet's error or no value in 2 rows, read as text (first: #REF!, line 7): correct or delete them"]


def test_ordinary_columns_are_neither_verdicts_nor_whole_rows():
    "A year, a flag, an open ticket; a story that holds the answer; answers of three letters; one odd label; a conversation in one of many rows."
    rows = [dict(prompt=f"What is number {i}?", completion=f"It is {i}, and so on.", year=str(2000 + i % 5), is_code="yes" if i % 2 else "no", status="open" if i % 3 else "closed") for i in range(60)]
    assert not load_task("completions", rows, Reading()).intake.notes
    story = [dict(question=f"Who won game {i} of them all?", story=f"In game {i} it was Anna{i} who won.", answer=f"Anna{i}") for i in range(60)]
    assert r"--reading.prompt '{question}\n{story}\n' takes it in" in " ".join(load_task("completions", story, Reading(completion="answer")).intake.notes)
    pairs = [dict(sentence1=f"Is it {i}?", sentence2=f"Was it {i}?", label="n/a" if i == 5 else str(i % 2)) for i in range(60)]
    assert check_file(None, pairs).task == "paraphrase"
    talks = [dict(prompt=f"q {i}", completion=f"an answer {i}", trace=[dict(role="user", content="x")] if i == 3 else None) for i in range(100)]
    assert load_task("completions", talks, Reading(conversations="write")).examples[0].prompt.startswith("q ")
