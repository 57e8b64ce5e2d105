"""Bars, trackers, devices and files: what differs with the place where training runs."""
import csv
import io
import os
import sys
from types import SimpleNamespace
from typing import get_args

import pytest

from sftdpo.reading.files import Problem, keep, write_problems


class Terminal(io.StringIO):
    def isatty(self): return True


@pytest.mark.parametrize("stream, drawn", [(Terminal, True), (io.StringIO, False)])
def test_bars_are_drawn_in_a_terminal_and_not_in_a_log_file(stream, drawn, monkeypatch):
    from sftdpo.trainer import progress_bar
    monkeypatch.setattr(sys, "stderr", stream())
    with progress_bar(total=3, desc="some stage", mininterval=0) as bar: bar.update(2)
    assert ("some stage" in sys.stderr.getvalue()) == drawn
    with progress_bar(progress=False, total=3, desc="another") as bar: bar.update(2)
    assert "another" not in sys.stderr.getvalue()


def test_a_comparison_draws_no_bar_into_a_log_file_and_says_its_lines(backbone, tmp_path, monkeypatch, capsys):
    from little import compare, small
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    compare(small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",)), tmp_path / "out")
    said = sys.stderr.getvalue()
    assert "ex/s" not in said and "%|" not in said and "[1/" in capsys.readouterr().out


# -- files are written whole or not at all

def full(*words): raise OSError(28, "No space left on device")


def test_a_list_of_problems_stays_whole_if_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "unusable.csv"
    write_problems([Problem("a.csv", 3, "the label is 'ü', none of 0, 1", "x,\nü")], path)
    assert list(csv.reader(path.open(encoding="utf-8", newline="")))[1] == ["a.csv", "3", "the label is 'ü', none of 0, 1", "x,\nü"]
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError): write_problems([Problem("b.csv", 1, "other")] * 1000, path)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["unusable.csv"]


def test_what_is_kept_of_an_object_stays_whole_if_writing_fails(tmp_path, monkeypatch):
    import pyarrow.parquet as parquet
    home = keep([dict(prompt="a", completion="b")], tmp_path / "kept")
    before = (home / "train.parquet").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError): keep([dict(prompt="c", completion="d")] * 1000, home)
    assert (home / "train.parquet").read_bytes() == before and parquet.read_table(home / "train.parquet").num_rows == 1
    assert [one.name for one in home.iterdir()] == ["train.parquet"]


# -- trackers

def test_a_tracker_without_its_package_is_refused_before_training(backbone, tmp_path, capsys):
    import importlib.util

    from sftdpo.cli import main
    from sftdpo.config import Tracker
    absent = next((name for name in get_args(Tracker) if importlib.util.find_spec(name) is None), None)
    if absent is None: pytest.skip("every tracker is installed here")
    with pytest.raises(SystemExit) as left: main(["compare", "--backbone", backbone, "--report-to", absent, "--out", str(tmp_path / "out")])
    assert left.value.code == 2 and not (tmp_path / "out").exists()
    assert f"--report-to {absent} cannot be used: the package {absent} is not installed: pip install {absent}, or leave it out" in capsys.readouterr().err


def test_every_stage_is_reported_under_its_study_cell_and_seed(backbone, tmp_path, monkeypatch):
    "A made-up integration in TensorBoard's place, as `transformers.Trainer` calls it."
    from little import compare, small
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    from sftdpo.config import Execution
    (tmp_path / "packages/tensorboard").mkdir(parents=True)
    (tmp_path / "packages/tensorboard/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    told = {}
    class Noted(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            place = os.environ["TENSORBOARD_LOGGING_DIR"], os.environ["WANDB_RUN_GROUP"], args.project
            told.setdefault(args.run_name, []).append((place, logs))
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Noted)
    study = small(backbone, tasks=("paraphrase",), recipes=("sft-dpo",), tunings=("full",), sweep={"dpo.beta": [0.1, 0.2]})
    compare(study, tmp_path / "out", execution=Execution(report_to=("tensorboard",)))
    # at eb47e42f the two values of beta had one name, and their curves were in one folder
    assert sorted(name.rpartition(" ")[0] for name in told) == sorted(f"paraphrase sft-dpo full seed {seed} {kind}" for seed in study.seeds for kind in ("sft", "dpo", "dpo"))
    for name, lines in told.items():
        (folder, group, project), _ = lines[0]
        assert folder == str(tmp_path / "out/tensorboard" / name.replace(" ", "-")) and group == project == study.name
        assert any("loss" in logs for _, logs in lines) and ("reward_margin" in {key for _, logs in lines for key in logs}) == (name.split()[-2] == "dpo")
    assert "SFTDPO_REPORT_TO" not in os.environ and "TENSORBOARD_LOGGING_DIR" not in os.environ


def test_tensorboard_itself_writes_its_files(backbone, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install tensorboard")
    from little import compare, small

    from sftdpo.config import Execution
    compare(small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",)), tmp_path / "out", execution=Execution(report_to=("tensorboard",)))
    assert list((tmp_path / "out/tensorboard").glob("paraphrase-sft-full-seed-0-sft-*/events.*"))


def test_trackers_are_for_the_local_executor():
    from sftdpo.config import Execution, SettingsError
    with pytest.raises(SettingsError, match="local executor"): Execution(report_to=("wandb",), executor="ray")


# -- the Hub, Apple's GPUs, other systems

def test_a_saved_model_goes_to_the_hub_with_its_card(backbone, tmp_path, monkeypatch, capsys):
    "The Hub's client is a made-up one, which takes a folder as the real one does."
    from sftdpo.cli import main
    from sftdpo.engine import export
    home, sent = tmp_path / "one", []
    home.mkdir()
    (home / "model").symlink_to(backbone)
    class Api:
        def create_repo(self, repository, private, exist_ok): return f"https://huggingface.co/{repository}?private={private}"
        def model_info(self, repository): return SimpleNamespace(private=repository != "me/shown")
        def upload_folder(self, folder_path, repo_id, commit_message): sent.append((repo_id, {path.name for path in folder_path.iterdir()}))
    monkeypatch.setattr(export, "HfApi", Api)
    monkeypatch.setattr(export.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(export, "hub_reachable", lambda: True)
    with pytest.raises(SystemExit): main(["push", str(home), "me/mine"])
    assert "holds no model card, README.md" in capsys.readouterr().err and not sent
    (home / "model" / "README.md").write_text("---\nbase_model: bard\n---\n")
    with pytest.raises(SystemExit): main(["push", str(home), "mine"])
    assert "'mine' is no repository of the Hub: write OWNER/NAME" in capsys.readouterr().err
    main(["push", str(home), "me/mine"])
    assert capsys.readouterr().out == "https://huggingface.co/me/mine?private=True\n"
    (repository, files), = sent
    assert repository == "me/mine" and {"README.md", "model.safetensors", "tokenizer.json", "generation_config.json"} <= files
    with pytest.raises(SystemExit): main(["push", str(home), "me/shown"])  # the real client ignores `private` where the repository exists
    assert "me/shown: it is there already, and public; name another, or add --no-private" in capsys.readouterr().err and len(sent) == 1
    main(["push", str(home), "me/shown", "--no-private"])
    assert len(sent) == 2
    monkeypatch.setattr(export, "hub_reachable", lambda: False)
    with pytest.raises(SystemExit): main(["push", str(home), "me/mine"])
    assert "cannot be reached: check the network, and push again" in capsys.readouterr().err and len(sent) == 2
    monkeypatch.setattr(export.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit): main(["push", str(home), "me/mine"])
    assert "HF_HUB_OFFLINE=1 forbids the network: unset it" in capsys.readouterr().err


def test_apples_gpu_is_used_in_single_precision(monkeypatch):
    import torch

    from sftdpo import trainer
    from sftdpo.batches import best_precision
    from sftdpo.engine.inputs import device
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device() == "mps" and best_precision("mps") == "fp32"
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3_000_000_000)
    assert trainer.peak_memory_gb() == 3
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device() == "cpu"


def test_memory_is_unknown_where_no_system_call_tells_it(monkeypatch):
    import math

    from sftdpo import trainer
    monkeypatch.setattr(trainer, "resource", None)
    monkeypatch.setattr(trainer.Path, "exists", lambda path: False)
    monkeypatch.setattr(trainer.torch.cuda, "is_available", lambda: False)
    assert math.isnan(trainer.peak_memory_gb())


# -- the memory that a plan tells

def test_a_plan_says_what_to_lower_where_memory_does_not_suffice(backbone, tmp_path, monkeypatch):
    import re

    from little import little_inputs, plan, small

    from sftdpo.engine import timing
    study = small(backbone, tasks=("paraphrase",), recipes=("sft", "dpo"))
    monkeypatch.setattr(timing, "free_memory", lambda: 64_000_000_000)
    inputs = little_inputs()
    found = plan(study, tmp_path / "out", inputs=inputs, measure=False)
    assert re.search(r"memory: about 0\.7 GB: .* free: 64\.0 GB$", str(found), re.MULTILINE) and "NOT ENOUGH" not in str(found) and found.activations > 0
    monkeypatch.setattr(timing, "free_memory", lambda: 100_000_000)
    said = str(plan(study, tmp_path / "out", measure=False, workers=2))
    assert "NOT ENOUGH: use fewer --workers" in said and "--tunings lora" in said and "a smaller --backbone" in said
    from dataclasses import replace
    longer = [replace(node.inputs, data=replace(node.inputs.data, train=[replace(e, prompt=e.prompt * 3) for e in node.inputs.data.train])) for node in found.nodes if node.stage]
    assert timing.activation_bytes(longer[0], found.nodes[-1].stage) > 2 * timing.activation_bytes(next(n for n in found.nodes if n.stage).inputs, found.nodes[-1].stage)
    stage = found.nodes[-1].stage
    one, all_of_them = (timing.activation_bytes(longer[0], some) for some in (stage.replace(micro_batch_size=1), stage))
    assert stage.batch_size * one / 2 < all_of_them <= stage.batch_size * one
    rows = longer[0].data.train
    single = replace(longer[0], data=replace(longer[0].data, train=[replace(rows[0], prompt=rows[0].prompt * 50), *rows[1:]]))
    alone = timing.activation_bytes(single, stage.replace(micro_batch_size=1))
    assert alone < timing.activation_bytes(single, stage) < 2 * alone, "one row far longer than the others counts once"
    monkeypatch.setattr(timing, "free_memory", lambda: 64_000_000_000)
    assert timing.memory_note(found.nodes, inputs) == ""
    monkeypatch.setattr(timing, "free_memory", lambda: 100_000_000)
    assert "NOT ENOUGH" in timing.memory_note(found.nodes, inputs), "what `compare` says before it trains"
    assert timing.activation_bytes(longer[0], stage.replace(gradient_checkpointing=True)) < timing.activation_bytes(longer[0], stage)
    monkeypatch.setattr(timing, "free_memory", lambda: None)
    assert "free:" not in str(plan(study, tmp_path / "out", measure=False))
