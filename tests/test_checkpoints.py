"A stage that is killed, runs out of memory or out of disk: it goes on, and ends as if nothing had been."
import errno
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from little import leftover
from test_trainer import DPO, SFT, Stop, answers, pair_rows, same, trained, tuned
from tiny import tiny_model

import sftdpo.engine.checkpoints
from sftdpo.batches import Scorer, score
from sftdpo.config import LoRA, identity
from sftdpo.data import Row
from sftdpo.engine.checkpoints import (
    last_checkpoint,
    mark_whole,
    policy_key,
    read_checkpoint,
    read_scores,
    rows_digest,
    stage_key,
    stored_scores,
)
from sftdpo.engine.folder import COMPLETE, StageFolder, read_record, step_of, write_record
from sftdpo.engine.safe_files import full_disk_named, remove_leftovers, written_whole
from sftdpo.model import apply_tuning, save_policy
from sftdpo.trainer import StageTrainer, Watch, train_stage

pytestmark = pytest.mark.filterwarnings("ignore:Out of memory")  # expected, and read where `pytest.warns` asks for them


@pytest.fixture
def written(tmp_path):
    "Writes checkpoints of two files, whole ones."
    def write(step, key="ours", mark=True):
        place = tmp_path / "checkpoints" / f"checkpoint-{step}"
        place.mkdir(parents=True)
        for name in ("trained.safetensors", "optimizer.pt"): (place / name).write_bytes(b"1234")
        if mark: mark_whole(place, key=key, elapsed=1.0)
        return place
    return write


def stop_at(step, monkeypatch):
    "Let a stage stop before a step."
    begin = Watch.on_step_begin
    def stop(self, args, state, *rest, **more):
        if state.global_step == step: raise Stop
        begin(self, args, state, *rest, **more)
    monkeypatch.setattr(Watch, "on_step_begin", stop)


# what is believed

def damaged(place, how):
    match how:
        case "no mark": (place / COMPLETE).unlink()
        case "an empty mark": (place / COMPLETE).write_text("")
        case "a short file": (place / "optimizer.pt").write_bytes(b"12")
        case "another byte": (place / "optimizer.pt").write_bytes(b"1334")
        case "a missing file": (place / "trained.safetensors").unlink()
        case "nothing in it":
            for path in place.iterdir(): path.unlink()


@pytest.mark.parametrize("how", ["no mark", "an empty mark", "a short file", "another byte", "a missing file", "nothing in it"])
def test_a_damaged_checkpoint_is_removed_and_the_older_one_used(how, written):
    older, newer = written(9), written(10)
    damaged(newer, how)
    assert last_checkpoint(older.parent, "ours")[0] == older and not newer.exists()


def flip(path, place=0.5):
    "Change one byte of a file."
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0xFF
    path.write_bytes(content)


def test_a_flipped_byte_is_named_and_the_stage_ends_as_if_nothing_had_been(tokenizer, tmp_path, monkeypatch):
    "One byte in the optimizer's moments: believed, it would change the weights without a word."
    rows, stage, expected = pair_rows(), DPO.replace(checkpoint_steps=1), tuned("gpt2", tokenizer, "full")
    train_stage(expected, rows, stage, progress=False)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Stop): train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=tmp_path, progress=False)
    path, found = tmp_path / "checkpoints/checkpoint-3/optimizer.pt", tuned("gpt2", tokenizer, "full")
    flip(path)
    with pytest.warns(UserWarning, match="optimizer.pt is damaged"): train_stage(found, rows, stage, folder=tmp_path, progress=False)
    assert same(trained(found), trained(expected))


def test_a_checkpoint_carries_the_key_that_it_is_given(tokenizer, tmp_path, monkeypatch):
    rows, stage = pair_rows(), DPO.replace(checkpoint_steps=1)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        with pytest.raises(Stop): train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=tmp_path, progress=False, key="of the study")
    assert read_checkpoint(tmp_path / "checkpoints/checkpoint-2")["key"] == "of the study"
    with pytest.warns(UserWarning, match="starts anew"): train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=tmp_path, progress=False, key="of another")


def test_what_lies_beside_checkpoints_is_removed(written):
    place = written(2)
    (place.parent / "tmpab12").mkdir()
    (place.parent / "checkpoint-x").write_text("no checkpoint")
    assert last_checkpoint(place.parent, "ours") == (place, read_checkpoint(place))
    assert list(place.parent.iterdir()) == [place]


def test_a_checkpoint_of_another_stage_is_said_and_removed(written):
    place = written(2, key="theirs")
    with pytest.warns(UserWarning, match="checkpoint-2 was written for other weights"): assert last_checkpoint(place.parent, "ours") == (None, {})
    assert not place.exists()


def test_other_settings_rows_seeds_and_weights_start_anew(tokenizer, tmp_path, monkeypatch):
    rows, stage = pair_rows(), DPO.replace(checkpoint_steps=1)
    def begin(seed=0, rows=rows, stage=stage, weights=0):
        model = apply_tuning(tiny_model("gpt2", tokenizer, seed=weights), "full")
        return train_stage(model, rows, stage, seed=seed, folder=tmp_path, progress=False).history.loss.dropna().iloc[0]
    for other in (dict(seed=1), dict(rows=rows[1:]), dict(stage=stage.replace(beta=0.2)), dict(weights=1)):
        with monkeypatch.context() as patch:
            stop_at(2, patch)
            with pytest.raises(Stop): begin()
        with pytest.warns(UserWarning, match="starts anew"): assert begin(**other) == pytest.approx(np.log(2), abs=1e-5)


def test_leftovers_of_a_kill_are_swept(tmp_path):
    (tmp_path / leftover("policy")).mkdir()
    (tmp_path / leftover("policy") / "model.safetensors").write_text("half")
    (tmp_path / "policy").mkdir()
    (tmp_path / leftover("policy", "old")).mkdir()
    (tmp_path / leftover("reference.npz")).write_text("half")
    for name in ("stage.json", "tmp-of-the-user", "a.part"): (tmp_path / name).write_text("whole")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.part", "policy", "stage.json", "tmp-of-the-user"]


# when they are written

def test_the_older_one_is_kept_until_the_newer_is_whole(tokenizer, tmp_path, monkeypatch):
    import sftdpo.trainer
    mark, seen = sftdpo.trainer.mark_whole, []
    def marked(place, **record):
        seen.append(sorted(path.name for path in place.parent.iterdir()))
        if place.name == "checkpoint-3": raise KeyboardInterrupt
        mark(place, **record)
    monkeypatch.setattr(sftdpo.trainer, "mark_whole", marked)
    with pytest.raises(KeyboardInterrupt): train_stage(tuned("gpt2", tokenizer, "full"), pair_rows(), DPO.replace(checkpoint_steps=1), folder=tmp_path, progress=False)
    assert seen == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("minutes, expected", [(1e-9, [1, 2, 3, 4, 5, 6]), (1e6, []), (0, [])])
def test_checkpoints_by_the_clock(minutes, expected, tokenizer, tmp_path, monkeypatch):
    saved, save = [], StageTrainer._save_checkpoint
    monkeypatch.setattr(StageTrainer, "_save_checkpoint", lambda self, *rest: saved.append(self.state.global_step) or save(self, *rest))
    train_stage(tuned("gpt2", tokenizer, "full"), pair_rows(), DPO.replace(checkpoint_minutes=minutes), folder=tmp_path, progress=False)
    assert saved == expected and not list(tmp_path.rglob("checkpoint-*"))


def test_the_clock_starts_again_with_each_checkpoint(tokenizer, tmp_path, monkeypatch):
    "Steps of 40 s by a made-up clock, a checkpoint after a minute: every second step."
    now, saved, save, begin = [0.0], [], StageTrainer._save_checkpoint, Watch.on_step_begin
    monkeypatch.setattr("sftdpo.trainer.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(StageTrainer, "_save_checkpoint", lambda self, *rest: saved.append(self.state.global_step) or save(self, *rest))
    def forty_seconds(self, *rest, **more):
        begin(self, *rest, **more)
        now[0] += 40
    monkeypatch.setattr(Watch, "on_step_begin", forty_seconds)
    result = train_stage(tuned("gpt2", tokenizer, "full"), pair_rows(), DPO.replace(checkpoint_minutes=1), folder=tmp_path, progress=False)
    assert saved == [2, 4, 6] and result.seconds == 240 and result.history.elapsed.dropna().iloc[-1] == 240


def test_a_checkpoint_can_stay_for_a_caller_who_has_yet_to_save(tokenizer, tmp_path):
    rows, stage = pair_rows(), DPO.replace(checkpoint_steps=6)
    train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=tmp_path, progress=False, keep_checkpoint=True)
    assert (tmp_path / "checkpoints/checkpoint-6").exists() and (tmp_path / "reference.npz").exists()
    StageFolder(tmp_path).remove_checkpoints()
    assert not list(tmp_path.iterdir())


# going on

def test_seconds_cover_all_attempts_and_no_pause(tokenizer, tmp_path, monkeypatch):
    rows, stage = pair_rows(), DPO.replace(checkpoint_steps=2)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(Stop): train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=tmp_path, progress=False)
    mark = tmp_path / "checkpoints/checkpoint-2" / COMPLETE
    record = read_record(mark)
    write_record(mark, record | {"elapsed": record["elapsed"] + 1000})  # as if the first attempt had taken so long
    began = time.perf_counter()
    result = train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=tmp_path, progress=False)
    elapsed = result.history.elapsed.tolist()
    assert 1000 + record["elapsed"] < result.seconds < 1000 + record["elapsed"] + time.perf_counter() - began
    assert elapsed == sorted(elapsed) and elapsed[1] < 100 and elapsed[-1] > 1000 and result.reference_seconds > 0


def test_all_random_states_go_on(tokenizer, tmp_path, monkeypatch):
    drawn, begin = {}, Watch.on_step_begin
    def draw(self, args, state, *rest, **more):
        begin(self, args, state, *rest, **more)
        drawn.setdefault(state.global_step, []).append((random.random(), np.random.rand(), torch.rand(1).item()))
    monkeypatch.setattr(Watch, "on_step_begin", draw)
    rows, stage = answers(pair_rows()), SFT.replace(checkpoint_steps=1)
    train_stage(tuned("gpt2", tokenizer, "full", dropout=0.1), rows, stage, progress=False)
    for at in (2, 3):
        with monkeypatch.context() as patch:
            stop_at(at, patch)
            with pytest.raises(Stop): train_stage(tuned("gpt2", tokenizer, "full", dropout=0.1), rows, stage, folder=tmp_path / str(at), progress=False)
        train_stage(tuned("gpt2", tokenizer, "full", dropout=0.1), rows, stage, folder=tmp_path / str(at), progress=False)
    assert len(drawn) == 6 and all(len(values) == 3 and len(set(values)) == 1 for values in drawn.values())


def whole(place):
    "Is this a checkpoint that can be gone on from?"
    try: return read_checkpoint(place)
    except OSError: return None


def finish(tuning, kind, rows, folder, tokenizer):
    model = apply_tuning(tiny_model("gpt2", tokenizer, dropout=0.1), tuning, LoRA(rank=4, dropout=0.1), seed=0)
    stage = (SFT if kind == "sft" else DPO).replace(checkpoint_steps=1, micro_batch_size=4)
    result = train_stage(model, rows, stage, held_out=rows[:4], folder=folder, progress=False)
    return trained(model), result.history.drop(columns=["seconds", "elapsed"])


@pytest.mark.parametrize("kind, tuning", [("sft", "full"), ("dpo", "lora")])
def test_killed_at_random_moments(kind, tuning, tokenizer, tmp_path):
    "SIGKILL while a checkpoint is begun, written, marked or the older one removed: the same weights and history in the end, to the bit."
    rows = pair_rows() if kind == "dpo" else answers(pair_rows())
    expected, expected_history = finish(tuning, kind, rows, None, tokenizer)
    chance, reached, checkpoints = random.Random(0), [], tmp_path / "checkpoints"
    def begun(): return max(map(step_of, checkpoints.glob("checkpoint-*")), default=0)
    for step in (0, 1, 1, 2, 3, 4, 5):
        child = multiprocessing.get_context("fork").Process(target=finish, args=(tuning, kind, rows, tmp_path, tokenizer))
        child.start()
        while child.is_alive() and begun() < step: time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.02 if step else 0.1))
        child.kill()
        child.join()
        if child.exitcode == 0: break  # on a busy machine the signal may come too late
        reached.append(max([step_of(path) for path in checkpoints.glob("*") if whole(path)], default=0))
    found, history = finish(tuning, kind, rows, tmp_path, tokenizer)
    assert reached == sorted(reached) and reached[-1] > 0  # no attempt loses what an earlier one had
    assert same(found, expected)
    assert history.equals(expected_history)


# reference scores

def test_a_stopped_scoring_pass_goes_on_and_ends_alike(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(sftdpo.engine.checkpoints, "SCORED_AT_ONCE", 8)
    rows, scorer = pair_rows(), Scorer(tiny_model("gpt2", tokenizer), "fp32")
    policy, path, scored = policy_key(scorer), tmp_path / "reference.npz", []
    expected, _ = stored_scores(None, scorer, rows)
    def progress(count):
        scored.append(count)
        if sum(scored) > 15: raise Stop
    with pytest.raises(Stop): stored_scores(path, scorer, rows, policy, progress)
    key = identity([policy, rows_digest(rows)])
    stored, seconds = read_scores(path, key)
    assert len(stored) == 8 and seconds > 0
    counts = []
    found, more = stored_scores(path, scorer, rows, policy, counts.append)
    assert np.array_equal(found, expected) and more > seconds and sum(counts) == 21 and counts[0] == 8
    assert np.array_equal(read_scores(path, key)[0], expected) and os.listdir(tmp_path) == ["reference.npz"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half of a file", "an npy file"])
def test_scores_that_cannot_be_read_are_made_again(content, tokenizer, tmp_path):
    rows, scorer, path = pair_rows(4), Scorer(tiny_model("gpt2", tokenizer), "fp32"), tmp_path / "reference.npz"
    if isinstance(content, bytes): path.write_bytes(content)
    else:
        with open(path, "wb") as file: np.save(file, np.zeros(3))
    assert np.array_equal(stored_scores(path, scorer, rows, policy_key(scorer))[0], score(scorer, rows))


def test_keys_tell_policies_rows_and_precisions_apart(tokenizer):
    model, rows = tiny_model("gpt2", tokenizer), pair_rows(3)
    policy = policy_key(Scorer(model, "fp32"))
    assert policy == policy_key(Scorer(tiny_model("gpt2", tokenizer), "fp32")) != policy_key(Scorer(model, "bf16"))
    assert rows_digest(rows) != rows_digest(rows[::-1]) != rows_digest(answers(rows)[::-1])
    assert stage_key({}, policy, seed=0) != stage_key({}, policy, seed=1)
    with torch.no_grad(): model.transformer.h[1].mlp.c_fc.bias[3] += 1e-6
    assert policy != policy_key(Scorer(model, "fp32"))


def test_keys_tell_adapters_of_another_scale_or_dropout_apart(tokenizer):
    "Their weights are the same."
    def key(dropout=0.0, **lora): return policy_key(Scorer(apply_tuning(tiny_model("gpt2", tokenizer, dropout), "lora", LoRA(rank=4, **lora)), "fp32"))
    keys = [key(), key(alpha=8.0), key(alpha=64.0), key(dropout=0.1)]
    assert key() == keys[0] and len(set(keys)) == 4
    llamas = [policy_key(Scorer(tiny_model("llama", tokenizer, dropout), "fp32")) for dropout in (0.0, 0.1)]
    assert llamas[0] != llamas[1]
    adapters = [policy_key(Scorer(apply_tuning(tiny_model("llama", tokenizer), "lora", LoRA(rank=4, dropout=dropout)), "fp32")) for dropout in (0.0, 0.1, 0.2)]
    assert len(set(adapters)) == 3


# memory

def in_memory(limit, monkeypatch, error=lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), scoring=False):
    "A machine on which no more than so many rows fit into memory, in training or also in scoring."
    forward = Scorer.forward
    def limited(self, input_ids, **batch):
        if len(input_ids) > limit and (self.training or scoring): raise error()
        return forward(self, input_ids, **batch)
    monkeypatch.setattr(Scorer, "forward", limited)


ERRORS = {"cuda": lambda: torch.OutOfMemoryError("CUDA out of memory."), "python": MemoryError,
          "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")}


@pytest.mark.parametrize("words, stage, limit, ends", [("cuda", SFT, 2, 2), ("python", DPO, 3, 2), ("cpu", DPO, 1, 1)])
def test_out_of_memory_halves_the_micro_batch(words, stage, limit, ends, tokenizer, monkeypatch):
    rows = pair_rows() if stage.kind == "dpo" else answers(pair_rows())
    expected, found = (tuned("gpt2", tokenizer, "full") for _ in range(2))
    by_hand = train_stage(expected, rows, stage.replace(micro_batch_size=ends), progress=False)
    in_memory(limit, monkeypatch, ERRORS[words])
    with pytest.warns(UserWarning, match="Out of memory in a step of 8 rows, with 8 rows in memory at once; going on with 4."):
        result = train_stage(found, rows, stage, progress=False)
    assert result.micro_batch_size == by_hand.micro_batch_size == ends
    assert same(trained(found), trained(expected))  # without dropout, even to the bit
    assert result.history.loss.tolist() == by_hand.history.loss.tolist()


def test_gradients_of_a_step_that_failed_are_thrown_away(tokenizer, monkeypatch):
    "Memory runs out in the second micro-batch of a step: the first one's gradients must not count twice."
    rows, expected, found = pair_rows(16), tuned("gpt2", tokenizer, "full"), tuned("gpt2", tokenizer, "full")
    stage = DPO.replace(epochs=1, batch_size=16)
    train_stage(expected, rows, stage.replace(micro_batch_size=4), progress=False)
    calls, forward = [], Scorer.forward
    def second_fails(self, input_ids, **batch):
        if self.training: calls.append(len(input_ids))
        if self.training and len(calls) == 2: raise MemoryError
        return forward(self, input_ids, **batch)
    monkeypatch.setattr(Scorer, "forward", second_fails)
    with pytest.warns(UserWarning, match="going on with 4"): train_stage(found, rows, stage.replace(micro_batch_size=8), progress=False)
    assert calls == [8, 8, 4, 4, 4, 4] and same(trained(found), trained(expected))


def test_memory_that_runs_out_in_the_backward_pass(tokenizer, monkeypatch):
    "By then some weights have gradients of a step that is done again."
    rows, expected, found = pair_rows(16), tuned("gpt2", tokenizer, "full"), tuned("gpt2", tokenizer, "full")
    train_stage(expected, rows, DPO.replace(micro_batch_size=4), progress=False)
    forward, failed = Scorer.forward, []
    def limited(self, input_ids, **batch):
        result = forward(self, input_ids, **batch)
        if len(input_ids) > 4 and self.training:
            def fail(gradient):
                handle.remove()
                failed.append(self.causal_model.transformer.h[1].mlp.c_fc.weight.grad.abs().max().item())
                raise MemoryError
            handle = self.causal_model.transformer.h[0].ln_1.weight.register_hook(fail)
        return result
    monkeypatch.setattr(Scorer, "forward", limited)
    with pytest.warns(UserWarning, match="going on with 4"): train_stage(found, rows, DPO, progress=False)
    assert len(failed) == 1 and failed[0] > 0 and same(trained(found), trained(expected))


def test_a_resumed_stage_keeps_its_smaller_micro_batch(tokenizer, tmp_path, monkeypatch):
    "Otherwise its sums would be rounded in another way than those of a stage that was not stopped."
    rows, stage = pair_rows(), DPO.replace(checkpoint_steps=1)
    with monkeypatch.context() as patch, pytest.warns(UserWarning):
        in_memory(2, patch)
        stop_at(3, patch)
        with pytest.raises(Stop): train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=tmp_path, progress=False)
    assert train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=tmp_path, progress=False).micro_batch_size == 2


def test_one_row_that_does_not_fit_ends_the_stage(tokenizer, monkeypatch):
    rows = answers(pair_rows()) + [Row("the long one", [5] * 40, [[7]])]
    in_memory(0, monkeypatch)
    message = r"^Out of memory with 1 row in memory at once; rows have up to 40 tokens\. Use LoRA .*, a smaller backbone, .*CUDA out of memory"
    with pytest.warns(UserWarning, match="going on with 1"), pytest.raises(MemoryError, match=message): train_stage(tuned("gpt2", tokenizer, "full"), rows, SFT, progress=False)


def test_an_optimizer_that_does_not_fit_says_so(tokenizer, monkeypatch):
    def fail(*rest, **more): raise torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(MemoryError, match="with 8 rows in memory at once.*Use a micro_batch_size below 8, LoRA instead"):
        train_stage(tuned("gpt2", tokenizer, "full"), answers(pair_rows()), SFT, progress=False)


def test_other_errors_pass_through(tokenizer, monkeypatch):
    in_memory(3, monkeypatch, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"): train_stage(tuned("gpt2", tokenizer, "full"), answers(pair_rows()), SFT, progress=False)


def test_scoring_halves_its_batches(tokenizer, monkeypatch):
    rows, model = pair_rows(50), tiny_model("gpt2", tokenizer)
    expected = score(model, rows, precision="fp32")
    in_memory(3, monkeypatch, scoring=True)
    with pytest.warns(UserWarning, match="while scoring rows of up to"): found = score(model, rows, precision="fp32")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    in_memory(0, monkeypatch, scoring=True)
    with pytest.warns(UserWarning), pytest.raises(MemoryError, match=r"row 'row \d+' of \d+ tokens alone"): score(model, rows, precision="fp32")


real = """
import re, resource, sys, warnings
import torch
from pathlib import Path
from transformers import GPT2Config, GPT2LMHeadModel
from sftdpo.batches import score
from sftdpo.config import Stage
from sftdpo.data import Row
from sftdpo.trainer import train_stage

def tiny():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0,
                                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))

torch.set_num_threads(1)
rows = [Row(str(i), [5 + i] * 200, [[7] * 20]) for i in range(128)]
stage = Stage("sft", learning_rate=1e-3, epochs=1, batch_size=128, precision="fp32")
expected, found = tiny(), tiny()
train_stage(expected, rows, stage.replace(micro_batch_size=8), progress=False)
size = int(re.search(r"VmSize:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20, size + 200 * 2**20))
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always")
    result = train_stage(found, rows, stage, progress=False)
    scores = score(found, rows, tokens_per_batch=10**6, precision="fp32")
assert 1 < result.micro_batch_size < 128, result.micro_batch_size
torch.testing.assert_close(list(found.parameters()), list(expected.parameters()), atol=1e-4, rtol=1e-3)
print("fits", scores.shape)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="address space is limited on Linux only")
def test_real_memory_that_runs_out():
    "200 MB of address space beyond what the process has: a step of 128 rows of 219 tokens needs several times that."
    done = subprocess.run([sys.executable, "-c", real], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and "fits (128, 1)" in done.stdout, done.stderr[-2000:]


# disk

@pytest.fixture
def small_disk(tmp_path):
    "A file system of 2 MB, where this user may mount one."
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", tmp_path], capture_output=True).returncode: pytest.skip("a small file system cannot be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)  # lazy: an error that pytest keeps may hold a file open


@pytest.mark.parametrize("step", [1, 2])
def test_a_full_disk_is_named_and_the_stage_goes_on(step, tokenizer, small_disk):
    "A checkpoint takes 1.2 MB: beside something else the first does not fit, and beside the first the second does not."
    rows, stage = pair_rows(), DPO.replace(checkpoint_steps=1)
    undisturbed, resumed = tuned("gpt2", tokenizer, "full"), tuned("gpt2", tokenizer, "full")
    train_stage(undisturbed, rows, stage, progress=False)
    (small_disk / "in the way").write_bytes(bytes(1_500_000 if step == 1 else 100_000))
    with pytest.raises(OSError, match="the disk is full; make space and give the same command again.*checkpoint-") as failed:
        train_stage(tuned("gpt2", tokenizer, "full"), rows, stage, folder=small_disk / "stage", progress=False)
    assert failed.value.errno == errno.ENOSPC
    assert [path.name for path in (small_disk / "stage/checkpoints").iterdir()] == ["checkpoint-1"][:step - 1]
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    train_stage(resumed, rows, stage, folder=small_disk / "stage", progress=False)
    assert same(trained(undisturbed), trained(resumed))


def test_a_policy_that_does_not_fit_leaves_nothing(tiny_gpt2, small_disk):
    (small_disk / "in the way").write_bytes(bytes(1_700_000))
    with pytest.raises(OSError, match=f"the disk is full; .*{re.escape(str(small_disk / 'policy'))}"): save_policy(*tiny_gpt2, small_disk / "policy")
    assert [path.name for path in small_disk.iterdir()] == ["in the way"]


def test_what_libraries_say_of_a_full_disk(small_disk):
    from safetensors.torch import save_file
    ways = dict(text=lambda path: path.write_text("a" * 4_000_000), numpy=lambda path: np.save(path, np.zeros(500_000)), torch=lambda path: torch.save(torch.zeros(1_000_000), path),
                safetensors=lambda path: save_file({"a": torch.zeros(1_000_000)}, path))
    for name, write in ways.items():
        path = small_disk / f"{name}.npy"
        with pytest.raises(OSError, match="the disk is full"), full_disk_named(path): write(path)
        path.unlink(missing_ok=True)


def test_a_full_disk_is_named_once_and_other_errors_not_at_all(tmp_path):
    with pytest.raises(OSError) as failed, full_disk_named("outer"), written_whole(tmp_path / "inner"): raise OSError(errno.ENOSPC, "No space left on device")
    assert failed.value.filename == str(tmp_path / "inner") and not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="a bug"), full_disk_named("outer"): raise RuntimeError("a bug")
