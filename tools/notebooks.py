"""Run every notebook with nbdev's own test command, in processes that already have the libraries.

As in tests/conftest.py, they do not wait for the disk, and stages ask for young objects only to be collected."""
import argparse
import functools
import gc
import os

from nbdev.test import nbdev_test

import sftdpo.page.live  # noqa: F401  (what is imported here is imported once, not once in each process)
import sftdpo.study  # noqa: F401

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    words = parser.parse_args()
    os.fsync = lambda handle: None
    gc.collect = functools.wraps(gc.collect)(lambda generation=1, collect=gc.collect: collect(generation))
    nbdev_test(n_workers=words.workers, timing=True)
