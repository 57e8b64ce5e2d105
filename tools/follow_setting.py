"""Follow one setting, a learning rate, from `compare` to the loop over optimizer steps: how many calls, functions and modules of the package it passes.

A call counts if one of its arguments is the rate, or a study, run, stage or other object that holds it."""
import dataclasses
import sys
import tempfile
from collections import Counter
from pathlib import Path

from transformers import Trainer

import sftdpo
from sftdpo.config import Stage, Study
from sftdpo.study import compare

RATE, PACKAGE = 1.2345e-4, str(Path(sftdpo.__file__).parent)


def holds(value, depth: int = 3) -> bool:
    "Is the rate in a value?"
    if isinstance(value, (int, float)): return value == RATE
    if isinstance(value, (str, bytes, type)) or not depth: return False
    if isinstance(value, dict): return any(holds(one, depth - 1) for one in list(value.values())[:40])
    if isinstance(value, (tuple, list)): return any(holds(one, depth - 1) for one in value[:40])
    if dataclasses.is_dataclass(value) or type(value).__module__.startswith("sftdpo"):
        return any(holds(one, depth - 1) for one in vars(value).values()) if hasattr(value, "__dict__") else False
    return False


class Arrived(BaseException):
    "The steps begin."


def followed() -> Counter:
    "The functions that the rate passes, each with its number of calls."
    passed = Counter()

    def watch(frame, event, _):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE) or code.co_name.startswith("<"): return
        if any(holds(frame.f_locals[name]) for name in code.co_varnames[:code.co_argcount + code.co_kwonlyargcount] if name in frame.f_locals):
            passed[Path(code.co_filename).relative_to(PACKAGE).with_suffix("").as_posix(), code.co_qualname] += 1

    def stop(*given, **more): raise Arrived
    study = Study(tasks=("paraphrase",), train_size=16, test_size=16, recipes=("sft",), tunings=("full",), sft=Stage("sft", learning_rate=RATE, precision="fp32"))
    loop, Trainer._inner_training_loop = Trainer._inner_training_loop, stop
    sys.setprofile(watch)
    try: compare(study, Path(tempfile.mkdtemp()) / "study", progress=False)
    except Arrived: pass
    finally:
        sys.setprofile(None)
        Trainer._inner_training_loop = loop
    return passed


if __name__ == "__main__":
    passed = followed()
    modules = Counter(module for (module, _), _ in passed.items())
    for module, functions in modules.most_common(): print(f"{module}: {functions} functions, {sum(calls for (one, _), calls in passed.items() if one == module)} calls")
    print(f"{len(modules)} modules, {len(passed)} functions, {sum(passed.values())} calls")
