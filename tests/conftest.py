"""Shared pieces: published-format data files made on the spot, and tiny runs."""

import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TINY = ["--preset=smoke", "--train_steps=6", "--report_freq=3", "--synthetic_images=200", "--tensorboard=false"]


@pytest.fixture(scope="session")
def cifar_rows():
    """Rows of the published files: uint8 [60, 3072] per file name, and their labels."""
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return {name: (rng.integers(0, 256, (60, 3072), np.uint8), (np.arange(60) % 10).tolist()) for name in names}


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory, cifar_rows):
    """A small `cifar-10-batches-py/`."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-py"
    folder.mkdir()
    for name, (data, labels) in cifar_rows.items():
        content = {b"batch_label": b"x", b"labels": labels, b"data": data, b"filenames": [b"a.png"] * len(labels)}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = [b"airplane", b"automobile", b"bird", b"cat", b"deer", b"dog", b"frog", b"horse", b"ship", b"truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names, b"num_vis": 3072}, protocol=2))
    return folder


@pytest.fixture(scope="session")
def cifar_archive(cifar_folder):
    path = cifar_folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(cifar_folder, cifar_folder.name)
    return path


def user_environment():
    """The environment without what this file sets for tests within the process."""
    return {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}


def run_main(*flags, cwd, check=True):
    """Runs the command line in a process of its own, as a user does."""
    command = [sys.executable, str(ROOT / "cifar10_main.py"), *map(str, flags)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=user_environment())
    if check:
        assert done.returncode == 0, done.stderr
    return done
