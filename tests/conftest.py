"""Shared pieces: published-format data files made on the spot, and tiny runs."""

import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

# As `devices.import_tensorflow`.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import filelock
import numpy as np
import pytest

from hyper_parameters import from_preset
from resnet_study import files
from resnet_study.checkpoints import read_checkpoint
from resnet_study.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
FORCE_TO_DISK = files._force_to_disk
_SET_HERE = ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")
TINY = ["--preset=smoke", "--train_steps=6", "--report_freq=3", "--synthetic_images=200", "--tensorboard=false"]


def pytest_collection_finish(session):
    """What is imported stays: looking through its objects for garbage takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk():
    """Forcing each of some thirty files of each small run to the disk takes longer than writing it; test_files tests it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_force_to_disk", lambda path: None)
        yield


@pytest.fixture
def eager():
    """TensorFlow's functions run step by step: a few steps of a small network take less time than compiling one.

    Not for what depends on compiling: Lookahead, graphs, counts of compilations, and runs that must be equal bit by bit.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


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


@pytest.fixture(autouse=True, scope="module")
def _pages_where_they_are_tested(request):
    """A page takes a second of each of the hundred small trainings; the tests of pages write them all."""
    if request.module.__name__ in ("test_report_pages", "test_browser", "test_flowers", "test_multi_label"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in ("resnet_study.reports.figures", "resnet_study.reports.run_page"):
            patch.setattr(f"{name}.write_run_page", lambda run, tested: run.page)
        yield


# What lies where a file is expected: name -> a function that makes it.
SPECIAL_FILES = (
    {}
    if os.name == "nt"
    else {
        "pipe": os.mkfifo,
        "zero": lambda place: place.symlink_to("/dev/zero"),
        "dangling": lambda place: place.symlink_to("nowhere"),
        "folder": Path.mkdir,
        "loop": lambda place: place.symlink_to(place),
        "sparse": lambda place: (place.touch(), os.truncate(place, 10 << 30)),
    }
)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """A finished run of the command line, tested and drawn, with TensorBoard; whoever changes it makes a copy."""
    from cifar10_main import main

    # Once for all processes of a test run.
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    with filelock.FileLock(f"{shared}.lock"):
        if not (shared / "done" / "figures" / "layers.md").is_file():
            assert main(["--mode=train", *TINY[:-1], f"--runs_dir={shared}", "--version=done"]) == 0
    return RunFolder(shutil.copytree(shared / "done", tmp_path_factory.mktemp("trained") / "done"))


@pytest.fixture
def undrawn(monkeypatch):
    """Runs that a test wants for their numbers: eight figures take twice as long as their training and testing."""
    monkeypatch.setattr("resnet_study.reports.figures.draw", lambda *_, **__: [])


def check_run_folder(run, *more_figures):
    """A finished, tested and drawn run has its files; `more_figures` = those beyond what each run has."""
    for path in (
        run.config,
        run.environment,
        run.data,
        run.error_csv,
        run.best,
        run.final,
        run.result,
        run.predictions,
    ):
        assert path.is_file(), path
    assert {path.stem for path in run.figures.glob("*.png")} == {
        "error_curve", "accuracy_curve", "loss_curve", "augmentation", "samples", "predictions", "confusion_matrix", "reliability",
        *more_figures,
    }  # fmt: skip


MNIST_FILES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


def idx_bytes(array):
    """A uint8 array as the published IDX files have it."""
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="session")
def mnist_arrays():
    """Training images and labels, test images and labels: bars whose place and direction tell the class."""
    rng = np.random.default_rng(0)
    arrays = []
    for count in (120, 30):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            place = 6 + 3 * (label % 5)
            (image if label < 5 else image.T)[place : place + 3, 6:22] = rng.integers(150, 256)
        arrays += [images, labels]
    return arrays


@pytest.fixture(scope="session")
def mnist_folder(tmp_path_factory, mnist_arrays):
    """A small MNIST of plain IDX files."""
    folder = tmp_path_factory.mktemp("mnist")
    for name, array in zip(MNIST_FILES, mnist_arrays, strict=True):
        (folder / name).write_bytes(idx_bytes(array))
    return folder


def tiny(folder, **changes):
    """Settings of a run of seconds in `folder`/x."""
    small = {"train_steps": 6, "report_freq": 3, "synthetic_images": 200, "tensorboard": False, "version": "x"}
    return from_preset("smoke", runs_dir=str(folder), **small | changes)


def last_arrays(run):
    return read_checkpoint(run.latest_checkpoint())[0]


def assert_same_state(first, second):
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def stop_after(step):
    """A callback that ends a run by a signal after a step, as `kill` would."""
    from keras.callbacks import LambdaCallback

    return LambdaCallback(
        on_train_batch_end=lambda batch, logs: batch == step - 1 and signal.raise_signal(signal.SIGTERM)
    )


def assert_resumes_exactly(train, step, whole=None):
    """A run that is stopped after `step` steps and goes on ends as one never stopped: in each number of its state and its reports.

    Args:
        train: function of (version, resume and callbacks as `cifar10_train.train` takes them) -> run folder.
        whole: the run never stopped, where there is one.

    Returns:
        Both run folders.
    """
    import keras
    import pandas as pd

    from cifar10_train import Interrupted

    whole = whole or train("whole")
    parts = f"parts-{step}"
    with pytest.raises(Interrupted, match=rf"SIGTERM after step {step} of .* --version={parts} --resume"):
        train(parts, callbacks=[stop_after(step)])
    keras.utils.set_random_seed(99)
    keras.layers.Dropout(0.5)  # Keras counts the names of random generators on
    resumed = train(parts, resume=True)
    assert_same_state(last_arrays(whole), last_arrays(resumed))
    histories = [run.read_history().drop(columns=["seconds", "examples_per_sec"]) for run in (whole, resumed)]
    pd.testing.assert_frame_equal(*histories)
    return whole, resumed


def user_environment():
    """The environment without what this file sets for tests within the process."""
    return {name: value for name, value in os.environ.items() if name not in _SET_HERE}


def run_main(*flags, cwd, check=True):
    """Runs the command line in a process of its own, as a user does."""
    command = [sys.executable, str(ROOT / "cifar10_main.py"), *map(str, flags)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=user_environment())
    if check:
        assert done.returncode == 0, done.stderr
    return done
