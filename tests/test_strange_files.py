"Files as people have them: spreadsheets, shards, bombs, and the usual shapes of public data sets."
import json
import re
import shlex

import pytest

import sftdpo.files
from sftdpo.config import Reading
from sftdpo.data import DataError, UnusableRows, load_task
from sftdpo.files import read_table


def write(folder, name, data):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


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
    monkeypatch.setattr(sftdpo.files, "LARGEST_BYTES", 1_000_000)
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


def test_values_nested_too_deep_to_show(tmp_path):
    deep = "[" * 950 + "]" * 950
    path = write(tmp_path, "deep.jsonl", "".join(f'{{"prompt": {deep if i == 3 else i}, "completion": "x"}}\n' for i in range(9)))
    with pytest.raises(UnusableRows, match="line 4: the prompt is a list, not a text"): load_task("completions", path)
    with pytest.raises(UnusableRows, match="row 1 is a list|none of|a list, not an object"): sftdpo.files.keep([[dict(a=1)]], tmp_path / "kept")
