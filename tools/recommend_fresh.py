"""Judge what `sftdpo recommend` chose on rows that were made after it, beside the best of every way (`recommend_grid.py`): both are trained on all
rows of the file, with some seeds, and judged on the same fresh rows. What each reaches is written to OUT as CSV, with what is reached without training."""
import argparse
from pathlib import Path

import pandas as pd

from sftdpo.config import Reading, Run, Study, from_dict
from sftdpo.data import TaskData
from sftdpo.engine.folder import StudyFolder
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.safe_files import read_json
from sftdpo.engine.store import gather, read_settings
from sftdpo.measures.baselines import baselines
from sftdpo.recommend import dealt, finish_ways, pool_of, rows_of_file, runs_at_once, vars_of
from sftdpo.study import claim_folder
from sftdpo.tables import baselines_of


def judged_on(loaded, fresh):
    "The data of a file, judged on those rows of another that it does not hold."
    if (loaded.verbalizers, loaded.intake.labels) != (fresh.verbalizers, fresh.intake.labels): raise ValueError("The two files have different labels.")
    rows = pool_of(loaded)
    known = {e.prompt for e in rows}
    return TaskData(**{**vars_of(loaded), "train": rows, "validation": rows[:1], "test": [e for e in pool_of(fresh) if e.prompt not in known]})


def ways_in(folder, metric):
    "What each way reached in a folder, on average over its runs, and one of these runs."
    results = gather(folder)
    results = results[results["metric"] == metric].merge(pd.read_csv(StudyFolder(folder).planned, keep_default_na=False)[["run", "way"]].drop_duplicates(), on="run")
    return results[results["way"] != ""].groupby("way").agg(value=("value", "mean"), run=("run", "first"))


def reached_without(results, both, loaded):
    "What the base model and the baselines reach; a tenth of the rows choose the strength of TF-IDF's classifier, as they train no model."
    parts, base = dealt(loaded, 10, 1), results[results["recipe"] == "base"].copy()
    held = TaskData(**{**vars_of(both), "train": [*parts.train, *parts.validation], "validation": parts.test})
    for name, value in baselines(held, held.test).items() if both.verbalizers else (): base.loc[base["metric"] == f"baseline_{name}", "value"] = value
    return {"the base model": base.loc[base["metric"] == both.record.primary.name, "value"].mean()} | baselines_of(base)


def run_in(folder, name): return from_dict(Run, read_settings(folder, name))


def main(data, fresh, walk, grid, out, folder, seeds=5):
    "Train and judge what was recommended, and the best of all ways."
    quiet, reading = (lambda words: None), Reading(unusable="drop")
    loaded, reading = rows_of_file(data, None, "bard", reading, quiet)
    both = judged_on(loaded, rows_of_file(fresh, loaded.task, "bard", reading, quiet)[0])
    metric = loaded.record.primary
    chosen, tried, every = read_json(Path(walk) / "recommendation.json")["way"], ways_in(walk, metric.name), ways_in(grid, metric.name)
    runs = {"recommended": run_in(walk, tried.loc[chosen, "run"])} if chosen else {}
    runs["best of all ways"] = run_in(grid, every.loc[every["value"].idxmax(), "run"])
    inputs, home = Inputs(lambda *_: both), StudyFolder(folder)
    claim_folder(home.path, Study("fresh", tasks=(loaded.task,), backbone="bard", data=str(data), reading=reading, recipes=("sft", "dpo", "sft-dpo")))
    plans = {name: [run.replace(folds=0, fold=0, seed=seed) for seed in range(seeds)] for name, run in runs.items()}
    finish_ways(home, inputs, plans, runs_at_once(inputs, "bard", seeds), print)
    results = gather(home)
    lines = [dict(way=name, seed=run.seed, value=results.loc[(results["run"] == inputs.of(run).name) & (results["metric"] == metric.name), "value"].item())
             for name, some in plans.items() for run in some]
    lines += [dict(way=name, seed=0, value=value) for name, value in reached_without(results, both, loaded).items()]
    pd.DataFrame(lines).assign(metric=metric.name, rows=len(both.test)).to_csv(out, index=False, float_format="%.5g")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="the file that `sftdpo recommend` read")
    parser.add_argument("fresh", help="other rows like its own")
    parser.add_argument("walk", help="folder of `sftdpo recommend`")
    parser.add_argument("grid", help="folder of `recommend_grid.py`")
    parser.add_argument("out", type=Path, help="CSV for what each way reached")
    parser.add_argument("--folder", default="runs/fresh", help="folder for the runs (default: runs/fresh)")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each way (default: 5)")
    main(**vars(parser.parse_args()))
