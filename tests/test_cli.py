"The command line: options are the settings' fields, a help fills one screen, and mistakes are told in a line."
import errno
import json
import os
import re
import select
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from little import unbroken

import sftdpo
from sftdpo.cli import (
    COMMANDS,
    QUICKSTART,
    Compare,
    Generate,
    Train,
    main,
    of_system,
    output_file,
    parse,
    without_effect,
    write_and_tell,
)
from sftdpo.config import Execution, SettingsError, Study
from sftdpo.engine.work import cores
from sftdpo.tasks import TASKS


def test_options_are_the_fields_of_the_settings():
    command = parse("compare --tasks sonnet --recipes sft dpo --seeds 0 1 --learning-rates.sft-full 1e-4 --dpo.beta 0.2 --sweep lora.rank 4,8 --out there".split())
    assert isinstance(command, Compare) and str(command.out) == "there"
    assert (command.study.recipes, command.study.seeds, command.study.dpo.beta) == (("sft", "dpo"), (0, 1), 0.2)
    assert command.study.sweep == {"lora.rank": [4, 8]} and command.study.dpo.kind == "dpo"
    assert isinstance(parse(["train", "--recipe", "sft-dpo", "--tuning", "lora"]), Train)
    assert parse(["generate", "bard", "--prompt", "Shall I"]) == Generate("bard", prompt="Shall I")
    assert parse("evaluate bard --tasks sonnet".split()).task == "sonnet"  # as messages of `compare` have it
    assert parse("compare --task sonnet".split()).study.tasks == ("sonnet",)
    assert parse(["data", __file__]) == parse(["data", "check", __file__])
    assert parse("submit bard pairs.csv out.csv --reading.unusable drop".split()).reading.unusable == "drop"


def test_a_table_of_a_settings_file_is_replaced_by_a_typed_one(tmp_path):
    "At 0fae5a8 `--sweep` beside settings that had a sweep was an unknown option."
    (tmp_path / "study.yaml").write_text("name: one\ntasks: [labels]\ndata: rows.csv\nsweep: {lora.rank: [4, 8]}\nreading: {verbalizers: {a: A, b: B}}\n")
    words = ["compare", "--settings", str(tmp_path / "study.yaml")]
    assert parse(words).study.sweep == {"lora.rank": [4, 8]}
    assert parse([*words, "--sweep", "dpo.beta", "0.1,0.2"]).study.sweep == {"dpo.beta": [.1, .2]}
    changed = parse([*words, "--reading.verbalizers", "a", "X", "c", "Y"]).study
    assert changed.reading.verbalizers == {"a": "X", "c": "Y"} and changed.sweep == {"lora.rank": [4, 8]}


def test_a_settings_file_and_options_that_win_over_it(tmp_path):
    (tmp_path / "study.yaml").write_text("name: mine\nseeds: [1, 2]\ndpo: {beta: 0.3}\n")
    for given in (["--settings", str(tmp_path / "study.yaml")], [f"--settings={tmp_path / 'study.yaml'}"]):
        study = parse(["compare", *given, "--seeds", "7"]).study
        assert (study.name, study.seeds, study.dpo.beta) == ("mine", (7,), 0.3)


@pytest.mark.parametrize("words, told", [
    (["compare", "--train-size", "0"], "--train-size 0 cannot"),
    (["compare", "--settings", "nowhere.yaml"], "nowhere.yaml"),
    (["compare", "--tasks", "paraphrase", "--data", "nowhere/pairs.tsv"], "nowhere/pairs.tsv"),
    (["compare", "--backbone", "no/such-model"], "bard"),
    (["compare", "--train-size", "99999999"], "99999999"),
    (["evaluate", "no/such-model"], "bard"),
    (["train", "--recipe", "base"], "trains nothing"),
    (["plan", "--workers", "0"], "--workers 0 cannot"),
    (["compare", "--seeds", "1", "1"], "--seeds 1 1 cannot"),
    (["compare", "--sampling.top-p", "3"], "--sampling.top-p 3.0 cannot"),  # of settings inside others, which tyro makes
    (["compare", "--train-size", "many"], "--train-size many: give a whole number"),
    (["compare", "--cells", "sft dpo.beta", "x"], "--cells 'sft dpo.beta' x: give a number"),
    (["train", "--sft.beta", "1"], "--sft.beta does not apply to SFT: it is --dpo.beta"),
    (["train", "--dpo.kind", "dpo"], "--dpo.kind does not apply"),
    (["predict", "bard", "x.csv", "--reading.leaked", "drop"], "--reading.leaked does not apply to predict: leave it out"),
    (["predict", "bard", "x.csv", "--reading.beginning", "cut"], "--reading.beginning does not apply to predict: leave it out"),
])
def test_mistakes_are_told_in_a_line(words, told, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")] if words[0] != "evaluate" else []
    with pytest.raises(SystemExit) as end: main(words + out)
    said = capsys.readouterr().err
    assert end.value.code == 2 and told in said and "Traceback" not in said
    assert len(said.splitlines()) == 1 and "│" not in said and "NoneType" not in said


@pytest.mark.parametrize("words, meant", [
    ("comapre", "compare"), ("compare --recipes sfd", "sft"), ("compare --tasks paraphras", "paraphrase"), ("train --task sonet", "sonnet"),
    ("compare --backbone smolm2-135m", "smollm2-135m"), ("generate smollm", "smollm2-135m"), ("evaluate bart", "bard"), ("fetch gpt-2", "gpt2"),
    ("compare --train-sizes 4", "--train-size"), ("compare --dpo.betta 4", "--dpo.beta"), ("train --sft.lr 1", "--sft.learning-rate"), ("compare --settings tickets.cvs", "tickets.csv"), ("train --dpo.loss sigmod", "sigmoid"), ("data chek tickets.csv", "check"),
    ("data check tickest.csv", "tickets.csv"), ("compare --tasks labels --data tickest.csv", "tickets.csv"), ("predict madel tickets.csv", "model"), ("report modle", "model"),
    ("compare --tasks labels --data tickets.csv --reading.label tema", "team")])
def test_a_near_miss_is_told(words, meant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tickets.csv").write_text("text,team\n" + "one,a\ntwo,b\n" * 20)
    (tmp_path / "model" / "model").mkdir(parents=True)
    with pytest.raises(SystemExit) as end: main(words.split())
    said = capsys.readouterr().err
    assert end.value.code == 2 and f"did you mean '{meant}'" in said and len(said.splitlines()) == 1


def test_what_another_command_has_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text("sft:\n  learning_rte: 0.1\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "study.yaml").write_text("tasks: [labels]\n")
    for words, told in {"recommend tickets.csv --recipes sft": "no such option; `sftdpo compare` has it.", "compare --minutes 5": "no such option; `sftdpo recommend` has it.",
                        "compare --settings study.yaml": "there is no setting 'learning_rte'", "report mine": "mine holds no study, and its study.yaml was not written by sftdpo"}.items():
        with pytest.raises(SystemExit) as end: main(words.split())
        said = capsys.readouterr().err
        assert end.value.code == 2 and told.lower() in said.lower() and "delete" not in said, said
    with pytest.raises(SystemExit) as end: main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"sftdpo {sftdpo.__version__}\n"


def test_a_study_without_weights_is_told_from_what_is_not_finished(tmp_path, capsys):
    from sftdpo.study import claim_folder
    for name, told in (("night", "is a study, and it keeps no weights: `sftdpo compare --weights best`"), ("one run", "what trains there is not finished")):
        claim_folder(tmp_path / name, Study(name))
        with pytest.raises(SystemExit): main(["predict", str(tmp_path / name), "x.csv"])
        assert told in capsys.readouterr().err
    claim_folder(tmp_path / "best", Study("best", weights="best"))
    with pytest.raises(SystemExit): main(["predict", str(tmp_path / "best"), "x.csv"])
    assert "what trains there is not finished" in capsys.readouterr().err
    (tmp_path / "best" / "runs" / "one" / "policy").mkdir(parents=True)
    with pytest.raises(SystemExit): main(["predict", str(tmp_path / "best"), "x.csv"])
    assert f"name one of its models, such as {tmp_path / 'best' / 'runs' / 'one'}" in capsys.readouterr().err


@pytest.mark.parametrize("typed, meant", [("--seeds 1,2,3", "--seeds 1 2 3"), ("--sft.learning-rate 1,5e-3", "--sft.learning-rate 1.5e-3"), ("--train-size 16,000", "--train-size 16000"),
                                          ("--sft.learning-rate 1e-3,1e-4", ""), ("--seeds ,", "")])
def test_a_number_with_commas_is_told_as_it_may_be_typed(typed, meant, capsys):
    with pytest.raises(SystemExit): main(["compare", *typed.split()])
    said = capsys.readouterr().err
    assert "number" in said and (f": {meant}." in said if meant else ": --" not in said.split("number")[1])
    if meant: parse(["compare", *meant.split()])


LIGHT = ["comapre", "compare --recipes sfd", "compare --train-size 0", "compare --backbone smolm2-135m", "compare --backbone ./nowhere", "compare --backbone no/such-model",
         "compare --tasks labels --data nowhere.csv", "compare --tasks labels --data tickets.csv", "compare --tasks labels --data tickets.csv --reading.label tema",
         "plan --tasks completions --data tickets.csv", "compare --out tickets.csv", "compare --also-judge more=nowhere.csv", "compare --held-out-text nowhere.txt", "compare --train-size 999999",
         "plan --tasks labels --data tickets.csv --test-size 99", "train --task labels --data nowhere", "train --task labels --data tickets.csv --reading.prompt {txt}",
         "report nowhere", "report .", "evaluate ./nowhere", "evaluate saved --data nowhere.csv", "evaluate saved --data other.csv", "evaluate bard --out told.xlsx",
         "predict saved nowhere.csv", "predict saved other.csv", "predict saved tickets.csv --out told.xlsx", "predict saved", "generate ./nowhere", "submit ./nowhere x y",
         "submit saved nowhere.csv y", "fetch smollm", "bench --data nowhere", "data check nowhere.csv", "data check tickets.csv --task completions",
         "recommend tickets.csv --reading.label tema", "recommend tickets.csv --folds 1", "recommend tickets.csv --minutes 0"]


def test_wrong_paths_and_columns_are_found_before_torch_is_imported(tmp_path):
    (tmp_path / "tickets.csv").write_text("text,team\n" + "one,a\ntwo,b\n" * 20)
    (tmp_path / "other.csv").write_text("number\n1\n2\n")
    home = tmp_path / "saved" / "model"
    home.mkdir(parents=True)
    (home / "config.json").write_text("{}")
    (home / "task.json").write_text(json.dumps(dict(task="labels", data="tickets.csv", reading=dict(label="team"), columns={}, answers=dict(a="A", b="B"), fingerprint="")))
    code = ("import sys\nfrom sftdpo.cli import main\nfor line in sys.stdin:\n  try: main(line.split())\n  except SystemExit as left: print('left', left.code, 'torch' in sys.modules, line, end='')\n"
            "  else: print('went on', line, end='')\n")
    found = subprocess.run([sys.executable, "-c", code], input="\n".join(LIGHT) + "\n", capture_output=True, text=True, cwd=tmp_path)
    ends = [line for line in found.stdout.splitlines() if line.startswith(("left", "went on"))]
    assert ends == [f"left {1 if 'completions' in words and 'check' in words else 2} False {words}" for words in LIGHT], found.stderr


def test_a_settings_file_is_told_as_it_is_written(tmp_path, capsys):
    (tmp_path / "study.yaml").write_text("train_size: 0\n")
    with pytest.raises(SystemExit): main(["compare", "--settings", str(tmp_path / "study.yaml")])
    assert "study.yaml: train_size = 0 cannot be used" in capsys.readouterr().err


def test_options_without_effect_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sftdpo.cli.Train.__call__", lambda command: None)
    main("train --recipe sft --tuning full --dpo.beta 0.2 --lora.rank 4 --sft.epochs 1".split())
    said = capsys.readouterr().out
    assert "--dpo.beta has no effect: sft has no DPO stage" in said and "--lora.rank has no effect" in said and "--sft.epochs" not in said
    main("train --recipe sft-long --dpo.epochs 2".split())  # whose depth is that of both stages
    assert "no effect" not in capsys.readouterr().out


def help_of(*words, capsys):
    with pytest.raises(SystemExit) as end: main([*words])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_fills_one_screen(command, capsys):
    text = help_of(command, "--help", capsys=capsys)
    lines = text.splitlines()
    assert len(lines) < 80 and max(map(len, lines)) <= 80
    example = lines[lines.index("example:") + 1].split("sftdpo ", 1)[1]
    assert isinstance(parse(shlex.split(example)), COMMANDS[command][0])  # it can be typed
    everything = help_of(command, "--help-all", capsys=capsys)
    assert set(re.findall(r"^  (--[\w.-]+)", text, re.MULTILINE)) <= set(re.findall(r"^  (--[\w.-]+)", everything, re.MULTILINE))
    for option in ("--sft.kind", "--dpo.kind", "--sft.beta", "--sft.rejected", "--sft.loss", "--sft.sft-weight", "--sft.label-smoothing"): assert f"{option} " not in everything


def test_the_long_help_has_every_setting_and_the_short_one_the_defaults_in_numbers(capsys):
    short, everything = (help_of("compare", word, capsys=capsys) for word in ("--help", "--help-all"))
    assert "more options: sftdpo compare --help-all" in short and "--sft.warmup" not in short
    for option in ("--sft.warmup", "--dpo.label-smoothing", "--reading.too-long", "--ray-address", "--search.betas", "--learning-rates.dpo-lora"): assert f"\n  {option}" in everything
    rates = TASKS["labels"].rates("bard"), TASKS["labels"].rates("another")
    assert (rates[0].sft_full, rates[1].sft_lora) == (7e-4, 5e-4) and "default for bard: 3.5e-4" in short and "7e-4 full" in " ".join(short.split()) and "5e-4" in short  # as its words have them
    assert "None" not in short + everything and "{paraphrase" not in short


def test_the_overview_names_each_command_and_fits(capsys):
    text = help_of("--help", capsys=capsys)
    assert all(re.search(rf"^  {command} +\S", text, re.MULTILINE) for command in COMMANDS) and len(text.splitlines()) < 60 and max(map(len, text.splitlines())) <= 80


def test_the_final_table_fits_a_terminal_and_ends_with_what_to_type_next(backbone, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "days.csv").write_text("text,label\n" + "".join(f"the day number {i} was {'fine' if i % 2 else 'grey'},{'yes' if i % 2 else 'no'}\n" for i in range(120)))
    main(["compare", "--tasks", "labels", "--data", "days.csv", "--backbone", backbone, "--recipes", "sft", "--tunings", "full", "--train-size", "16", "--sft.epochs", "1", "--sft.batch-size", "8", "--out", "runs/a"])
    told = capsys.readouterr().out
    table = told[told.index("labels ·"):].splitlines()
    assert max(len(line.replace(backbone, "bard")) for line in table) <= 80 and any("sft full" in line for line in table)
    assert all(word in told for word in ("accuracy %", "macro F1 %", "calibration", "training"))
    typed = re.findall(r"^  sftdpo (.*(?:\n    .*)*)", told, re.MULTILINE)
    assert [words.split()[0] for words in typed] == ["report", "compare"] and "make playground" in table[-1]
    seen = parse(shlex.split(typed[1].replace("\\\n", " ")))
    assert seen.study.seeds == (0, 1, 2, 3, 4) and seen.study.backbone == backbone and str(seen.out) == "runs/a"
    main(shlex.split(typed[0]))
    assert (tmp_path / "runs/a/report.html").exists()
    main([*shlex.split(typed[1].replace("\\\n", " "))[:-6], "1", "--out", "runs/a"])  # the remedy is taken: the study goes on
    assert set(pd.read_csv("runs/a/results.csv").seed) == {0, 1}


def test_the_table_of_speeds_fits_a_terminal(repository, capsys):
    from sftdpo.bench import print_speeds
    stored = sorted((repository / "nbs/study/results/speed").glob("*.json"))
    for file in stored: print_speeds(json.loads(file.read_text(encoding="utf-8")))
    lines = capsys.readouterr().out.splitlines()
    assert stored and max(map(len, lines)) <= 80 and any("peak GB" in line for line in lines)


def test_the_quickstart_is_six_cells_and_the_base_model():
    assert len(QUICKSTART.runs()) == 7 and QUICKSTART.backbone == "bard"


def test_a_quickstart_that_fails_says_so_and_tries_again(tmp_path, monkeypatch):
    given = []
    def compare(study, folder, execution=Execution()):
        given.append(execution)
        results = pd.DataFrame()
        results.attrs["failed"] = ["a run"]
        return results
    monkeypatch.setattr("sftdpo.study.compare", compare)
    monkeypatch.setattr("sftdpo.tables.print_tables", lambda results, folder: None)
    with pytest.raises(SystemExit) as end: main(["quickstart", "--out", str(tmp_path)])
    assert end.value.code == 1 and given == [Execution(retry_failed=True, workers=min(4, cores()))]


def test_a_format_that_cannot_be_written_is_told_before_anything_is_judged(monkeypatch, capsys):
    monkeypatch.setattr("sftdpo.study.evaluate_saved", lambda *given: pytest.fail("judged"))
    with pytest.raises(SystemExit) as end: main(["evaluate", "bard", "--out", "predictions.xlsx"])
    assert end.value.code == 2 and "'.xlsx'" in capsys.readouterr().err


def test_the_readme_makes_every_model_that_it_loads(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    loaded = re.findall(r'from_pretrained\("(runs/\w+)/model"\)', text)
    assert loaded and all(re.search(f"sftdpo train .*--out {folder}\n", text) for folder in loaded)


def test_a_log_has_each_line_as_it_comes():
    "At fdeaf147 the log of a study in the background stayed empty for hours."
    code = "import time; from sftdpo.engine.plain_text import clean_output\nwith clean_output():\n    print('begun')\n    time.sleep(60)"
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=usual) as process:
        try: assert select.select([process.stdout], [], [], 30)[0] and process.stdout.readline().strip() == b"begun"
        finally: process.kill()


def test_long_work_whose_output_nobody_reads_says_that_it_stopped():
    code = "import time; from sftdpo.cli import Compare, main\nCompare.__call__ = lambda self: [print(k) or time.sleep(0.1) for k in range(100)]\nmain(['compare'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert b"goes on from here" in process.stderr.read()
    assert process.returncode == 1


def test_it_is_installed_as_a_command():
    found = subprocess.run([Path(sys.executable).with_name("sftdpo"), "--help"], capture_output=True, text=True)
    assert found.returncode == 0 and "quickstart" in found.stdout


@pytest.mark.parametrize("words, told", [
    ("train --folds 5", "--folds 5 cannot be used: say too which of them judges, with --fold, from 1 to 5"),
    ("train --fold 5", "--fold 5 cannot be used: give --folds too, or leave it out"),
    ("compare --learning-rates.sft-full -1", "--learning-rates.sft-full -1.0 cannot be used: use a number above 0"),
    ("compare --cells 'sft ful dpo.beta' 0.3", "--cells 'sft ful dpo.beta' 'ful' cannot be used: did you mean 'full'?"),
    ("compare --cells 'sft full sft.beta' 0.3", "--cells 'sft.beta' cannot be used: it has no effect on SFT"),
    ("compare --sweep sft.beta 0.1,0.2", "--sweep 'sft.beta' cannot be used: it has no effect on SFT"),
    ("compare --epochs 3", "did you mean '--sft.epochs' or '--dpo.epochs'?"), ("compare --dpo.lr 1e-4", "did you mean '--dpo.learning-rate'?"),
    ("compare --model gpt2", "did you mean '--backbone'?"), ("generate bard --max-lines 0", "--max-lines 0 cannot be used: give 1 or more"),
    ("recommend ROWS --folds 1", "--folds 1 cannot be used: use a whole number from 2 up"), ("recommend ROWS --minutes 0", "--minutes 0.0 cannot be used: give more than 0"),
    ("recommend ROWS --reading.label lable", "--reading.label names the column 'lable', and the columns are ['text', 'label']: did you mean 'label'?")])
def test_messages_name_what_was_typed(words, told, tmp_path, capsys):
    "At 0fae5a8 these named a setting or an option that nobody typed, one stage of two, or nothing before torch was imported."
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(40)))
    with pytest.raises(SystemExit): main([word.replace("ROWS", str(tmp_path / "rows.csv")) for word in shlex.split(words)])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("text, told", [("", "is empty"), ("\n \n", "is empty"), ("# seeds: [0]\n\n", "holds only comments")])
def test_a_settings_file_without_settings_is_no_study(tmp_path, capsys, text, told):
    (tmp_path / "empty.yaml").write_text(text)
    with pytest.raises(SystemExit) as end: main(["plan", "--settings", str(tmp_path / "empty.yaml")])
    assert end.value.code == 2 and f"empty.yaml {told}: is it the right file?" in capsys.readouterr().err


@pytest.mark.parametrize("place, flag", [("a file/x/locks", "--out"), ("a file", "--data"), ("elsewhere", "")])
def test_an_error_of_the_system_names_the_option(tmp_path, place, flag):
    words = ["compare", "--data", f"{tmp_path}/a file", f"--out={tmp_path}/a file/x"]
    said = of_system(NotADirectoryError(20, "Not a directory", f"{tmp_path}/{place}"), words)
    assert said.startswith(flag) and "Not a directory" in said and said.endswith("give another folder") == (flag == "--out")
    assert of_system(OSError("a sentence of ours"), words) == "a sentence of ours"


def test_a_file_that_is_replaced_is_told(tmp_path, capsys):
    table = pd.DataFrame(dict(id=["1"], answer=["yes"]))
    for _ in range(2): write_and_tell(table, tmp_path / "answers.csv")
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("answers.csv") and second.endswith("answers.csv, in place of the file that was there")


@pytest.mark.parametrize("words, said", [
    (["plan", "--settings", "{study}"], r"--settings \S+ is a folder: did you mean \S+study.yaml\?"),
    (["report", "{study}", "--out", "{here}/x.pdf"], "the report is HTML: give a name that ends in .html"),
    (["compare", "--sweep", "sft.learning-rate", "fast", "--out", "{here}/x"], "sweep sft.learning_rate fast: sft.learning_rate = 'fast' cannot be used"),
    (["compare", "--sweep", "sft.learnin-rate", "1e-4", "--out", "{here}/x"], "sweep sft.learnin_rate 1e-4: there is no setting 'learnin_rate'"),
    (["recommend", "{file}", "{file}"], r"has no place here: sftdpo recommend DATA"),
    (["data", "check", "{file}", "--out", "/proc/nowhere"], r"--out /proc/nowhere cannot be written \(.*\): give another folder"),
    (["predict", "{models}", "{file}"], r"name one, such as \S+models/one")])
def test_errors_name_the_place_and_a_remedy_that_fits(words, said, repository, tmp_path, capsys):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"tea {i},{'ab'[i % 2]}\n" for i in range(60)))
    (tmp_path / "models/one/model").mkdir(parents=True)
    places = dict(study=repository / "nbs/study/results/smollm2-sizes", here=tmp_path, file=tmp_path / "a.csv", models=tmp_path / "models")
    with pytest.raises(SystemExit): main([word.format(**places) for word in words])
    told = capsys.readouterr()
    assert re.search(said, unbroken(told.err + told.out))


def test_what_cannot_be_written_is_found_before_the_work(tmp_path):
    # At a6f58f35 a folder that was there but could not be written in was found after all rows were answered.
    with pytest.raises(OSError, match=r"--out /proc/answers.csv cannot be written \(.*\): give a file in another folder"): output_file(Path("/proc/answers.csv"))
    assert output_file(tmp_path / "answers.csv") == tmp_path / "answers.csv" and not list(tmp_path.iterdir())


def test_steps_beside_epochs_are_noted():
    words = ["train", "--sft.epochs", "1", "--sft.steps", "50"]
    assert without_effect(parse(words), words) == ["--sft.steps has no effect: --sft.epochs says how long a stage is"]


def test_values_for_cells_that_no_run_has_are_noted():
    "At cb0b3cb1 nothing is said, and the cells train as if they had not been given."
    words = ["compare", "--recipes", "sft-dpo", "--sweep", "dpo.beta", "0.1,0.2", "--cells", "dpo lora dpo.learning_rate", "1e-4", "lora dpo.beta", "0.3", "sft-dpo lora.rank", "4"]
    words += ["sft-dpo full lora.alpha", "8"]
    assert without_effect(parse(words), words) == ["--cells 'dpo lora dpo.learning_rate' has no effect: the study has no such cell",
                                                   "--cells 'lora dpo.beta' has no effect: --sweep gives dpo.beta to every cell",
                                                   "--cells 'sft-dpo full lora.alpha' has no effect: the study has no such cell"]


def test_the_value_that_is_no_number_is_named():
    "At cb0b3cb1 it is said of the first pair."
    with pytest.raises(SettingsError, match="--cells 'dpo full dpo.beta' abc: give a number"):
        parse(["compare", "--cells", "sft lora sft.learning_rate", "1e-3", "dpo full dpo.beta", "abc"])


def test_a_full_disk_keeps_its_own_remedy():
    from sftdpo.engine.safe_files import FULL_DISK
    assert of_system(OSError(errno.ENOSPC, FULL_DISK, "full/a/policy"), ["train", "--out", "full/a"]).endswith("it goes on where it stopped")
