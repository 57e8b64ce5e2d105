"A stage under `accelerate launch` on two processes: the losses and weights of one process, up to rounding."
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
import two_processes

from sftdpo.engine.work import visible_gpus


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    "What one process finds, and what two find."
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no",
              f"--main_process_port={port}", two_processes.__file__, together]
    done = subprocess.run(launch, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    two_processes.main(alone)
    return alone, together, done.stdout + done.stderr


@pytest.mark.parametrize("kind, tuning", two_processes.CELLS)
def test_two_processes_train_like_one(kind, tuning, results):
    alone, *shared = (torch.load(folder / f"{kind}-{tuning}-{process}.pt") for folder, process in ((results[0], 0), (results[1], 0), (results[1], 1)))
    start = dict(two_processes.model_for(tuning).named_parameters())
    for found in shared:
        assert found["columns"] == alone["columns"] and found["micro_batch"] == 2
        np.testing.assert_allclose(found["history"], alone["history"], rtol=2e-3, atol=1e-4)  # losses, rewards, gradient norms, held-out looks
        assert found["weights"].keys() == alone["weights"].keys()
        flat = lambda weights: torch.cat([weights[name].detach().flatten() for name in alone["weights"]])
        moved, apart = (flat(alone["weights"]) - flat(start)).norm(), (flat(found["weights"]) - flat(alone["weights"])).norm()
        assert apart < 0.01 * moved
    assert all(torch.equal(shared[0]["weights"][name], shared[1]["weights"][name]) for name in alone["weights"])


def test_nothing_is_left_or_said_twice(results):
    _, together, said = results
    assert not [path for path in together.rglob("*") if path.is_file() and path.suffix != ".pt"]
    assert "unused" not in said and "Traceback" not in said


@pytest.mark.parametrize("named, number, gpus", [("2,3", 2, ["2", "3"]), ("", 2, ["0", "1"]), ("GPU-a, GPU-b", 2, ["GPU-a", "GPU-b"]), ("", 0, [])])
def test_workers_keep_to_the_gpus_that_were_named(named, number, gpus, monkeypatch):
    "At 6d2b5f9 workers took the machine's first GPUs, whichever the user had named."
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr("torch.cuda.device_count", lambda: number)
    assert visible_gpus() == gpus
