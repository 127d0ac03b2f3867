"""Several machines: two processes on the loopback train as one process does, and go on after both were killed."""

import json
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, last_arrays, user_environment

from resnet_study import workers
from resnet_study.checkpoints import read_checkpoint
from resnet_study.errors import UsageError
from resnet_study.run_folder import RunFolder

# A small rate: a large one amplifies the last bits of different sums step by step.
FLAGS = [
    "--preset=smoke", "--train_steps=40", "--report_freq=5", "--synthetic_images=200", "--precision=float32", "--init_lr=0.002",
    "--warmup_lr=0.002", "--lr_schedule=constant",
]  # fmt: skip


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_machines(command, cwd, count=2):
    """Starts the command once per machine; returns the processes, that of the chief first."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    processes = []
    for index in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = user_environment() | {"TF_CONFIG": json.dumps(config), "PYTHONPATH": str(ROOT)}
        processes.append(
            subprocess.Popen(
                [sys.executable, *command], cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )  # fmt: skip
    return processes


def end_all(processes, seconds=300):
    """Waits for all; returns (exit code, stdout, stderr) of each. Whatever still runs then is killed."""
    try:
        return [(*process.communicate(timeout=seconds), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_machines_are_killed_go_on_and_end_as_one_would(tmp_path):
    command = [str(ROOT / "cifar10_main.py"), "--mode=train", *FLAGS]
    alone = subprocess.run(
        [sys.executable, *command, "--version=alone", "--strategy=cpu"], cwd=tmp_path, env=user_environment(), check=True
    )  # fmt: skip
    assert alone.returncode == 0
    shared = [*command, "--version=shared", "--strategy=multi_worker"]
    begun, table = start_machines(shared, tmp_path), tmp_path / "runs" / "shared" / "error.csv"
    while not table.is_file() or len(table.read_text().splitlines()) < 3:
        assert all(process.poll() is None for process in begun)
        time.sleep(0.2)
    for process in begun:
        process.kill()
    end_all(begun)
    step = read_checkpoint(RunFolder(table.parent).latest_checkpoint())[1]["step"]
    assert 5 <= step < 40
    done = end_all(start_machines([*shared, "--resume"], tmp_path))
    for _, errors, code in done:
        assert code == 0, errors
    assert f"going on after step {step}" in done[0][0] and "top-1 error" in done[0][0]
    assert "MultiWorkerMirroredStrategy over 2 machines with 2 devices" in done[0][0]
    assert "machine 2 of 2" in done[1][0] and "top-1 error" not in done[1][0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["alone", "shared"]
    one, two = (last_arrays(RunFolder(tmp_path / "runs" / name)) for name in ("alone", "shared"))
    assert one.keys() == two.keys()
    for name, array in one.items():
        if name.startswith("net/"):
            np.testing.assert_allclose(array, two[name], atol=1e-3, rtol=1e-3, err_msg=name)
    one, two = (RunFolder(tmp_path / "runs" / name).read_history() for name in ("alone", "shared"))
    for column in ("train_loss", "validation_loss"):
        np.testing.assert_allclose(one[column], two[column], rtol=1e-3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs the environment variable TF_CONFIG, received none"),
        ("{", "must be like"),
        ("[]", "must be like"),
        ('{"cluster": {"worker": ["a:1"]}}', "it has no 'task'"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}', "index 2, and there are 2"),
        ('{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}', 'must be "host:port"'),
        ('{"cluster": {"worker": ["a:1", "a:1"]}, "task": {"type": "worker", "index": 0}}', "be there once"),
        ('{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}', "not ps"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "evaluator", "index": 0}}', "not evaluator"),
    ],
)
def test_tf_config_that_cannot_be_used(monkeypatch, text, words):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match="TF_CONFIG") as caught:
        workers.read_tf_config()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_chief_comes_first(monkeypatch):
    cluster = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    for kind, index, place in (("chief", 0, 0), ("worker", 0, 1), ("worker", 1, 2)):
        monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
        assert workers.read_tf_config() == workers.Workers(("a:1", "b:1", "c:1"), place)
        assert workers.is_chief("multi_worker") == (place == 0) and workers.is_chief("auto")


@pytest.mark.slow
def test_a_machine_that_stops_ends_the_others_in_one_line(tmp_path):
    command = [str(ROOT / "cifar10_main.py"), "--mode=train", *FLAGS, "--train_steps=5000", "--strategy=multi_worker"]
    chief, other = processes = start_machines([*command, "--version=x"], tmp_path)
    table = tmp_path / "runs" / "x" / "error.csv"
    while not table.is_file():
        assert chief.poll() is None and other.poll() is None
        time.sleep(0.2)
    other.kill()
    (_, errors, code), _ = end_all(processes)
    assert code == 75 and "error: another machine has stopped" in errors and "Traceback" not in errors, errors[-3000:]
    chief, other = processes = start_machines([*command, "--version=x", "--resume"], tmp_path)
    rows = len(table.read_text().splitlines())
    while len(table.read_text().splitlines()) <= rows:
        assert chief.poll() is None and other.poll() is None
        time.sleep(0.2)
    other.send_signal(signal.SIGTERM)  # one is asked to stop: all stop after the same step, and the chief keeps it
    for _, errors, code in end_all(processes):
        assert code == 130 and "checkpoint written" in errors
