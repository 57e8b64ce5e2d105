"A study that takes seconds: tiny models, short sonnets of four lines, short questions."
import re

import sftdpo.engine.timing as timing_module
import sftdpo.engine.tree as tree_module
import sftdpo.study as study_module
from sftdpo.config import Sampling, Stage, Study
from sftdpo.data import Example, TaskData, cloze_prompt
from sftdpo.engine.inputs import Inputs
from sftdpo.engine.safe_files import MACHINE


def short(task, data="embedded", reading=None, folds=0, fold=0):
    "Both tasks with texts that fit the tiny models' 256 positions."
    if task == "sonnet":
        poems = [Example(str(i), f"line {i}\nshall I\ncompare\n", f"thee {i}\nto a day {i * 7}") for i in range(30)]
        return TaskData("sonnet", "little", poems[:20], poems[20:25], poems[25:], (), True, "made for a test")
    pairs = [Example(str(i), cloze_prompt(f"What {i % 7}?", f"How {i % 7 if i % 2 else i % 5 + 7}?"), ("no", "yes")[i % 2], label=i % 2) for i in range(90)]
    return TaskData("paraphrase", "little", pairs[:60], pairs[60:70], pairs[70:], ("no", "yes"), False, "made for a test")


def little_inputs(**more):
    "A new collection that loads the short data."
    return Inputs(short, **more)


def compare(study, folder, *rest, inputs=None, **more):
    "A study on the short data."
    return study_module.compare(study, folder, *rest, inputs=inputs or little_inputs(), **more)


def plan(study, folder, inputs=None, **more):
    "What a study on the short data takes."
    return timing_module.plan(study, folder, inputs=inputs or little_inputs(), **more)


def stage_tree(runs, inputs=None):
    "The nodes of a study on the short data."
    return tree_module.stage_tree(runs, inputs or little_inputs())


def small(backbone, **changes):
    "A study of six cells on both tasks."
    stage = dict(epochs=1, batch_size=8, learning_rate=1e-3, precision="fp32")
    return Study("a small study", **dict(dict(tasks=("paraphrase", "sonnet"), backbone=backbone, train_size=16, sampling=Sampling(samples=2, max_new_tokens=8),
                 sft=Stage("sft", **stage), dpo=Stage("dpo", **stage)), **changes))


def steady(results):
    "Results without what depends on the clock or on the machine's memory."
    return results[~results.metric.str.contains("second|memory")].reset_index(drop=True)


def unbroken(text):
    "A report as it is before its lines are broken at 80 letters."
    return re.sub(r"( \\)?\n {8,}(?!- )", " ", str(text))


def leftover(name, ending="part"):
    "The name under which a process of this machine that is gone wrote something."
    return f".{name}.{MACHINE}-4194305-{'0' * 8}-x1y2.{ending}"
