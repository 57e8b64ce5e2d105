"""What every test can ask for: tiny models, the shared data, and one thread."""
import functools
import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer
from tyro import _docstrings

# Files whose tests take longest, or wait: each worker begins with some of them, so that none is left with one in the end.
LONGEST = ("test_playground", "test_ray", "test_survival", "test_two_processes", "test_bard", "test_trust", "test_bench", "test_accidents")
root, collect = Path(__file__).resolve().parent.parent, gc.collect


def pytest_configure(config):
    "One thread; no waiting for the disk, whose loss of power no test sees; stages ask for young objects only to be collected; tyro reads the source of a class of settings once, not in each call."
    torch.set_num_threads(1)
    os.fsync = lambda handle: None
    gc.collect = lambda generation=1: collect(generation)
    if known := getattr(_docstrings, "_ClassTokenization", None): known.make = staticmethod(functools.cache(known.make))


def longest_first(items, workers):
    "The items in as many equal parts as there are workers, as pytest-xdist deals them, each of which begins with some of the longest files."
    part = -(-len(items) // workers)
    parts = [[item for item in items if item.path.stem in LONGEST[k::workers]] for k in range(workers)]
    rest = [item for item in items if item.path.stem not in LONGEST]
    for some in parts: some += [rest.pop(0) for _ in range(min(len(rest), max(0, part - len(some))))]
    return [item for some in parts for item in some] + rest


def pytest_collection_modifyitems(config, items):
    "Begin with what takes longest; skip what this machine, or this call of pytest, cannot or should not run."
    items[:] = longest_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))
    reasons = {}
    if not torch.cuda.is_available():
        reasons["cuda"] = "there is no NVIDIA GPU here"
    if os.environ["HF_HUB_OFFLINE"] == "1":
        reasons["network"] = "needs a network: set HF_HUB_OFFLINE=0"
    if "slow" not in config.option.markexpr:
        reasons["slow"] = "takes minutes: run with -m slow"
    for item in items:
        for mark, reason in reasons.items():
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session):
    "The objects of libraries, half a million, are not looked through again: each stage that is trained asks for a collection."
    collect()
    gc.freeze()


def pytest_sessionfinish(session):
    "Whoever looks at the end who refers to an object finds them all."
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def libraries_stay():
    "Nor are those that a file's tests have loaded."
    yield
    collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded():
    "Every test starts from the same random state, whatever ran before it."
    torch.manual_seed(0)


@pytest.fixture
def undrawn(monkeypatch):
    "Pictures are made, but not drawn: drawing takes half of a report's time."
    from sftdpo.plots import Picture
    monkeypatch.setattr(Picture, "svg", lambda picture: '<svg viewBox="0 0 10 10"></svg>')


@pytest.fixture(scope="session")
def repository():
    "The top folder of the repository."
    return root


@pytest.fixture(scope="session")
def shared():
    "The folder with the real data sets, which lies beside the repository on some machines."
    folder = Path(os.environ.get("SFTDPO_SHARED", root.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not here: put them in ../shared/data, or name their parent in SFTDPO_SHARED")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    "The tiny byte-level BPE tokenizer."
    return tiny_tokenizer()


@pytest.fixture
def backbone(tokenizer, tmp_path):
    "A folder with a tiny GPT-2 that has dropout."
    from sftdpo.model import save_policy
    return str(save_policy(tiny_model("gpt2", tokenizer, dropout=0.1), tokenizer, tmp_path / "tiny backbone"))


@pytest.fixture
def tiny_gpt2(tokenizer):
    "A fresh (model, tokenizer): random GPT-2, the same weights every time, no dropout."
    return tiny_model("gpt2", tokenizer), tokenizer


@pytest.fixture
def tiny_llama(tokenizer):
    "A fresh (model, tokenizer): random Llama, the same weights every time, no dropout."
    return tiny_model("llama", tokenizer), tokenizer


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request, tokenizer):
    "Each of the two in turn, for tests that must hold for both architectures."
    return tiny_model(request.param, tokenizer), tokenizer
