"""Judge what `sftdpo recommend` chose once more, beside the best of every way (`recommend_grid.py`). Both are trained on all rows of the file, with some
seeds, and judged on the same fresh rows; and both are trained again in the folds that chose them, with other seeds. What each reaches is written to OUT
as CSV, with what is reached without training."""
import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
from recommend_grid import means_in, run_of

from sftdpo.config import Reading, Run, Stage, Study, from_dict, seed_in_fold
from sftdpo.engine.folder import StudyFolder
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.safe_files import read_json
from sftdpo.engine.store import gather, read_settings
from sftdpo.recommend import dealt, finish_ways, pool_of, reached_without, rows_of_file, runs_at_once
from sftdpo.study import claim_folder


def judged_on(loaded, fresh):
    "The data of a file, judged on those rows of another that it does not hold."
    if (loaded.verbalizers, loaded.intake.labels) != (fresh.verbalizers, fresh.intake.labels): raise ValueError("The two files have different labels.")
    rows = pool_of(loaded)
    known = {e.prompt for e in rows}
    return replace(loaded, train=rows, validation=[], test=[e for e in pool_of(fresh) if e.prompt not in known], foldable=False)


def ways_in(folder, metric):
    "What each way reached in a folder, on average over its runs, and one of these runs."
    results = gather(folder)
    results = results[results["metric"] == metric].merge(pd.read_csv(StudyFolder(folder).planned, keep_default_na=False)[["run", "way"]].drop_duplicates(), on="run")
    return results[results["way"] != ""].groupby("way").agg(value=("value", "mean"), run=("run", "first"))


def run_in(folder, name): return from_dict(Run, read_settings(folder, name))


def reached(results, inputs, plans, metric):
    "What each way reached with each seed, on average over its folds."
    values = results[results["metric"] == metric.name].set_index("run")["value"]
    lines = [dict(way=way, seed=run.seed, fold=run.fold, value=values[inputs.of(run).name]) for way, some in plans.items() for run in some]
    return pd.DataFrame(lines).assign(turn=lambda one: one.groupby(["way", "fold"]).cumcount()).groupby(["way", "turn"], sort=False, as_index=False)["value"].mean()


def trained(inputs, home, study, plans, metric):
    "Train and judge the runs of some ways in a folder: what is reached, and all results."
    claim_folder(home.path, study)
    finish_ways(home, inputs, plans, runs_at_once(inputs, "bard", max(map(len, plans.values()))), print)
    results = gather(home)
    return reached(results, inputs, plans, metric), results


def main(data, fresh, walk, grid, out, folder, again=None, seeds=5, folds=3):
    "Train and judge what was recommended, and the best of all ways."
    quiet, reading = (lambda words: None), Reading(unusable="drop")
    loaded, reading = rows_of_file(data, None, "bard", reading, quiet)
    both = judged_on(loaded, rows_of_file(fresh, loaded.task, "bard", reading, quiet)[0])
    metric = loaded.record.primary
    chosen, tried = read_json(Path(walk) / "recommendation.json")["way"], ways_in(walk, metric.name)
    runs = {"recommended": run_in(walk, tried.loc[chosen, "run"])} if chosen else {}
    means, start = means_in(grid), run_in(walk, tried["run"].iloc[0])
    start = start.replace(**{kind: Stage(kind, evaluations=0, precision=start.sft.precision) for kind in ("sft", "dpo")})
    best = (means_in(again) if again else means).idxmax()
    runs["best of all ways"] = run_of(best, means, start, len(dealt(loaded, folds, 1).train))
    study = Study("fresh", tasks=(loaded.task,), backbone="bard", data=str(data), reading=reading, recipes=("sft", "dpo", "sft-dpo"))
    on_all = {name: [run.replace(folds=0, fold=0, seed=seed) for seed in range(seeds)] for name, run in runs.items()}
    new, results = trained(Inputs(lambda *_: both), StudyFolder(folder), study, on_all, metric)
    in_folds = {name: [run.replace(folds=folds, fold=fold, seed=seed_in_fold(seed, fold)) for fold in range(1, folds + 1) for seed in range(1, seeds + 1)]
                for name, run in runs.items()}
    refolded, _ = trained(Inputs(lambda task, data, reading, folds, fold: dealt(loaded, folds, fold)), StudyFolder(f"{folder}-again"), study, in_folds, metric)
    lines = [new.assign(rows=len(both.test), judged="on new rows"), refolded.assign(rows=len(pool_of(loaded)), judged="in the folds"),
             pd.DataFrame([dict(way=name, turn=0, value=value, rows=len(both.test), judged="on new rows")
                           for name, value in reached_without(results).items()])]
    pd.concat(lines).assign(metric=metric.name).to_csv(out, index=False, float_format="%.5g")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="the file that `sftdpo recommend` read")
    parser.add_argument("fresh", help="other rows like its own")
    parser.add_argument("walk", help="folder of `sftdpo recommend`")
    parser.add_argument("grid", help="CSV that `recommend_grid.py` wrote")
    parser.add_argument("out", type=Path, help="CSV for what each way reached")
    parser.add_argument("--again", type=Path, help="CSV of its best ways, trained in other folds: the best of these is taken")
    parser.add_argument("--folder", default="runs/fresh", help="folder for the runs (default: runs/fresh)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each way (default: 5)")
    main(**vars(parser.parse_args()))
