"The data module on real files where they are at hand, on made-up ones where something must go wrong."
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from little import unbroken

from sftdpo import data as d
from sftdpo.data import DataError, Example

shared = Path(os.environ.get("SFTDPO_SHARED", Path(__file__).resolve().parents[2]/"shared"))/"data"
needs_qqp = pytest.mark.skipif(not (shared/"qqp").is_dir(), reason="../shared/data/qqp is not here")
needs_course_sonnets = pytest.mark.skipif(not (shared/"sonnets").is_dir(), reason="../shared/data/sonnets is not here")


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(["yes no Question 1: same thing?\n"] * 9, trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def write(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder/name


# real files

@needs_qqp
def test_course_question_pairs_load_whole():
    pairs = d.load_task("paraphrase", shared/"qqp")
    assert [len(s) for s in pairs.splits.values()] == [14_212, 1_000, 1_000]
    assert Counter(e.label for s in (pairs.train, pairs.validation) for e in s) == {0: 9_546, 1: 5_666}
    assert Counter(e.label for e in pairs.test) == {0: 624, 1: 376}
    ids = [e.id for s in pairs.splits.values() for e in s]
    assert len(set(ids)) == len(ids)
    assert pairs.name == "qqp" and pairs.verbalizers == ("no", "yes") and not pairs.end_of_text
    assert pairs.train[0].prompt == ('Question 1: "What are some best pictures taken by you while traveling?"\n'
                                     'Question 2: "Which is your best picture taken while traveling?"\nAre these questions asking the same thing?\n')


@needs_qqp
def test_course_quotes_agree_with_pandas():
    pandas = pytest.importorskip("pandas")
    for name in ("train.tsv", "dev.tsv"):
        theirs = pandas.read_csv(shared/"qqp"/name, sep="\t", keep_default_na=False)
        ours = d.load_judged("paraphrase", shared/"qqp"/name).test
        assert [e.id for e in ours] == list(theirs["id"])
        assert [e.prompt for e in ours] == [d.cloze_prompt(a, b) for a, b in zip(theirs["sentence1"], theirs["sentence2"])]
        assert [e.label for e in ours] == [int(x) for x in theirs["is_duplicate"]]


@needs_qqp
def test_broken_rows_are_named_by_line():
    path = shared/"qqp"/"raw_course_sample.csv"
    bad = [n for n, line in enumerate(path.read_text().split("\n"), 1) if line and not line.endswith(("0.0", "1.0", "is_duplicate"))]
    assert len(bad) == 2
    with pytest.raises(DataError, match="2 of 502 rows cannot be used") as error: d.load_judged("paraphrase", path)
    assert all(f"line {n}" in str(error.value) for n in bad)


@needs_course_sonnets
def test_course_sonnets():
    task = d.load_task("sonnet", shared/"sonnets")
    assert [[e.id for e in s] for s in task.splits.values()] == [
        [str(n) for n in numbers] for numbers in (range(1, 120), range(120, 132), range(132, 144))]
    prompts = d._read_text(shared/"sonnets"/"sonnets_held_out_dev.txt") + "\n"
    assert all(e.prompt in prompts for e in task.test)
    assert task.train[0].prompt.startswith("From fairest creatures we desire increase,\n") and task.train[0].prompt.count("\n") == 3
    assert task.train[0].completion.endswith("\n  To eat the world's due, by the grave and thee.")


def test_shipped_sonnets():
    task = d.load_task("sonnet")
    assert [len(s) for s in task.splits.values()] == [131, 12, 11] and task.end_of_text
    lines = {e.id: len((e.prompt + e.completion).split("\n")) for s in task.splits.values() for e in s}
    assert {n: k for n, k in lines.items() if k != 14} == {"99": 15, "126": 12}


def test_one_file_of_all_sonnets_is_split_as_the_course(tmp_path):
    text = "".join(f"{n}\r\n\r\na{n}\r\nb\r\nc\r\nd\r\n  e\r\n\r\n" for n in range(154, 0, -1))
    task = d.load_task("sonnet", write(tmp_path, "all.txt", text))
    assert [e.id for e in task.test] == [str(n) for n in range(144, 155)]
    assert task.train[0] == Example("1", "a1\nb\nc\n", "d\n  e")
    assert task.name == "all"


# the Hub, from a local folder in its layout

def test_hub_path(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas"); pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path/"cache"))
    local = tmp_path/"qqp"; local.mkdir()
    for split, size in (("train", 20), ("validation", 5)):
        pandas.DataFrame(dict(question1=[f"Who is {split} {i}?" for i in range(size)], question2=["", *["Who?"] * (size - 1)],
                              label=[i % 2 for i in range(size)], idx=range(size))).to_parquet(local/f"{split}-00000-of-00001.parquet")
    monkeypatch.setattr(d, "_hub_dataset", (str(local),))
    task = d.load_task("paraphrase", "hub")
    assert [len(s) for s in task.splits.values()] == [16, 3, 4] and task.name == "qqp-hub"
    assert "2 pairs with an empty question left out" in task.source
    assert task.test[0] == Example("validation-1", d.cloze_prompt("Who is validation 1?", "Who?"), "yes", label=1)


def test_hub_out_of_reach(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr(d, "_hub_dataset", ("no/such-folder-at-all/anywhere",))
    with pytest.raises(DataError, match="data='embedded'"): d.load_task("paraphrase", "hub")


# files in other shapes, good and bad

def test_glue_and_kaggle_shapes(tmp_path):
    glue = write(tmp_path, "glue.tsv", 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n7\t1\t2\tWhy "so?\t"Who is ""it""?"\t1\n')
    kaggle = write(tmp_path, "kaggle.csv", '"id","qid1","qid2","question1","question2","is_duplicate"\n"7","1","2","Why ""so?","Who is ""it""?","1"\n')
    same = [Example("7", d.cloze_prompt('Why "so?', 'Who is "it"?'), "yes", label=1)]
    assert d.load_judged("paraphrase", glue).test == d.load_judged("paraphrase", kaggle).test == same


def test_an_open_quote_swallows_nothing(tmp_path):
    rows = "id\tsentence1\tsentence2\tis_duplicate\n" + "".join(f'{i}\t"Why {i}\tWho "so" {i}?"\t0.0\n' for i in range(5))
    examples = d.load_judged("paraphrase", write(tmp_path, "open.tsv", rows)).test
    assert [e.id for e in examples] == list("01234") and '"Why 3' in examples[3].prompt


@pytest.mark.parametrize("text, message", [
    ("a\tb\n1\t2\n", "line 1: the task 'paraphrase' finds no column for question1 and question2 and label"),
    ("", "is empty"),
    ("id\tsentence1\tsentence2\tis_duplicate\n", "a header and no rows"),
    ("sentence1\tsentence2\tis_duplicate\nA?\tB?\tmaybe\n", "line 2: the label is 'maybe', not 0 or 1"),
    ("sentence1\tsentence2\tis_duplicate\n\nA?\t \t1\n", "line 3: an empty question"),
    ("sentence1\tsentence2\tis_duplicate\nA?\tB?\n", "line 2: 2 fields where the header has 3"),
    ("question1,question2,is_duplicate\n\"A?\nB?,C?,1\n", "line 2: .*check the quotes"),
    (b"question1,question2,is_duplicate\nA\xff?,C?,1\n", "line 2: the question holds the byte 0xff, which is not UTF-8"),
])
def test_bad_files(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error: d.load_judged("paraphrase", write(tmp_path, "some.tsv", text))
    assert "some.tsv" in str(error.value)


def test_what_chooses_is_held_out_and_fixed(tmp_path):
    rows = "id\tsentence1\tsentence2\tis_duplicate\n" + "".join(f"{i}\tQ{i}?\tR{i}?\t{i % 2}.0\n" for i in range(50))
    for name in ("train.tsv", "dev.tsv"): path = write(tmp_path/"mine", name, rows)
    task = d.load_task("paraphrase", path.parent)
    assert [len(s) for s in task.splits.values()] == [40, 10, 50]
    assert not {e.id for e in task.train} & {e.id for e in task.validation}
    assert d.load_task("paraphrase", path.parent).fingerprint == task.fingerprint
    one_file = d.load_task("paraphrase", path)
    assert [len(s) for s in one_file.splits.values()] == [30, 10, 10]
    assert len({e.id for s in one_file.splits.values() for e in s}) == 50


def test_too_few_rows(tmp_path):
    path = write(tmp_path, "one.tsv", "sentence1\tsentence2\tis_duplicate\nA?\tB?\t1\n")
    with pytest.raises(DataError, match="no examples are left for train"): d.load_task("paraphrase", path)


# subsets and controls

def test_generated_pairs_and_subsets():
    task = d.load_task("paraphrase")
    assert task.fingerprint == d.load_task("paraphrase").fingerprint
    assert len(task.fingerprint) == 64
    small, large = (d.subset(task.train, size, 7) for size in (500, 1000))
    assert small == large[:500] and len({e.id for e in large}) == 1000
    assert {e.id for e in small} != {e.id for e in d.subset(task.train, 500, 8)}
    with pytest.raises(DataError, match="16,000"): d.subset(task.train, 16_001, 0)
    with pytest.raises(DataError, match="0 examples were asked for"): d.subset(task.train, 0, 0)


def test_every_field_is_in_the_fingerprint():
    example = Example("a", "p", "c", "r", 0)
    task = d.TaskData("paraphrase", "n", [example], [], [], ("no", "yes"), False, "")
    prints = {replace(task, train=[replace(example, **change)]).fingerprint
              for change in (dict(), dict(id="b"), dict(prompt="b"), dict(completion="b"), dict(rejected=None), dict(label=1))}
    prints |= {replace(task, **change).fingerprint for change in (dict(verbalizers=("a", "b")), dict(end_of_text=True), dict(task="x"), dict(train=[], validation=[example]))}
    assert len(prints) == 10


def test_shuffled_labels_are_as_good_as_chance():
    examples = [Example(str(i), "?", ("no", "yes")[i % 2], label=i % 2) for i in range(2000)]
    control = d.shuffle_labels(examples, 0, ("no", "yes"))
    assert 900 < sum(a.label == b.label for a, b in zip(examples, control)) < 1100
    assert sum(e.label for e in control) == 1000


# pairs

def labelled(n=60): return [Example(str(i), f"Q{i}?", ("no", "yes", "maybe")[i % 3], label=i % 3) for i in range(n)]
def verses(n=20): return [Example(str(i), f"p{i}\n", f"first {i} line\n  second {i + 100} line\nthird {i} line") for i in range(n)]


@pytest.mark.parametrize("rejected, examples", [("flip", labelled()), ("swap", labelled()), ("corrupt", labelled()),
                                                ("swap", verses()), ("shuffle", verses()), ("corrupt", verses())])
def test_pairs_never_reject_the_completion(rejected, examples):
    words = ("no", "yes", "maybe")
    for seed in range(20):
        pairs = d.make_pairs(examples, rejected, seed, words)
        assert [replace(p, rejected=None) for p in pairs] == examples
        assert all(p.rejected != p.completion for p in pairs)
        assert pairs == d.make_pairs(examples, rejected, seed, words)
    assert pairs != d.make_pairs(examples, rejected, 0, words)


def test_swap_is_a_derangement():
    for n in (2, 3, 20):
        assert sorted(p.rejected for p in d.make_pairs(verses(n), "swap", 3)) == sorted(e.completion for e in verses(n))
    with pytest.raises(DataError, match="two different completions"): d.make_pairs(verses(1), "swap", 0)


def test_shuffle_keeps_words_and_indents():
    for p in d.make_pairs(verses(), "shuffle", 0):
        assert sorted(p.rejected.split()) == sorted(p.completion.split())
        assert [line[:2] == "  " for line in p.rejected.split("\n")] == [False, True, False]


def test_corrupt_replaces_a_share_of_words_by_others_words():
    examples = [Example(letter, "p", " ".join(f"{letter}{i}" for i in range(10)) + "\n ") for letter in "abc"]
    for p in d.make_pairs(examples, "corrupt", 0, share=.4):
        changed = [new for new, old in zip(p.rejected.split(), p.completion.split()) if new != old]
        assert len(changed) == 4 and not any(word.startswith(p.id) for word in changed)
        assert p.rejected.endswith("\n ")
    for share in (0, 1.1):
        with pytest.raises(DataError, match="share is"): d.make_pairs(examples, "corrupt", 0, share=share)
    with pytest.raises(DataError, match="no other word"): d.make_pairs(examples[:1], "corrupt", 0)


def test_samples():
    examples = verses(3)
    assert [p.rejected for p in d.make_pairs(examples, "sample", 0, samples=["x", "y\n", "z"])] == ["x", "y\n", "z"]
    with pytest.warns(UserWarning, match="2 of 3 samples"):
        pairs = d.make_pairs(examples, "sample", 0, samples=["x", " ", examples[2].completion + "\n"])
    assert pairs[0].rejected == "x" and all(p.rejected in {e.completion for e in examples} - {p.completion} for p in pairs[1:])
    with pytest.raises(DataError, match="3 examples, 2 samples"): d.make_pairs(examples, "sample", 0, samples=["x", "y"])


def test_preference_dataset():
    pytest.importorskip("datasets")
    pairs = d.make_pairs(verses(3), "swap", 0)
    table = d.preference_dataset(pairs)
    assert table.column_names == ["prompt", "chosen", "rejected"]
    assert table[1] == dict(prompt=pairs[1].prompt, chosen=pairs[1].completion, rejected=pairs[1].rejected)
    with pytest.raises(DataError, match="call make_pairs first"): d.preference_dataset(verses(3))


# token ids

@pytest.mark.parametrize("text", ["plain", " leading", "<|endoftext|>", "a<|endoftext|>b", "naïve 😀\n\tß", "\0", "trailing \n"])
def test_text_in_is_text_out(tokenizer, text):
    row, = d.tokenize([Example("x", text, text, text)], tokenizer, end_of_text=True)
    end = tokenizer.eos_token_id
    assert end not in row.prompt and tokenizer.decode(row.prompt) == text
    assert all(c.count(end) == 1 and c[-1] == end and tokenizer.decode(c[:-1]) == text for c in row.completions)
    row, = d.tokenize([Example("x", text, text)], tokenizer, end_of_text=False)
    assert [tokenizer.decode(c) for c in row.completions] == [text]


def test_tokenized_apart(tokenizer):
    together = tokenizer("yes")["input_ids"]
    row, = d.tokenize([Example("x", "y", "es")], tokenizer, end_of_text=False)
    assert len(together) == 1 and row.prompt + row.completions[0] != together


def test_rows_that_do_not_fit(tokenizer):
    examples = [Example("short", "?", "yes"), Example("long", "?" * 40, "yes", None)]
    assert len(d.tokenize(examples, tokenizer, True, max_length=42)) == 2
    with pytest.raises(DataError, match="1 of 2 rows is longer than max_length=41 tokens; the longest, 'long', has 42 .40 of them"):
        d.tokenize(examples, tokenizer, True, max_length=41)
    pair = [Example("p", "?", "yes", "yes" * 9)]
    with pytest.raises(DataError, match="'p', has 10"): d.tokenize(pair, tokenizer, False, max_length=9)


def test_no_end_of_text_token(tokenizer):
    import copy
    other = copy.deepcopy(tokenizer); other.eos_token = None
    assert d.tokenize(verses(1), other, end_of_text=False)
    with pytest.raises(DataError, match="no end-of-text token"): d.tokenize(verses(1), other, end_of_text=True)


def test_verbalizers(tokenizer):
    rows = d.verbalizer_rows(labelled(3), tokenizer, ("no", "yes"))
    assert [[tokenizer.decode(c) for c in r.completions] for r in rows] == [["no", "yes"]] * 3
    with pytest.raises(DataError, match="'maybe' is 5 tokens"): d.verbalizer_rows(labelled(3), tokenizer, ("no", "maybe"))
    with pytest.raises(DataError, match="share a token"): d.verbalizer_rows(labelled(3), tokenizer, ("no", "no"))


# folds

def test_folds_of_the_sonnets_are_disjoint_and_whole():
    "24 only validate; each of the other 130 is judged once and trains in the other nine folds. At 72cf482 at most 33 of 154 are ever judged."
    poems = d.read_sonnets(Path(d.__file__).parent/"assets"/"sonnets.txt")
    every = {e.id for e in poems}
    for folds, judged in ((10, 13), (5, 26)):
        found = [d.fold_split(poems, folds, fold) for fold in range(1, folds + 1)]
        for splits in found:
            train, validation, test = ({e.id for e in part} for part in splits.values())
            assert (len(validation), len(test)) == (24, judged) and train | validation | test == every
            assert not train & validation and not train & test and not validation & test
        assert len({tuple(e.id for e in splits["validation"]) for splits in found}) == 1
        assert Counter(e.id for splits in found for e in splits["test"]) == Counter(every - {e.id for e in found[0]["validation"]})


def test_folds_of_labelled_rows_are_stratified():
    "The same rows validate in each fold, with their share of each label; each of the others is judged once."
    rows = [Example(str(i), f"text {i}", "ab"[i % 10 == 0], label=int(i % 10 == 0)) for i in range(200)]
    found = [d.fold_split(rows, 5, fold) for fold in range(1, 6)]
    validating = {tuple(e.id for e in splits["validation"]) for splits in found}
    assert len(validating) == 1 and Counter(e.label for e in found[0]["validation"]) == {0: 28, 1: 5}
    assert Counter(e.id for splits in found for e in splits["test"]) == Counter({e.id for e in rows} - set(*validating))
    for splits in found:
        assert sorted(e.id for part in splits.values() for e in part) == sorted(e.id for e in rows)
        assert Counter(e.label for e in splits["test"])[1] == 3 and len(splits["test"]) in (33, 34)


def test_folds_do_not_depend_on_the_order_of_the_rows():
    "So every cell has the same folds; all rows of one prompt stay together."
    rows = [Example(str(i), f"text {i // 3}", "ab"[i % 2], label=i % 2) for i in range(60)]
    named = lambda splits: {split: {e.id for e in part} for split, part in splits.items()}
    for fold in (1, 4):
        assert named(d.fold_split(rows, 4, fold)) == named(d.fold_split(rows[::-1], 4, fold))
        prompts = [{e.prompt for e in part} for part in d.fold_split(rows, 4, fold).values()]
        assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]


@pytest.mark.parametrize("folds, fold, says", [(1, 1, "--folds 1 .*2 to 8"), (13, 1, "--folds 13 "), (4, 0, "--fold 0 cannot be used: use a number from 1 to 4")])
def test_folds_that_cannot_be(folds, fold, says):
    rows = [Example(str(i), f"text {i}", "x", label=0) for i in range(12)]
    with pytest.raises(DataError, match=says): d.fold_split(rows, folds, fold)
    assert len(d.fold_split(rows, 2, 1)["test"]) == 4 and len(d.fold_split(rows, 8, 8)["test"]) == 1  # the remedy works


def test_folds_are_for_data_that_no_file_judges(tmp_path):
    with pytest.raises(DataError, match="--folds 5 cannot be used: the data 'generated' has rows of its own that judge: leave --folds out"): d.load_task("paraphrase", folds=5, fold=1)
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    assert len(d.load_task("labels", tmp_path / "train.csv", folds=5, fold=5).test) in (6, 7)
    (tmp_path / "test.csv").write_text((tmp_path / "train.csv").read_text())
    with pytest.raises(DataError, match="has rows of its own that judge"): d.load_task("labels", tmp_path, folds=5, fold=1)


def test_a_rare_label_is_judged(tmp_path):
    "Drawn without regard to labels, 60 of 300 rows hold none to five of a label that 15 rows have."
    rows = "".join(f"text {i},{'rare' if i % 20 == 0 else 'common'}\n" for i in range(300))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    found = d.load_task("labels", tmp_path / "rows.csv")
    rare = found.intake.labels.index("rare")
    assert [Counter(e.label for e in part)[rare] for part in found.splits.values()] == [7, 3, 5]


# labels

def test_unbalanced_and_rare_labels_are_named(tmp_path):
    "Through a file and `check_file`, as `data check` prints it."
    from sftdpo.reading.check import check_file
    rows = "".join(f"message {i},{'ham' if i % 10 else 'spam'}\n" for i in range(200))
    report = unbroken(check_file("labels", write(tmp_path, "mail.csv", "text,label\n" + rows)))
    assert "one label has 90% of the training rows: macro F1 is the primary metric, not accuracy" in report and "too few judged rows to say much of a label: spam" in report
    even = "".join(f"message {i},{'ham' if i % 2 else 'spam'}\n" for i in range(200))
    assert "macro F1" not in unbroken(check_file("labels", write(tmp_path, "even.csv", "text,label\n" + even)))
    once = unbroken(check_file("labels", write(tmp_path, "once.csv", "text,label\n" + even + "one more,fraud\n")))
    assert "test holds no example of fraud" in once and "fraud 0 " not in once.partition("test holds")[2], "once is enough"


def test_which_wrong_label_is_rejected():
    examples = [Example(str(i), f"text {i}", "abc"[i % 3], label=i % 3) for i in range(300)]
    by_chance = [(e.completion, e.rejected) for e in d.make_pairs(examples, "flip", 1, "abc")]
    assert sorted(set(by_chance)) == [(a, b) for a in "abc" for b in "abc" if a != b] and min(Counter(by_chance).values()) > 30
    assert d.favourites(examples, "abc", [[.1, .6, .3]] * 300) == ["b", "c", "b"] * 100
    with pytest.raises(ValueError, match="shorter"): d.favourites(examples, "abc", [[1, 0, 0]])


# what judged and training texts share

def test_shared_runs_of_the_sonnets():
    "Sonnet 96 ends with the couplet of sonnet 36; no other pair of sonnets shares as many words."
    poems = d.read_sonnets(Path(d.__file__).parent/"assets"/"sonnets.txt")
    assert len(d.shared_runs([poems[95]], poems[:95])["96"]) > 10 and "1" not in d.shared_runs(poems[:1], poems[1:])
    assert d.word_runs("Don’t SAY so, now!", 3) == [("don't", "say", "so"), ("say", "so", "now")]


@pytest.mark.skipif(not (shared/"qqp-study").is_dir(), reason="../shared/data/qqp-study is not here")
def test_the_stored_ids_pick_the_pairs_of_the_study(tmp_path):
    "From the course's pairs, `tools/question_pairs.py` makes the very files that the study of SmolLM2 was trained and judged on."
    tool, out = Path(__file__).parents[1] / "tools/question_pairs.py", tmp_path / "pairs"
    def run(folder): return subprocess.run([sys.executable, tool, folder, out], capture_output=True, text=True, check=False)
    run(shared / "qqp")
    for name in ("train.tsv", "dev.tsv"): assert (out / name).read_bytes() == (shared / "qqp-study" / name).read_bytes()
    empty = tmp_path / "empty"; empty.mkdir()
    refused = run(empty)
    assert refused.returncode and f"{empty} lacks 15,212 of 15,212 pairs" in refused.stderr and "quora-train.csv" in refused.stderr
