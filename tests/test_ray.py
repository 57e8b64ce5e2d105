"The executor `ray`: a real cluster of two nodes on this machine, with the results of a single process."
import contextlib
import os
import socket
import tempfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from little import steady
from tiny import tiny_model

from sftdpo.config import Execution, Stage, Study
from sftdpo.model import save_policy
from sftdpo.study import compare

ray = pytest.importorskip("ray", reason="the extra is not installed: pip install 'sftdpo[ray]'")


def free_ports(number):
    "Ports that nobody uses now."
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in held: one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; what a task may use is decided by Ray.

    A node waits for its agents to say at which ports they are, and gives up after 15 seconds, which their imports exceed on a busy machine.
    Here ports are given, and those that are not taken from the command line are written where the node looks for them, so that it waits for none.
    """
    from ray._common.utils import get_default_ray_temp_dir
    from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port
    from ray.cluster_utils import Cluster
    os.makedirs(get_default_ray_temp_dir(), exist_ok=True)  # `ray.init` writes an address there and does not make the folder
    place, agents = Cluster(), ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as home:   # short, as the path of a socket must be
        session = Path(home)/f"session_{os.getpid()}"
        session.mkdir()
        for more in ({"session_name": session.name, "include_dashboard": False}, {}):
            name, ports = ray.NodeID.from_random().hex(), free_ports(len(agents))
            persist_port(str(session), name, DASHBOARD_AGENT_LISTEN_PORT_NAME, ports[-1])
            place.add_node(num_cpus=1, object_store_memory=100_000_000, temp_dir=home, env_vars={"RAY_OVERRIDE_NODE_ID_FOR_TESTING": name}, **more, **dict(zip(agents, ports)))
        ray.init(address=place.address, log_to_driver=False)
        yield place
        ray.shutdown()
        place.shutdown()


@pytest.fixture(scope="module")
def study(tmp_path_factory, tokenizer):
    "Six cells of a tiny model on a file of labels."
    home, stage = tmp_path_factory.mktemp("study"), dict(epochs=1, batch_size=4, evaluations=0)
    (home / "texts.csv").write_text("text,label\n" + "".join(f"text {i},{('no', 'yes')[i % 2]}\n" for i in range(60)))
    return Study("on ray", tasks=("labels",), data=str(home / "texts.csv"), backbone=str(save_policy(tiny_model("gpt2", tokenizer), tokenizer, home / "backbone")), train_size=8, test_size=6,
                 recipes=("sft", "dpo", "sft-dpo"), sft=Stage("sft", **stage), dpo=Stage("dpo", **stage))


def test_results_equal_those_of_one_process(cluster, study, tmp_path):
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    found = compare(study, tmp_path / "ray", execution=Execution(executor="ray", cpus_per_run=1))
    assert torch.get_num_threads() == 1
    pd.testing.assert_frame_equal(steady(found), steady(compare(study, tmp_path / "alone", progress=False)), check_exact=True)
    pd.testing.assert_frame_equal(compare(study, tmp_path / "ray", execution=Execution(executor="ray", cpus_per_run=1)), found)   # nothing left to do


def test_a_failed_node_is_told_and_the_others_go_on(cluster, study, tmp_path, capsys):
    broken = study.replace(recipes=("sft", "dpo"), tunings=("full",), cells={"sft full sft.learning_rate": 1e30, "sft full sft.max_gradient_norm": 1e30})
    found = compare(broken, tmp_path / "ray", execution=Execution(executor="ray", cpus_per_run=1))
    said = capsys.readouterr().out
    assert set(found.recipe) == {"base", "dpo"} and "FAILED labels: sft full" in said and "1 of 3 runs failed" in said


def test_ray_is_asked_for_by_name(study, tmp_path, monkeypatch):
    import importlib.util
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install sftdpo\[ray\]"): compare(study, tmp_path / "out", progress=False, execution=Execution(executor="ray"))


def test_a_worker_with_other_hardware_knows_the_same_stages(study, tmp_path):
    "The machine that begins the study settles the precision; a worker that would take another still finds the stage."
    from sftdpo.config import from_dict, to_dict
    from sftdpo.engine.inputs import Inputs, settled
    runs, inputs = [run for run in settled(tmp_path, study).runs() if run.stages], Inputs()
    other = Inputs(precision="bf16" if runs[0].sft.precision == "fp32" else "fp32")
    assert [other.of(from_dict(type(run), to_dict(run))).keys for run in runs] == [inputs.of(run).keys for run in runs]
