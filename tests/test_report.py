"""The report: hostile data stays text, the page stands alone, half-done studies are told as such."""
import dataclasses
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml

from sftdpo.claims import judge_claims
from sftdpo.cli import main, parse
from sftdpo.engine.folder import Damaged, StudyFolder
from sftdpo.engine.store import gather, read_results, write_planned_runs
from sftdpo.page.explore import view_of
from sftdpo.page.views import answers_of
from sftdpo.report import MOST_RUNS, STYLE, about, as_html, up_to_date, write_report
from sftdpo.tables import SEARCH_TOO, WHAT_TO_CHANGE, format_baselines, print_differences, print_tables
from sftdpo.tasks import RECIPES, TASKS, Metric
from sftdpo.verdicts.verdict import Margins, save_margins

HOSTILE = "</pre></script><script>alert('here')</script><img src=http://127.0.0.1:9/x onerror=alert(1)> \"' onload=\"x\" =cmd()|'/c calc'!A0 {{ 7*7 }} {% raw %} \x00\x07\x1b[2J\u202eabc\u2066 ]]> --> &lt;b&gt;"


def make_run(folder, recipe="sft", tuning="full", seed=0, task="sonnet", number=6, steps=5, text="words", about=None, environment=None, settings=None, name=None):
    "A finished run's folder, as a study leaves it."
    rng, stages = np.random.default_rng([seed, *f"{recipe} {tuning}".encode()]), RECIPES[recipe].stages if recipe in RECIPES else ("sft",)
    tuning = tuning if stages else "-"
    home = folder / "runs" / (name or f"{task}-{recipe}-{tuning}-seed{seed}-0123456789")
    home.mkdir(parents=True)
    metric = "chrf" if task in ("sonnet", "completions") else "accuracy"
    ids = [str(144 + i) for i in range(number)]
    if metric == "chrf":
        examples = pd.DataFrame({"id": ids, "prompt": text, "sample": 0, "generated": text, "true": text, "chrf": rng.uniform(15, 25, number) + 2 * len(stages), "nll": 4.})
    elif task == "preferences":
        examples = pd.DataFrame({"id": ids, "correct": rng.random(number) < .6, "nll": 4., "chosen_logp": -5., "rejected_logp": -6., "prompt": text, "chosen": text, "rejected": text})
    else:
        share = rng.uniform(.5, 1, number)
        examples = pd.DataFrame({"id": ids, "label": 1, "prediction": 1, "correct": rng.random(number) < share, "probability_yes": share, "probability_no": 1 - share, "mass": .9, "prompt": text})
    value = examples.chrf.mean() if metric == "chrf" else examples.correct.mean()
    metrics = {metric: value, f"{metric}_low": value - 1, f"{metric}_high": value + 1, "nll": 4.0, "examples": number, "evaluation_seconds": 2.0}
    if not stages: metrics |= {"baseline_chrf_floor": 25.8} if metric == "chrf" else {"baseline_majority": .6}
    histories = []
    for stage, kind in enumerate(stages, 1):
        metrics |= {f"stage{stage}_{kind}_{what}": amount for what, amount in dict(examples_per_second=9., tokens_per_second=90., seconds=10. + seed, reference_seconds=1., peak_memory_gb=1.5).items()}
        step = np.arange(1, steps + 1)
        table = pd.DataFrame({"step": step, "loss": 3. / step + seed / 10, "held_out_loss": np.where(step % 2, 3.5, np.nan), "stage": stage, "kind": kind})
        if kind == "dpo": table = table.assign(reward_margin=.1 * step, chosen_log_probability=-5. - step, rejected_log_probability=-7. - step)
        histories.append(table)
    if stages: metrics |= {"parameters_total": 2_700_000, "parameters_trainable": 2_660_000 if tuning == "full" else 197_000}
    whole = dict(task=task, backbone="bard", data="embedded", recipe=recipe, tuning=tuning if stages else "full", seed=seed, sft=dict(kind="sft", epochs=1, engine="sftdpo"),
                 dpo=dict(kind="dpo", epochs=1, engine="sftdpo", rejected="swap", beta=.1)) | (settings or {})
    (home / "settings.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    (home / "environment.json").write_text(json.dumps(dict(software={"torch": "2.13.0"}, processor="a processor", threads=1, gpu=None, written=str(seed)) | (environment or {})), encoding="utf-8")
    if histories: pd.concat(histories).to_csv(home / "history.csv", index=False)
    examples.to_parquet(home / "examples.parquet", index=False)
    (home / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    (home / "sftdpo.json").write_text(json.dumps(dict(run=home.name, task=task, backbone="bard", data="sonnets", train_size=64 if stages else 0, recipe=recipe, tuning=tuning, seed=seed,
                                                      fold=0, split="test") | (about or {})), encoding="utf-8")
    return home


def make_study(folder, tasks=("sonnet",), recipes=("sft", "dpo", "sft-dpo", "sft-sft"), tunings=("full", "lora"), seeds=(0, 1), name="a study", finished=10**9, **kwargs):
    "A study's folder with so many of its runs finished."
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(dict(name=name, tasks=list(tasks), recipes=list(recipes), tunings=list(tunings), seeds=list(seeds), **({"data": "own.csv"} if tasks[0] in ("labels", "completions", "preferences") else {}))), encoding="utf-8")
    cells = [("base", "-", 0), *((recipe, tuning, seed) for seed in seeds for recipe in recipes for tuning in tunings)]
    for task in tasks:
        for recipe, tuning, seed in cells[:finished]: make_run(folder, recipe, tuning, seed, task, **kwargs)
    return folder


class Page(HTMLParser):
    "What a browser would make of a page: elements, links, text; every element closed in order."
    EMPTY = {"meta", "link", "img", "br"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if "id" in attributes: self.ids.append(attributes["id"])
        if tag not in self.EMPTY: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag, f"</{tag}> closes nothing"
    def handle_data(self, text): self.text.append(text)
    def all(self, tag): return [attributes for name, attributes in self.elements if name == tag]
    @property
    def words(self): return " ".join("".join(self.text).split())


ELEMENTS = set("html head meta link title style body header h1 h2 h3 h4 h5 p br nav a main section article div span ul li strong code pre table thead tbody tr th td figure img figcaption details summary bdi".split())


def read_page(path):
    "Parse a report and hold it against what every report must be."
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert {tag for tag, attributes in page.elements} <= ELEMENTS, "an element that the template does not have"
    names = {name for tag, attributes in page.elements for name in attributes}
    assert names <= set("lang charset http-equiv content name rel href id class scope tabindex role aria-label alt width height src dir open".split()), names
    for link in page.all("a"): assert link["href"][0] == "#" and link["href"][1:] in page.ids
    for link in page.all("link"): assert link["href"] == "data:,"
    for image in page.all("img"):
        assert image["src"].startswith("data:image/svg+xml;base64,") and len(image["alt"]) > 20
    assert len(set(page.ids)) == len(page.ids)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy and "http" not in policy
    assert not set(text) & {chr(code) for code in [*range(9), 11, 12, *range(14, 32), 127, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
    assert "url(" not in STYLE and "@import" not in STYLE
    return page


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished study and its report."
    folder = make_study(tmp_path_factory.mktemp("report") / "study", ("sonnet", "paraphrase"), seeds=(0, 1, 2))
    return folder, write_report(folder)


def test_a_finished_study(finished):
    folder, report = finished
    assert report == folder / "report.html"
    page = read_page(report)
    assert "50 of 50 runs finished" in page.words and "not finished" not in page.words
    for claim in ("C1", "C2", "C3", "C4", "C5"): assert f"{claim} · " in page.words
    assert len(page.all("img")) == 5 + 6  # calibration for question pairs alone
    assert "3 seeds in the smallest cell: a look, not a claim" in page.words
    assert "sftdpo compare --settings study.yaml --out study" in page.words and "recipes:" in page.words
    assert "random training sonnet 25.8" in page.words and "majority class 60.0 %" in page.words
    assert str(folder.parent) not in page.words, "no path of this machine"


def test_its_tables(finished):
    folder, report = finished
    home = folder / "report.tables"
    assert {path.name for path in home.iterdir()} == {"README.txt", *(f"{name}.{kind}" for name in ("verdicts", "cells", "metrics", "texts", "settings", "environment") for kind in ("csv", "parquet"))}
    for path in home.glob("*.csv"): assert len(pd.read_csv(path)) == len(pd.read_parquet(path.with_suffix(".parquet"))) > 0
    cells = pd.read_parquet(home / "cells.parquet")
    assert len(cells) == 2 * 9 and set(cells.task) == {"sonnet", "paraphrase"}
    assert (cells.low <= cells["mean"]).all() and (cells["mean"] <= cells.high).all()
    one = cells[(cells.task == "sonnet") & (cells.cell == "sft-dpo full")].iloc[0]
    assert one.seconds == 2 * (10 + 1) and one.parameters == 2_660_000 and np.isfinite([one.change, one.change_low, one.change_high]).all()


chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def browse(path, home, *arguments):
    "Open a page in headless Chromium: what it prints, what the console says, and every address that the page asked for."
    log = home / "net.json"
    done = subprocess.run([
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={home / 'profile'}", "--enable-logging=stderr", f"--log-net-log={log}", "--virtual-time-budget=2000", *arguments, path.as_uri()],
        capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    # what the browser asks for on its own account (its updates) has no initiator
    asked = {found[1] for line in log.read_text(encoding="utf-8", errors="replace").split("\n") if (found := re.search(r'"initiator":"(?!not an origin).*"url":"([a-z]+:[^"]*)"', line))}
    return done.stdout, [line for line in done.stderr.split("\n") if "CONSOLE" in line], asked


@pytest.mark.skipif(chromium is None, reason="needs Chromium: apt-get install chromium")
def test_in_a_browser(finished, tmp_path):
    dom, console, asked = browse(finished[1], tmp_path, "--dump-dom")
    assert console == [] and asked <= {finished[1].as_uri()} and dom.rstrip().endswith("</html>")
    browse(finished[1], tmp_path, "--window-size=1000,3000", "--hide-scrollbars", f"--screenshot={tmp_path / 'page.png'}")
    assert (tmp_path / "page.png").stat().st_size > 50_000


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("tfidf, opens", [(.99, True), (.01, False)])
def test_where_no_cell_beats_the_best_baseline_table_and_report_open_with_it(tmp_path, capsys, tfidf, opens):
    "Issue 18, point 2. At 72cf482 neither says so, and the best baseline is no row of the table."
    folder = make_study(tmp_path / "study", ("paraphrase",), recipes=("sft",), seeds=(0,), number=60)
    for file in folder.glob("runs/*/metrics.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"baseline_tfidf": tfidf, "baseline_majority": tfidf / 2}))
    print_tables(up_to_date(folder), folder)
    lines, sentence = capsys.readouterr().out.strip().splitlines(), "No cell is shown to beat the best baseline, TF-IDF at 99.0 %."
    assert lines[1].startswith(sentence) == opens and sum(sentence in line for line in lines) == opens
    assert [line.split()[2] for line in lines if line.startswith("best baseline")] == [f"{100 * tfidf:.1f}"]
    words = read_page(write_report(folder)).words
    assert (sentence in words) == opens and (not opens or words.index(sentence) < words.index("the highest mean"))


def test_what_the_opening_advises_can_be_typed():
    options = re.findall(r"--[\w.-]+(?: \d+)?", WHAT_TO_CHANGE + SEARCH_TOO)
    assert len(options) == 3
    for option in options: parse(["compare", *(option if " " in option else f"{option} 10").split()])


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("task", ["labels", "completions", "preferences"])
def test_tasks_of_ones_own(tmp_path, task):
    page = read_page(write_report(make_study(tmp_path / task, (task,), seeds=(0,), recipes=("sft", "dpo"))))
    assert ("Generated and true texts" in page.words) == (task == "completions")
    assert ("Calibration" in page.words) == (task == "labels")


def test_texts_of_a_task_of_ones_own_are_shown_by_its_own_metric(tmp_path, monkeypatch):
    "At eb47e42f the page of results ended in KeyError: 'chrf' where a task's texts are judged by something else."
    exact = Metric("exact", "exact match", "exact", share=True)
    monkeypatch.setitem(TASKS, "mine", dataclasses.replace(TASKS["completions"], name="mine", primary=exact))
    home = make_run(tmp_path, "sft", task="mine")
    pd.DataFrame(dict(id=["1", "2"], prompt="p", sample=0, generated=["a", "b"], true="a", exact=[1., 0.])).to_parquet(home / "examples.parquet")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(dict(name="mine", tasks=["mine"], data="own.csv")))
    gather(tmp_path)
    assert answers_of(tmp_path, "mine")[["answer", "value"]].to_numpy().tolist() == [["a", 1.], ["b", 0.]]


def test_hostile_data_stays_text(tmp_path):
    folder = make_study(tmp_path / "study <b>$(reboot)", name=HOSTILE.replace("/", "").replace("\x00", ""), text=HOSTILE, recipes=("sft", "dpo"), tunings=("full",), seeds=(0,), finished=2,
                        about=dict(backbone=HOSTILE, data=HOSTILE), environment={"processor": HOSTILE, HOSTILE: "\ud800"})
    (folder / "failures").mkdir()
    (folder / "failures" / "0123.txt").write_text(f"{HOSTILE}\n{HOSTILE}\n{HOSTILE * 100}", encoding="utf-8")
    page = read_page(write_report(folder))
    assert "alert('here')" in page.words and "⟨U+0000⟩⟨U+0007⟩⟨U+001B⟩[2J⟨U+202E⟩abc" in page.words and "{{ 7*7 }}" in page.words
    assert "cut here" in page.words  # of the failure
    words = pd.read_parquet(folder / "report.tables" / "texts.parquet").generated
    assert set(words) == {HOSTILE}, "tables keep what was written"


@pytest.mark.usefixtures("undrawn")
def test_a_megabyte_is_cut_on_the_page_and_whole_beside_it(tmp_path):
    folder = make_study(tmp_path / "study", text="long " * 200_000, recipes=("sft",), tunings=("full",), seeds=(0,), number=3)
    report = write_report(folder)
    assert report.stat().st_size < 1e6
    assert "1,000,000 characters in all" in read_page(report).words
    assert (pd.read_csv(folder / "report.tables" / "texts.csv").generated.str.len() == 1_000_000).all()


def test_direction_is_isolated():
    assert str(as_html("\u0634\u0639\u0631")) == "<bdi>\u0634\u0639\u0631</bdi>"
    assert str(as_html("a\u2067b")) == "<bdi>a⟨U+2067⟩b</bdi>"


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("number, told", [(0, True), (16, True), (17, False)])
def test_the_command_says_what_is_not_finished(tmp_path, capsys, number, told):
    main(["report", str(make_study(tmp_path / "study", finished=number))])
    assert (f"note: {number} of 17 runs are finished;" in capsys.readouterr().out) == told


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("number", [0, 1, pytest.param(2, marks=pytest.mark.slow), 5])
def test_half_done(tmp_path, number):
    folder = make_study(tmp_path / "study", finished=number)
    page = read_page(write_report(folder))
    assert f"{number} of 17 runs finished" in page.words
    assert ("The study is not finished" in page.words) == (number > 0) and ("No run is finished yet" in page.words) == (number == 0)
    before = len((folder / "results.csv").read_text().split("\n")) if number else 0
    make_run(folder, seed=77)
    assert f"{number + 1} of 17 runs" in read_page(write_report(folder)).words, "a report follows the folder"
    assert len((folder / "results.csv").read_text().split("\n")) > before


def differences_in(page): return [image["alt"] for image in page.all("img") if image["alt"].startswith("Differences of")]


def about_differences(page): return page.words.partition(" Differences ")[2].partition("Differences of")[0]


@pytest.mark.usefixtures("undrawn")
def test_differences_are_drawn_as_the_verdicts_estimate_them(tmp_path):
    folder = make_study(tmp_path / "study", seeds=(0, 1, 2))
    words, = differences_in(read_page(write_report(folder)))
    values = {(run.name.split("-full")[0], run.name.split("-")[-2]): pd.read_parquet(run / "examples.parquet").chrf.mean() for run in (folder / "runs").glob("*-full-*")}
    for name, first, second in (("sft-dpo − sft", "sonnet-sft-dpo", "sonnet-sft"), ("dpo − sft", "sonnet-dpo", "sonnet-sft")):
        mean = np.mean([values[first, f"seed{seed}"] - values[second, f"seed{seed}"] for seed in range(3)])
        assert f"{name}, full {mean:+.2f} chrF [".replace("-0", "−0").replace(" -", " −") in words
    for name in ("dpo − sft, lora", "sft-dpo − sft-sft, full", "sft, full − lora", "sft-sft, full − lora"): assert f"{name} " in words
    assert words.endswith("A grey band: less than 1 chrF: too small to matter.")
    assert differences_in(read_page(write_report(make_study(tmp_path / "one", recipes=("sft",), tunings=("full",))))) == []


@pytest.mark.usefixtures("undrawn")
def test_what_must_be_known_of_differences_is_told(tmp_path):
    page = read_page(write_report(make_study(tmp_path / "study", seeds=(0,))))
    assert "Intervals are over examples; " in page.words and "over seeds and examples" not in page.words, "at f8ae2a52 they were said to be over seeds too"
    known = about_differences(page)
    assert "One seed: the interval is over examples only" in known and "of a hundred such intervals, about 5 miss the truth by chance" in known
    other = make_study(tmp_path / "other", recipes=("sft", "dpo"), tunings=("full",), seeds=(0, 1))
    shutil.rmtree(next((other / "runs").glob("sonnet-dpo-full-seed1-*")))
    save_margins(other, Margins(level=.8))
    known = about_differences(read_page(write_report(other)))
    assert "80 % intervals" in known and "about 20 miss" in known and "left out: 6." in known


@pytest.mark.usefixtures("undrawn")
def test_cells_without_a_common_seed_have_no_difference_and_stop_nothing(tmp_path, capsys):
    folder = make_study(tmp_path / "study", recipes=("sft", "dpo"), tunings=("full",), seeds=(0, 1))
    for name in ("sft-full-seed0", "dpo-full-seed1"): shutil.rmtree(next((folder / "runs").glob(f"sonnet-{name}-*")))
    assert differences_in(read_page(write_report(folder))) == []
    print_differences(gather(StudyFolder(folder)), folder)
    assert capsys.readouterr().out == ""


def test_a_run_that_is_left_out_of_a_difference_is_told(tmp_path, capsys):
    folder = make_study(tmp_path / "study", ("paraphrase",), ("sft", "dpo"), ("full",), (0, 1, 2), number=20)
    for run in (folder / "runs").iterdir():
        examples = pd.read_parquet(run / "examples.parquet").assign(label=np.arange(20) % 2, prediction=lambda table: np.where(table.correct, table.label, 1 - table.label))
        if "dpo-full-seed2" in run.name: examples["prediction"] = 1
        examples.assign(correct=examples.prediction == examples.label).to_parquet(run / "examples.parquet", index=False)
    print_differences(gather(StudyFolder(folder)), folder)
    assert "A run that gives one answer to everything is left out" in " ".join(capsys.readouterr().out.split())


def test_differences_are_printed_where_trainings_were_repeated(tmp_path, capsys):
    folder = make_study(tmp_path / "study", seeds=(0, 1))
    print_differences(gather(StudyFolder(folder)), folder)
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "sonnet: differences; less than 1 chrF is too small to matter"
    names = [line.partition("  ")[0] for line in said[2:14]]
    assert names[0] == "dpo − sft, full" and names[-4:] == ["sft, full − lora", "dpo, full − lora", "sft-dpo, full − lora", "sft-sft, full − lora"]
    assert all(re.search(r"[+−]\d+\.\d+ chrF \[[+−]", line) for line in said[2:14]) and said[14].startswith("note: 95 % intervals")
    for run in (folder / "runs").glob("sonnet-sft-lora-seed1-*"): shutil.rmtree(run)
    print_differences(gather(StudyFolder(folder)), folder)
    assert "sft-sft, full − lora" in (left := capsys.readouterr().out) and "sft, full − lora  " not in left.replace("sft-sft, full", ""), "one training of a cell says nothing of how much trainings vary"


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_sets_cells_apart(tmp_path, capsys):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(dict(name="a sweep", tasks=["sonnet"], recipes=["sft", "dpo"], tunings=["full"], seeds=[0, 1], sweep={"dpo.beta": [.1, .5]})))
    make_run(folder, "base")
    lines = []
    for seed in (0, 1):
        make_run(folder, "sft", seed=seed, name=f"sonnet-sft-{seed}")
        for beta in (.1, .5): make_run(folder, "dpo", seed=seed, settings=dict(dpo=dict(beta=beta, epochs=1)), name=f"sonnet-dpo-{beta}-{seed}")
        shared = [run.name for run in (folder / "runs").iterdir() if "base" in run.name or f"sft-{seed}" in run.name]
        lines += [dict(task="sonnet", tuning="full", seed=seed, fold=0, run=run, recipe=run, **{"dpo.beta": beta}) for beta in (.1, .5) for run in (*shared, f"sonnet-dpo-{beta}-{seed}")]
    write_planned_runs(folder, pd.DataFrame(lines))
    page = read_page(write_report(folder))
    assert "7 of 7 runs" in page.words
    assert set(pd.read_parquet(folder / "report.tables" / "cells.parquet").cell) == {"base", "sft full", "dpo full, dpo.beta 0.1", "dpo full, dpo.beta 0.5"}
    print_differences(read_results(folder), folder)
    assert differences_in(page) == [] and capsys.readouterr().out == "", "a cell that a sweep gives several values is not compared as one"


def test_every_file_of_a_sweep_is_named_above_its_table(tmp_path, capsys):
    "At eb47e42f the table of several files was headed by the first, with its number of judged rows, and the report told the largest number alone."
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(dict(name="two files", tasks=["labels"], recipes=["sft"], tunings=["full"], data="one.csv", sweep={"data": ["one.csv", "two.csv"]})))
    lines = []
    for data, number in (("one.csv", 6), ("two.csv", 9)):
        for recipe in ("base", "sft"):
            run = make_run(folder, recipe, task="labels", number=number, about=dict(data=data), name=f"labels-{recipe}-{data[:3]}").name
            lines.append(dict(task="labels", tuning="full", seed=0, fold=0, run=run, recipe=recipe, data=data))
    write_planned_runs(folder, pd.DataFrame(lines))
    results = gather(folder)
    print_tables(results, folder)
    assert "data: one.csv or two.csv · 64 training examples, 6 or 9 judged" in " ".join(capsys.readouterr().out.split())
    assert "data: one.csv, two.csv · 64 training examples · 6, 9 judged" in about(results)


@pytest.mark.usefixtures("undrawn")
def test_runs_that_left_the_study_are_in_no_cell(tmp_path):
    "Trained again at another rate, a cell's old runs stay on the disk. At 62ea385b the report reads them too, and shows each as a cell of its own; a table that was written before still counts them."
    folder = make_study(tmp_path / "study", seeds=(0, 1, 2))
    gone = {path.name for path in folder.glob("runs/*") if "sft-" in path.name}
    assert gone
    lines = gather(StudyFolder(folder)).drop_duplicates("run").query("run not in @gone")
    write_planned_runs(folder, lines[["run", "task", "recipe", "tuning", "seed", "fold"]].astype(str))
    page = read_page(write_report(folder))
    assert not gone & set(read_results(folder)["run"])
    assert set(pd.read_parquet(folder / "report.tables" / "cells.parquet").cell) == set(lines["recipe"].where(lines["recipe"] == "base", lines["recipe"] + " " + lines["tuning"]))
    assert f"{len(lines)} of" in page.words
    write_planned_runs(folder, lines[["run", "task", "recipe", "tuning", "seed", "fold"]].astype(str).assign(run="none-of-these"))
    assert up_to_date(folder).empty, "none of the runs that are asked for now is finished"


@pytest.mark.usefixtures("undrawn")
def test_a_trial_that_failed_is_no_run_that_is_missing(tmp_path):
    "A rate that is too high may well diverge. At 62ea385b the report says that runs are missing."
    folder = make_study(tmp_path / "study", finished=4)
    (folder / "search" / "failures").mkdir(parents=True)
    (folder / "search" / "failures" / "0123.txt").write_text("sonnet: dpo lora, seed 900\nFloatingPointError: The loss is not finite\n\nruns: none\n\nTraceback")
    words = read_page(write_report(folder)).words
    assert "1 trial of learning rates failed, and counts as the worst" in words and "stage failed" not in words


@pytest.mark.usefixtures("undrawn")
def test_failures_and_chosen_rates_are_told(tmp_path):
    folder = make_study(tmp_path / "study", finished=4)
    (folder / "failures").mkdir()
    (folder / "failures" / "0123.txt").write_text("sonnet: dpo lora, seed 1\nFloatingPointError: The loss is not finite\n\nruns: none\n\nTraceback")
    (folder / "search.csv").write_text("task,recipe,tuning,trial,learning_rate,beta,score,metric,chosen,at_edge\nsonnet,sft,full,1,0.001,,20.5,chrf,True,False\nsonnet,sft,full,2,0.003,,20.1,chrf,False,False\nsonnet,sft,lora,1,0.002,,20.2,chrf,True,False\n")
    page = read_page(write_report(folder, tmp_path / "else where" / "page.html"))
    assert "sonnet: dpo lora, seed 1: FloatingPointError: The loss is not finite" in page.words and "1 stage failed" in page.words
    assert "0.001" in page.words and "0.003" not in page.words and "not each cell's best" not in page.words
    assert "Cells had from 1 to 2 trials" in page.words, "at eb47e42f every cell had the same number of them"
    assert (tmp_path / "else where" / "page.tables" / "failures.csv").exists() and not (folder / "report.html").exists()


def test_a_damaged_table_of_trials_is_named(tmp_path):
    folder = make_study(tmp_path / "study", finished=4)
    (folder / "search.csv").write_text("task,recipe,tuning,trial,learning_rate,beta,score,metric,chosen,at_edge\nsonnet,sft,full,1,0.0")
    for read in (write_report, judge_claims, lambda folder: view_of(folder).search):
        gather(StudyFolder(folder))
        with pytest.raises(Damaged, match="search.csv"): read(folder)


def test_both_lengths_stand_beside_preferences():
    results = pd.DataFrame([dict(task="preferences", recipe="base", tuning="-", seed=0, fold=0, run="base", metric=f"baseline_{name}", value=value) for name, value in dict(coin=.5, longer=.3, shorter=.7).items()])
    assert format_baselines(results) == "a coin 50.0 %, the longer one 30.0 %, the shorter one 70.0 %"


@pytest.mark.usefixtures("undrawn")
def test_settings_of_another_version(tmp_path):
    folder = make_study(tmp_path / "study", finished=3)
    with (folder / "study.yaml").open("a") as file: file.write("keep_weights: true\n")
    page = read_page(write_report(folder))
    assert "3 runs finished" in page.words and "keep_weights" in page.words


def test_no_study(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no study"): write_report(tmp_path)


@pytest.mark.parametrize("seeds, most", [(5, 30), pytest.param(60, MOST_RUNS, marks=pytest.mark.slow)])
def test_many_runs(tmp_path, seeds, most, request, monkeypatch):
    "Size and, roughly, time: figures are made from the lowest seeds, tables from all runs; of the larger study they are drawn too."
    monkeypatch.setattr("sftdpo.report.MOST_RUNS", most)
    if seeds < 60: request.getfixturevalue("undrawn")
    folder = make_study(tmp_path / "study", seeds=range(seeds), number=4, steps=3)
    started = time.perf_counter()
    report = write_report(folder)
    print(f"{seeds * 8 + 1} runs: {time.perf_counter() - started:.1f} s")
    page = read_page(report)
    assert f"{seeds * 8 + 1} of {seeds * 8 + 1} runs" in page.words and f"Drawn from the {most} runs with the lowest seeds" in page.words and report.stat().st_size < 2e6


@pytest.mark.skipif(chromium is None, reason="needs Chromium: apt-get install chromium")
def test_hostile_data_in_a_browser(tmp_path):
    folder = make_study(tmp_path / "study", text=HOSTILE, recipes=("sft",), tunings=("full",), seeds=(0,), about=dict(backbone=HOSTILE, data=HOSTILE))
    report = write_report(folder)
    dom, console, asked = browse(report, tmp_path, "--dump-dom")
    assert console == [] and asked <= {report.as_uri()} and "<script" not in dom


@pytest.mark.skipif(chromium is None, reason="needs Chromium: apt-get install chromium")
def test_the_browser_would_tell(tmp_path):
    "The same look at a page that does run a script and does ask finds both."
    (tmp_path / "bad.html").write_text("<script>console.error('here')</script><img src=http://127.0.0.1:9/x>")
    dom, console, asked = browse(tmp_path / "bad.html", tmp_path, "--dump-dom")
    assert console and "http://127.0.0.1:9/x" in asked
