"""Copy the small files of a study into nbs/study/results, for the analysis notebooks: no weights, no text of data that is not ours.

Prompts of question pairs are left out, since they belong to whoever owns the data; sonnets are in the public domain."""
import argparse
import shutil
from pathlib import Path

import pandas as pd

from sftdpo.engine.folder import StudyFolder


def keep(study: Path, place: Path):
    "Copy a finished study's results to `place`, replacing what was there."
    there, kept = StudyFolder(study), StudyFolder(place)
    if not there.finished_runs(): raise SystemExit(f"{study} holds no finished run; run `sftdpo compare --out {study}` first.")
    shutil.rmtree(place, ignore_errors=True)
    for name in there.finished_runs():
        run, home = there.run(name), kept.run(name)
        about = run.about()
        home.path.mkdir(parents=True)
        for path in (run.settings, run.environment, run.history, run.metrics):
            if path.exists(): shutil.copy(run.checked(path, about), home.path / path.name)
        examples = pd.read_parquet(run.checked(run.examples, about))
        if "generated" not in examples: examples = examples.drop(columns="prompt", errors="ignore")
        examples.to_parquet(home.examples, index=False, compression="zstd")
        home.close(**about)
    for path in (there.settings, there.results, there.search, there.margins):
        if path.exists(): shutil.copy(path, kept.path / path.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="a folder that `sftdpo compare` wrote")
    parser.add_argument("name", help="its name in nbs/study/results")
    words = parser.parse_args()
    keep(words.study, Path(__file__).resolve().parent.parent / "nbs" / "study" / "results" / words.name)
