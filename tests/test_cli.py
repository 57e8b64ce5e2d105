"The command line: options are the settings' fields, and mistakes are told in a line."
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sftdpo.cli import QUICKSTART, Compare, Generate, Train, main, parse
from sftdpo.config import Execution


def test_options_are_the_fields_of_the_settings():
    command = parse("compare --tasks sonnet --recipes sft dpo --seeds 0 1 --learning-rates.sft-full 1e-4 --dpo.beta 0.2 --sweep lora.rank 4,8 --out there".split())
    assert isinstance(command, Compare) and str(command.out) == "there"
    assert (command.study.recipes, command.study.seeds, command.study.dpo.beta) == (("sft", "dpo"), (0, 1), 0.2)
    assert command.study.sweep == {"lora.rank": [4, 8]} and command.study.dpo.kind == "dpo"
    assert isinstance(parse(["train", "--recipe", "sft-dpo", "--tuning", "lora"]), Train)
    assert parse(["generate", "bard", "--prompt", "Shall I"]) == Generate("bard", prompt="Shall I")
    assert parse("evaluate bard --tasks sonnet".split()).task == "sonnet"  # as messages of `compare` have it
    assert parse("submit bard pairs.csv out.csv --reading.unusable drop".split()).reading.unusable == "drop"


def test_a_settings_file_and_options_that_win_over_it(tmp_path):
    (tmp_path / "study.yaml").write_text("name: mine\nseeds: [1, 2]\ndpo: {beta: 0.3}\n")
    for given in (["--settings", str(tmp_path / "study.yaml")], [f"--settings={tmp_path / 'study.yaml'}"]):
        study = parse(["compare", *given, "--seeds", "7"]).study
        assert (study.name, study.seeds, study.dpo.beta) == ("mine", (7,), 0.3)


@pytest.mark.parametrize("words, told", [
    (["compare", "--train-size", "0"], "train_size = 0"),
    (["compare", "--settings", "nowhere.yaml"], "nowhere.yaml"),
    (["compare", "--tasks", "paraphrase", "--data", "nowhere/pairs.tsv"], "nowhere/pairs.tsv"),
    (["compare", "--backbone", "no/such-model"], "bard"),
    (["compare", "--train-size", "99999999"], "99999999"),
    (["evaluate", "no/such-model"], "bard"),
    (["train", "--recipe", "base"], "trains nothing"),
    (["plan", "--workers", "0"], "workers = 0"),
])
def test_mistakes_are_told_in_a_line(words, told, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")] if words[0] != "evaluate" else []
    with pytest.raises(SystemExit) as end: main(words + out)
    said = capsys.readouterr().err
    assert end.value.code == 2 and told in said and "Traceback" not in said


def test_quickstart_is_both_tasks_and_six_cells():
    assert [study.tasks for study in QUICKSTART] == [("paraphrase",), ("sonnet",)]
    for study in QUICKSTART: assert len(study.runs()) == 7 and study.backbone == "bard"


def test_a_quickstart_that_fails_says_so_and_tries_again(tmp_path, monkeypatch):
    given = []
    def compare(study, folder, execution=Execution()):
        given.append(execution)
        (folder / "failures").mkdir(parents=True)
        (folder / "failures/abc.txt").write_text("why")
    monkeypatch.setattr("sftdpo.study.compare", compare)
    monkeypatch.setattr("sftdpo.tables.print_tables", lambda results, folder: None)
    with pytest.raises(SystemExit) as end: main(["quickstart", "--out", str(tmp_path)])
    assert end.value.code == 1 and given == [Execution(retry_failed=True)] * 2


def test_a_format_that_cannot_be_written_is_told_before_anything_is_judged(monkeypatch, capsys):
    monkeypatch.setattr("sftdpo.study.evaluate_saved", lambda *given: pytest.fail("judged"))
    with pytest.raises(SystemExit) as end: main(["evaluate", "bard", "--out", "predictions.xlsx"])
    assert end.value.code == 2 and "'.xlsx'" in capsys.readouterr().err


def test_the_readme_makes_every_model_that_it_loads(repository):
    text = (repository / "README.md").read_text(encoding="utf-8")
    loaded = re.findall(r'from_pretrained\("(runs/\w+)/model"\)', text)
    assert loaded and all(re.search(f"sftdpo train .*--out {folder}\n", text) for folder in loaded)


def test_it_is_installed_as_a_command():
    found = subprocess.run([Path(sys.executable).with_name("sftdpo"), "--help"], capture_output=True, text=True)
    assert found.returncode == 0 and "quickstart" in found.stdout
