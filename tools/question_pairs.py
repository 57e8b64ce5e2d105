"""The question pairs of the study of SmolLM2, picked by their ids from the files of the course's project (Stanford CS 224N).

    python tools/question_pairs.py FOLDER_OF_THE_COURSE runs/qqp-study

The questions are Quora's, so only the beginnings of the pairs' ids are kept here. Pairs that share a question went to one
side as a whole: no question that judges is among those that train.
"""
import argparse
import sys
from pathlib import Path

import pandas as pd

IDS = Path(__file__).parents[1] / "nbs/study/studies/question-pairs.txt"
DIGITS = 10  # of an id: enough to tell 400,000 pairs apart
COLUMNS = ["id", "sentence1", "sentence2", "is_duplicate"]


def wanted():
    "The beginnings of ids, in the order of the study's files: {\"train\": [...], \"dev\": [...]}."
    found = {}
    for line in IDS.read_text(encoding="utf-8").split():
        if line in ("train", "dev"): ids = found[line] = []
        else: ids.append(line)
    return found


def course_pairs(folder):
    "All pairs of the tab-separated files in a folder, by the beginning of their id."
    found = {}
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*.tsv")]):
        header = path.open(encoding="utf-8").readline().rstrip("\n").split("\t")
        if not set(COLUMNS) <= set(header): continue  # another task's, or without labels
        table = pd.read_csv(path, sep="\t", dtype=str, usecols=COLUMNS, keep_default_na=False, on_bad_lines="skip", encoding="utf-8")[COLUMNS]
        found |= {row.id[:DIGITS]: row for row in table.itertuples(index=False)}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("course", type=Path, help="folder with the course's files, such as quora-train.csv")
    parser.add_argument("out", type=Path, help="folder that train.tsv and dev.tsv are written to")
    asked = parser.parse_args()
    if not asked.course.is_dir(): sys.exit(f"{asked.course} is not a folder: name the one with the course's files, such as quora-train.csv.")
    pairs, ids = course_pairs(asked.course), wanted()
    missing = [one for some in ids.values() for one in some if one not in pairs]
    if missing:
        sys.exit(f"{asked.course} lacks {len(missing):,} of {sum(map(len, ids.values())):,} pairs: it needs the course's files with labels, quora-train.csv and quora-dev.csv, "
                 f"tab-separated, with the columns {', '.join(COLUMNS)}.")
    asked.out.mkdir(parents=True, exist_ok=True)
    for split, some in ids.items():
        pd.DataFrame([pairs[one] for one in some], columns=COLUMNS).to_csv(asked.out / f"{split}.tsv", sep="\t", index=False, lineterminator="\n")
        print(f"{asked.out / split}.tsv: {len(some):,} pairs")


if __name__ == "__main__": main()
