"What test_two_processes.py launches in two processes, and calls in one: stages on a tiny model, and how they went."
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tiny import tiny_model, tiny_tokenizer

from sftdpo.config import LoRA, Stage
from sftdpo.data import Row
from sftdpo.model import apply_tuning
from sftdpo.trainer import Watch, train_stage

BATCH = 8
CELLS = [(kind, tuning) for kind in ("sft", "dpo") for tuning in ("full", "lora")]
SIZE = 17  # two whole steps an epoch, and a last one of a single row: none is left for the second process


class Stop(Exception): pass


def pairs():
    random = np.random.default_rng(0)
    ids = lambda low, high: random.integers(1, 300, random.integers(low, high)).tolist()
    return [Row(f"row {i}", ids(2, 10), [ids(1, 7), ids(1, 7)]) for i in range(SIZE)]


def model_for(tuning):
    model = apply_tuning(tiny_model("gpt2", tiny_tokenizer()), tuning, LoRA(rank=4), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(len(name)))
    return model


def stage_of(kind): return Stage(kind, learning_rate=3e-3, epochs=2, batch_size=BATCH, micro_batch_size=2, precision="fp32", checkpoint_steps=2)


def train(kind, tuning, folder, stop=None):
    "Train a stage, or the part of it before a step, and keep what came out: from each process a file of its own."
    rows, model, begin = pairs(), model_for(tuning), Watch.on_step_begin
    if kind == "sft": rows = [Row(row.id, row.prompt, row.completions[:1]) for row in rows]
    def stop_there(self, args, state, *rest, **more):
        if state.global_step == stop: raise Stop
        begin(self, args, state, *rest, **more)
    Watch.on_step_begin = stop_there
    try: result = train_stage(model, rows, stage_of(kind), held_out=rows[:5], folder=folder / f"{kind}-{tuning}", progress=False)
    except Stop:
        left = {path.name for path in (folder / f"{kind}-{tuning}/checkpoints/checkpoint-2").iterdir()}
        assert {"complete.json", "trained.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"} < left, left
        assert sum(name.startswith("rng_state") for name in left) == PartialState().num_processes, left
        return
    finally: Watch.on_step_begin = begin
    history = result.history.drop(columns=["seconds", "elapsed"])
    if kind == "dpo": history.loc[history.reward_margin.abs() < 1e-5, "reward_accuracy"] = 0.5  # before the first change of weights: ties, up to rounding
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    torch.save(dict(columns=list(history), history=torch.tensor(history.to_numpy(float)), weights=weights, micro_batch=result.micro_batch_size),
               folder / f"{kind}-{tuning}-{PartialState().process_index}.pt")


def main(folder):
    "All four cells; the last one stopped on the way, and resumed."
    for kind, tuning in CELLS:
        if (kind, tuning) == ("dpo", "lora"): train(kind, tuning, folder, stop=3)
        train(kind, tuning, folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
    assert PartialState().num_processes == 2
    torch.distributed.destroy_process_group()
