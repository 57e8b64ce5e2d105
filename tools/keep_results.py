"""Copy the small files of a study into nbs/study/results, for the analysis notebooks: no weights, no text of data that is not ours.

Prompts of question pairs are left out, since they belong to whoever owns the data; sonnets are in the public domain."""
import argparse
import shutil
from pathlib import Path

import pandas as pd

KEPT = ("settings.yaml", "environment.json", "history.csv", "metrics.json", "sftdpo.json")


def keep(study: Path, place: Path):
    "Copy a finished study's results to `place`, replacing what was there."
    runs = sorted(path for path in (study / "runs").iterdir() if (path / "sftdpo.json").exists())
    if not runs: raise SystemExit(f"{study} holds no finished run; run `sftdpo compare --out {study}` first.")
    shutil.rmtree(place, ignore_errors=True)
    for run in runs:
        home = place / "runs" / run.name
        home.mkdir(parents=True)
        for name in KEPT:
            if (run / name).exists(): shutil.copy(run / name, home / name)
        examples = pd.read_parquet(run / "examples.parquet")
        if "generated" not in examples: examples = examples.drop(columns="prompt", errors="ignore")
        examples.to_parquet(home / "examples.parquet", index=False, compression="zstd")
    for name in ("study.yaml", "results.csv", "choosing.csv", "margins.yaml"):
        if (study / name).exists(): shutil.copy(study / name, place / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="a folder that `sftdpo compare` wrote")
    parser.add_argument("name", help="its name in nbs/study/results")
    words = parser.parse_args()
    keep(words.study, Path(__file__).resolve().parent.parent / "nbs" / "study" / "results" / words.name)
