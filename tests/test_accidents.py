"""Kills between file operations, flipped bytes, and files that are emptied, cut or removed: the same command ends with what an undisturbed study ends with, or names the file and what to do."""
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
from itertools import zip_longest

import pandas as pd
import pytest
from little import steady
from test_trust import ended, words_of
from tiny import tiny_model

from sftdpo.cli import main
from sftdpo.engine.folder import StageFolder, StudyFolder
from sftdpo.engine.store import read_results
from sftdpo.model import save_policy

pytestmark = pytest.mark.filterwarnings("ignore:.*is damaged")  # a checkpoint, which is named and removed
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
VOLATILE = re.compile("second|memory|elapsed|load")  # what depends on the clock or on the machine
SEARCH = ("--search.trials", "3", "--search.seeds", "7", "--search.further", "0")


def in_a_child(words, folder, number=0, path="\0"):
    "Carry out a command in a child that kills itself just before a file operation, named by its number or its path; give its exit code and the operations it counted."
    reader, writer = os.pipe()
    if child := os.fork():
        os.close(writer)
        with open(reader) as told: counted = int(told.read() or 0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), counted
    code, count, prefix = 1, 0, f"{folder}/"
    def watch(event, args):
        nonlocal count
        if event not in OPERATIONS or not str(args[0]).startswith(prefix): return
        if event == "open" and isinstance(args[2], int) and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT): return  # only read
        count += 1
        if count == number or path in str(args[0]): os.kill(os.getpid(), signal.SIGKILL)
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        sys.addaudithook(watch)
        main([*words, str(folder)])
        code = 0
    finally:
        os.write(writer, str(count).encode())
        os._exit(code)


@pytest.fixture(scope="module", autouse=True)
def no_tables():
    "Tables on the screen take longer than all the rest, and change nothing in the folder."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sftdpo.tables.print_tables", lambda *rest: None)
        yield


@pytest.fixture(scope="module")
def study_of(tokenizer, tmp_path_factory):
    "The command line of a study without its folder; its folder when it is finished, and when it was killed in its DPO stage; the number of file operations. Made once."
    home, made = tmp_path_factory.mktemp("accidents"), {}
    pd.DataFrame(dict(text=[f"{word} {i}" for i in range(30) for word in ("late", "fine")], label=["no", "yes"] * 30)).to_csv(home / "tickets.csv", index=False)
    backbone = save_policy(tiny_model("gpt2", tokenizer, dropout=0.1), tokenizer, home / "backbone")
    def study(*more):
        if more in made: return made[more]
        *words, out, _ = words_of(home / "tickets.csv", backbone, "")
        words[words.index("sft")] = "sft-dpo"
        words += ["--recipes", "sft", "sft-dpo", "--train-size", "16", "--weights", "all", "--sft.checkpoint-steps", "1", "--dpo.checkpoint-steps", "1", *more, out]
        whole, stopped = home / f"whole{len(made)}", home / f"stopped{len(made)}"
        code, operations = in_a_child(words, whole)
        assert code == 0
        [dpo] = [place.name for place in StudyFolder(whole).stages.iterdir() if StudyFolder(whole).stage(place.name).pairs.exists()]
        code, _ = in_a_child(words, stopped, path=f"/{dpo}/checkpoints/checkpoint-2/.complete.json")
        assert code == -signal.SIGKILL
        made[more] = words, whole, stopped, operations
        return made[more]
    return study


def essence(folder):
    "What counts in a study's folder, by file: all but times, memory, locks and stages, which are given up in the end."
    def told(path):
        if path.suffix == ".parquet": return pd.read_parquet(path).to_csv()
        if path.name == "history.csv": return pd.read_csv(path).filter(regex=f"^(?!.*({VOLATILE.pattern}))").to_csv()
        if path.name == "results.csv": return steady(pd.read_csv(path)).to_csv()
        if path.name == "metrics.json": return str({name: value for name, value in json.loads(path.read_text()).items() if not VOLATILE.search(name)})
        if path.name in ("environment.json", "sftdpo.json", "README.md"): return "there"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not {"stages", "locks"} & set(path.relative_to(folder).parts)]
    return {str(path.relative_to(folder)): told(path) for path in files if str(path.relative_to(folder)) != "search/results.csv"}  # written now and then


def check_whole(folder, whole):
    "The same results, runs and weights as in an undisturbed study, and nothing left lying about."
    found, expected = essence(folder), essence(whole)
    differ = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    assert not differ, f"not as in an undisturbed study: {differ}"
    assert not [found for home in (StudyFolder(folder), StudyFolder(folder).trials) for name in home.finished_runs() if (found := home.run(name).damage())]
    left = [path for path in folder.rglob("*") if path.name.endswith((".part", ".old", ".by")) or path.name.startswith("checkpoint") or path.match("stages/*/policy")]
    assert not left and len(read_results(folder)), f"left lying about: {left}"


def recovers(words, folder, whole, capsys, hit=None):
    "The same command ends well; or it names the damaged file in one line and says to delete it, and ends well once that is done."
    code, told = ended([*words, folder], capsys)
    if code and hit:
        line = told.strip().splitlines()[-1]
        assert code == 2 and line.startswith("sftdpo: ") and str(hit) in line and "delete it" in line and "Traceback" not in told, f"exit code {code}: {told[-400:]}"
        hit.unlink()
        code, told = ended([*words, folder], capsys)
    assert code == 0 and "FAILED" not in told, f"exit code {code}: {told[-600:]}"
    check_whole(folder, whole)


def each_of(attacks, folder, attack):
    "Carry out attacks, each on its own copy of a folder; give what went wrong."
    wrong = []
    for one in attacks:
        try: attack(*one)
        except Exception as error: wrong.append(f"{[str(part) for part in one]}: {type(error).__name__} {str(error)[:700]}")
        except AssertionError as error: wrong.append(f"{[str(part) for part in one]}: {str(error)[:700]}")
        shutil.rmtree(folder, ignore_errors=True)
    return wrong


def test_killed_again_and_again(study_of, tmp_path, capsys):
    "The same folder each time: while a run, a checkpoint, a policy, a record and the results are written."
    words, whole, *_ = study_of()
    for place in ("/.metrics.json", "checkpoint-1/.complete.json", "checkpoint-2/trainer_state.json", "/.policy.", "/.stage.json", "/.sftdpo.json", "/.results.csv"):
        code, _ = in_a_child(words, tmp_path / "out", path=place)
        assert code == -signal.SIGKILL, place
    recovers(words, tmp_path / "out", whole, capsys)


def test_killed_while_the_checkpoints_of_a_closed_stage_are_removed(study_of, tmp_path, capsys, monkeypatch):
    "Nothing else would remove them, as the stage is done."
    words, whole, *_ = study_of()
    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "remove_checkpoints", lambda stage: os.kill(os.getpid(), signal.SIGKILL))
        code, _ = in_a_child(words, tmp_path / "out")
    assert code == -signal.SIGKILL and list(tmp_path.glob("out/stages/*/checkpoints"))
    recovers(words, tmp_path / "out", whole, capsys)


@pytest.mark.parametrize("number, more", [(2, ()), pytest.param(30, (), marks=pytest.mark.slow), pytest.param(10, SEARCH, marks=pytest.mark.slow)])
def test_killed_between_file_operations(number, more, study_of, tmp_path, capsys):
    words, whole, _, operations = study_of(*more)
    def attack(at):
        code, _ = in_a_child(words, tmp_path / "out", number=at)
        assert code == -signal.SIGKILL
        recovers(words, tmp_path / "out", whole, capsys)
    moments = [(1 + (operations - 1) * i // (number + 1),) for i in range(1, number + 1)]  # not the last: a slow study writes its results on the way, and has more
    assert not (wrong := each_of(moments, tmp_path / "out", attack)), "\n".join(wrong)


def by_kind(*folders):
    "The files of studies: one of each kind, then a second one of each kind, ...; names of runs, stages and checkpoints make no kind. Weights of finished runs are checked where they are loaded."
    kinds = {}
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and not path.match("runs/*/policy/*")):
            name = path.relative_to(folder)
            kinds.setdefault(re.sub(r"[0-9a-f]{10,12}|labels-[^/]*|checkpoint-\d", "*", str(name)), []).append((folder, name))
    return [one for turn in zip_longest(*kinds.values()) for one in turn if one], len(kinds)


@pytest.mark.parametrize("number", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_a_flipped_byte(number, study_of, tmp_path, capsys):
    words, whole, stopped, _ = study_of()
    chance, (files, kinds) = random.Random(0), by_kind(stopped, whole)
    def attack(folder, name, place, mask):
        hit = shutil.copytree(folder, tmp_path / "out") / name
        content = bytearray(hit.read_bytes())
        content[place] ^= mask
        hit.write_bytes(content)
        recovers(words, tmp_path / "out", whole, capsys, hit)
    chosen = files[:kinds:-(-kinds // number)] if number < kinds else (files * number)[:number]
    attacks = [(folder, name, chance.randrange((folder / name).stat().st_size), chance.randrange(1, 256)) for folder, name in chosen]
    assert not (wrong := each_of(attacks, tmp_path / "out", attack)), "\n".join(wrong)


@pytest.mark.parametrize("every, more", [(20, ()), pytest.param(1, (), marks=pytest.mark.slow), pytest.param(4, SEARCH, marks=pytest.mark.slow)])
def test_a_file_is_emptied_cut_or_removed(every, more, study_of, tmp_path, capsys):
    words, whole, stopped, _ = study_of(*more)
    def attack(folder, name, how):
        hit = shutil.copytree(folder, tmp_path / "out") / name
        if how == "removed": hit.unlink()
        else: os.truncate(hit, 0 if how == "emptied" else hit.stat().st_size * 2 // 3)
        recovers(words, tmp_path / "out", whole, capsys, hit if hit.exists() else None)
    files, kinds = by_kind(stopped, whole)
    attacks = [(folder, name, how) for folder, name in files[:kinds] for how in ("emptied", "cut", "removed")][::every]
    assert not (wrong := each_of(attacks, tmp_path / "out", attack)), "\n".join(wrong)


def test_a_flipped_byte_in_a_finished_model_is_named(study_of, tmp_path, capsys):
    "Weights, tokenizer, settings and task: whoever loads the model is told; compare does not read them again."
    _, whole, *_ = study_of()
    run = next(name for name in StudyFolder(whole).finished_runs() if "sft-dpo" in name)
    policy, chance = StudyFolder(whole).run(run).policy, random.Random(0)
    for name in sorted(path.name for path in policy.iterdir() if path.name not in ("README.md", "sftdpo.json")):
        hit = shutil.copytree(policy, tmp_path / name) / name
        content = bytearray(hit.read_bytes())
        content[chance.randrange(len(content) // 4, len(content))] ^= chance.randrange(1, 256)
        hit.write_bytes(content)
        code, told = ended(["generate", hit.parent, "--prompt", "late", "--sampling.max-new-tokens", "2"], capsys)
        assert code == 2 and str(hit) in told and "again" in told and "Traceback" not in told, f"{name}: {told[-300:]}"


def test_a_finished_model_without_its_task_is_named(study_of, tmp_path, capsys):
    "Whoever asks the model is told, and compare trains it again."
    words, whole, *_ = study_of()
    run = next(name for name in StudyFolder(whole).finished_runs() if "sft-dpo" in name)
    policy = StudyFolder(shutil.copytree(whole, tmp_path / "out")).run(run).policy
    hit, tickets = policy / "task.json", words[words.index("--data") + 1]
    hit.unlink()
    for asked in (["generate", policy, "--prompt", "late"], ["evaluate", policy, "--data", tickets], ["predict", policy, tickets, "--out", tmp_path / "answers.csv"]):
        code, told = ended(asked, capsys)
        assert code == 2 and f"{hit} is " in told and "not there" in told and "again" in told and "Traceback" not in told, f"{asked[0]}: {told[-300:]}"
    code, told = ended([*words, tmp_path / "out"], capsys)
    assert code == 0 and f"{hit} is damaged (it is not there)" in told, told[-600:]
    check_whole(tmp_path / "out", whole)
