"""Train on a file's rows in every way, in the folds of `sftdpo recommend`, to see whether that command finds one of the best: SFT, DPO and
SFT then DPO, full fine-tuning and LoRA, with 1, 3, 10 and 30 epochs and three learning rates. It takes half an hour on two cores for 300 rows.

DPO after SFT starts from the best SFT of the same number of epochs. What each way reached in each fold is written to OUT as CSV.
Stopped, it goes on when it is called again. With --again, only the best ways of an earlier OUT are trained."""
import argparse
import math
import time
from pathlib import Path

import pandas as pd

from sftdpo.config import Reading, Run
from sftdpo.engine.folder import StudyFolder
from sftdpo.recommend import begin_trials, dealt, rows_of_file, way_of, with_rate

WAY = ["recipe", "tuning", "epochs", "learning_rate"]


def means_in(file): return pd.read_csv(file).groupby(WAY, sort=False)["value"].mean()


def run_of(way, means, start, rows):
    "The run of a way; DPO after SFT starts from the best SFT of as many epochs."
    recipe, tuning, epochs, rate = way
    rates = {recipe.rpartition("-")[2]: rate}
    if recipe == "sft-dpo": rates["sft"] = means.sort_index()["sft", tuning, epochs].idxmax()
    run = start.replace(recipe=recipe, tuning=tuning).resolved(rows)
    return run.replace(**{kind: getattr(run, kind).replace(epochs=epochs, learning_rate=rate) for kind, rate in rates.items()})


def lines_of(run, trials):
    "What a run reached in each fold."
    table = next(found for name, found in trials.tables.items() if trials.runs[name] == run)
    return [dict(zip(WAY, (run.recipe, run.tuning, run.stages[-1].epochs, run.stages[-1].learning_rate)), fold=fold, rows=int((table["fold"] == fold).sum()),
                 metric=trials.metric.name, value=value) for fold, value in table.groupby("fold")["value"].mean().items()]


def main(data, out, folder, task=None, again=None, best=12, folds=3, epochs=(1, 3, 10, 30), rates=(1 / 3, 1, 3)):
    "Train the grid on a file, or the best ways of an earlier one, and write what each way reached."
    loaded, reading = rows_of_file(data, task, "bard", Reading(unusable="drop"), print)
    start = Run(task=loaded.task, backbone="bard", data=str(data), reading=reading)
    trials, start = begin_trials(loaded, start, StudyFolder(folder), folds, time.monotonic() + 1e6, print)
    trials.give_up = math.inf
    rows, lines = len(dealt(loaded, folds, 1).train), []
    if again:
        means = means_in(again)
        runs = [run_of(way, means, start, rows) for way in means.nlargest(best).index]
        trials.attempt({way_of(run): run for run in runs})
        return pd.DataFrame([line for run in runs for line in lines_of(run, trials)]).to_csv(out, index=False, float_format="%.5g")
    def way(recipe, tuning, number, kind, rate, **stage):
        run = start.replace(recipe=recipe, tuning=tuning).resolved(rows)
        for name in ("sft", "dpo"): run = run.replace(**{name: getattr(run, name).replace(epochs=number)})
        return with_rate(run.replace(**stage), kind, rate)
    for number in epochs:
        first = [way(recipe, tuning, number, recipe, rate) for recipe in ("sft", "dpo") for tuning in ("full", "lora") for rate in rates]
        trials.attempt({way_of(run): run for run in first})
        best = {tuning: max((run for run in first if run.recipe == "sft" and run.tuning == tuning), key=trials.score) for tuning in ("full", "lora")}
        second = [way("sft-dpo", tuning, number, "dpo", rate, sft=best[tuning].sft) for tuning in best for rate in rates]
        trials.attempt({way_of(run): run for run in second})
        for run in first + second: lines += lines_of(run, trials)
        pd.DataFrame(lines).to_csv(out, index=False, float_format="%.5g")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="a file that `sftdpo recommend` reads")
    parser.add_argument("out", type=Path, help="CSV for what each way reached")
    parser.add_argument("--folder", default="runs/grid", help="folder for the runs (default: runs/grid)")
    parser.add_argument("--task", help="task of the data (default: the one that its columns fit)")
    parser.add_argument("--again", type=Path, help="an earlier OUT, whose best ways are trained")
    parser.add_argument("--best", type=int, default=12, help="how many of them (default: 12)")
    main(**vars(parser.parse_args()))
