"""Copy the small files of a study into nbs/study/results, also while it still runs: no weights, no text of data that is not ours.

Prompts of question pairs are left out, since they belong to whoever owns the data; sonnets are in the public domain.
A copy of the folder that is kept, given to `sftdpo compare` as --out, goes on with what is missing."""
import argparse
import shutil
from pathlib import Path

import pandas as pd

from sftdpo.engine.folder import RunFolder, StudyFolder, digests, write_record
from sftdpo.engine.safe_files import written_whole


def keep_examples(run: RunFolder, path: Path, home: Path):
    "Copy what was reached on each example, in single precision and without the prompts that are not ours."
    examples = pd.read_parquet(run.checked(path))
    if "generated" not in examples: examples = examples.drop(columns="prompt", errors="ignore")
    examples = examples.astype({name: "float32" for name in examples.select_dtypes("float64")})
    examples.to_parquet(home, index=False, compression="zstd", compression_level=19)


def keep_numbers(path: Path, home: Path, texts: bool):
    "Copy a table to five digits, without its texts if they may not be kept; of a history, every fifth step and each look at held-out rows."
    table = pd.read_csv(path)
    if not texts: table = table.drop(columns=["prompt", "chosen", "rejected"], errors="ignore")
    if "step" in table: table = table[(table["step"] % 5 == 0) | table.filter(like="held_out").notna().any(axis=1)]
    table.to_csv(home, index=False, float_format="%.5g")


def keep_run(run: RunFolder, place: RunFolder, texts: bool, trial: bool = False):
    "Copy a finished run; of a trial, which only chooses, what the choice needs."
    about, of_base = run.about(), not run.history.exists() and run.examples.exists()  # a trial that was kept once has neither
    small = (run.metrics,) if trial else (run.settings, run.environment, run.metrics)
    with written_whole(place) as part:
        for path in small:
            if path.exists(): shutil.copy(run.checked(path, about), part / path.name)
        if of_base or not trial: keep_examples(run, run.examples, part / run.examples.name)
        for path in () if trial else run.path.glob("*.csv"): keep_numbers(run.checked(path, about), part / path.name, texts)
        for name in run.further_sets:
            there, here = run.further(name), RunFolder(part).further(name)
            here.path.mkdir(parents=True)
            shutil.copy(there.metrics, here.metrics)
            keep_examples(run, there.examples, here.examples)
        large = {name: digest for name, digest in about["files"].items() if name == run.distributions.name}  # not there: judged again where it is needed
        write_record(part / run.record.name, about | {"files": digests(part) | large})


def keep(study: Path, place: Path, texts: bool = False):
    "Copy what is finished of a study to `place`; what is there already stays."
    folder, kept = StudyFolder(study), StudyFolder(place)
    if not (folder.finished_runs() or folder.trials.finished_runs()): raise SystemExit(f"{study} holds no finished run; run `sftdpo compare --out {study}` first.")
    for there, here, trial in ((folder, kept, False), (folder.trials, kept.trials, True)):
        for name in sorted(set(there.finished_runs()) - set(here.finished_runs())): keep_run(there.run(name), here.run(name), texts, trial)
    for path in (folder.settings, folder.trials.settings, folder.begun_with, folder.planned, folder.results, folder.search, folder.margins):
        if path.exists(): shutil.copy(path, kept.path / path.relative_to(folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, help="a folder that `sftdpo compare` wrote")
    parser.add_argument("name", help="its name in nbs/study/results")
    parser.add_argument("--texts", action="store_true", help="keep the texts of held-out pairs too: only where all of them are ours or in the public domain")
    words = parser.parse_args()
    keep(words.study, Path(__file__).resolve().parent.parent / "nbs" / "study" / "results" / words.name, words.texts)
