"Rows that mean harm go through data, training, generation, tables and the report, and stay text."
import json
import re

import pandas as pd
import pytest

from sftdpo.config import Reading, Sampling, Stage, Study
from sftdpo.engine.store import read_texts
from sftdpo.report import write_report
from sftdpo.study import compare

HOSTILE = ["<script>alert(1)</script>", "</textarea><img src=x onerror=alert(1)>", "=cmd|' /C calc'!A0", "{{ 7 * 7 }} {% raw %} ${7*7}", "\u202eright to left\u202c",
           "\x07\x1b[31mred\x1b[0m\x08", '"; DROP TABLE runs; --', "../../../etc/passwd", "a" * 1_000_000, "line\r\nline\u2028line", "`rm -rf /` $(rm -rf /)", "']}{[(%s%n", "&lt;b&gt;"]
ROWS = HOSTILE + [text for text in HOSTILE if len(text) < 1000] * 3  # the megabyte once


def study(task, path, backbone, **reading):
    stage = dict(epochs=1, batch_size=4, learning_rate=1e-3, precision="fp32", evaluations=1)
    return Study("hostile <b>study</b>".replace("<", "(").replace(">", ")").replace("/", ""), tasks=(task,), data=str(path), backbone=backbone, tunings=("full",), recipes=("sft", "dpo"),
                 sampling=Sampling(samples=1, max_new_tokens=16), sft=Stage("sft", **stage), dpo=Stage("dpo", **stage), reading=Reading(too_long="truncate", **reading))


def check_report(folder, texts):
    path = write_report(folder)
    page = path.read_text(encoding="utf-8")
    assert "<script" not in page.lower() and not re.search(r"<[^>]* on\w+\s*=", page.lower()) and "49" not in re.findall(r">(\d+)<", page)
    assert "\x07" not in page and "\x1b" not in page
    tables = folder / "report.tables"
    assert tables.is_dir() and (folder / "results.csv").exists()
    return page


def test_completions(backbone, tmp_path):
    path = tmp_path / "<i>hostile & 'co'</i>.jsonl".replace("/", "")
    path.write_text("".join(json.dumps({"prompt": f"{text[:90]}\n", "completion": text[::-1][:60] if len(text) < 1000 else text}) + "\n" for text in ROWS))
    with pytest.raises(Exception) as told: compare(study("completions", path, backbone), tmp_path / "stopped", progress=False)
    assert "1,000,000" in str(told.value) or "longer" in str(told.value) or "tokens" in str(told.value)       # a completion of 1 MB fits no backbone, and is named
    path.write_text("".join(json.dumps({"prompt": f"{text}\n", "completion": text[::-1][:60]}) + "\n" for text in ROWS))
    results = compare(study("completions", path, backbone), tmp_path / "out", progress=False)
    assert set(results.recipe) == {"base", "sft", "dpo"}
    found = read_texts(tmp_path / "out")
    assert found.true.isin([text[::-1][:60] for text in HOSTILE]).all()                                       # to the letter
    check_report(tmp_path / "out", found)


@pytest.mark.usefixtures("undrawn")
def test_labels(backbone, tmp_path):
    path = tmp_path / "hostile.csv"
    pd.DataFrame({"text": ROWS, "label": [("no", "yes")[i % 2] for i in range(len(ROWS))]}).to_csv(path, index=False)
    results = compare(study("labels", path, backbone, prompt="{text}\n", end_of_text=True), tmp_path / "out", progress=False)
    assert results[results.metric == "accuracy"].value.between(0, 1).all()
    check_report(tmp_path / "out", read_texts(tmp_path / "out"))
