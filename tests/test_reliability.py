"""Kills, full and read-only disks, two runs in one folder, odd numbers, bad networks: nothing is lost and nothing is half there."""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import filelock
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, TINY

import cifar10_input
from cifar10_input import ImageData, Split, load_data
from cifar10_main import main
from cifar10_train import Train, train
from hyper_parameters import from_preset
from resnet_study import checkpoints
from resnet_study.checkpoints import HISTORY, check_checkpoint, read_checkpoint, save_checkpoint, write_checkpoint
from resnet_study.data import cifar_files, download
from resnet_study.data.cifar_files import _CIFAR10, _PUBLISHED
from resnet_study.errors import UsageError
from resnet_study.files import aside_of, is_being_written, read_json, write_atomically, write_json
from resnet_study.reports import results as reports
from resnet_study.reports import run_list
from resnet_study.reports.results import publish
from resnet_study.run_folder import RunFolder, shutil

sys.path.insert(0, str(ROOT / "benchmarks"))
import crash_test

FACTS = {
    "step": 1,
    "history": [dict.fromkeys(HISTORY, 1.0)],
    "interval": {"images": 0, "wrong": 0, "loss": 0, "seconds": 0},
    "seconds": 0,
    "net": {},
}


def train_here(folder, *flags):
    return main(["--mode=train", *TINY, f"--runs_dir={folder}", "--version=x", *flags])


def refused(capsys, *words):
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error and all(word in error for word in words), error
    return True


# Kills


def test_a_lock_that_is_about_to_be_free_is_waited_for(tmp_path):
    """What a killed run had started can hold it a moment longer."""
    run, held = RunFolder(tmp_path), filelock.FileLock(tmp_path / ".lock", thread_local=False)
    held.acquire()
    timer = threading.Timer(0.3, held.release)
    timer.start()
    with run.locked():
        assert not held.is_locked
    timer.join()


@pytest.mark.slow
def test_killed_at_the_worst_instants_and_equal_to_a_run_never_killed(tmp_path):
    kinds = ["inside a checkpoint", "between arrays", "after move"]
    command = [sys.executable, ROOT / "benchmarks" / "crash_test.py", "--kills=3", "--steps=8", f"--folder={tmp_path / 'runs'}",
               f"--results_dir={tmp_path / 'results'}", "--instants", *kinds]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stopped:
        assert stopped.stdout.readline().startswith("kill   1: inside a checkpoint")
        stopped.terminate()
        assert stopped.wait() == 143
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill   1" not in done.stdout  # it went on
    rows = read_json(tmp_path / "results" / "reliability.json", [dict])
    found = {row["metric"]: row["value"] for row in rows}
    assert found["kills survived"] == 3 and found["differences from undisturbed runs"] == 0
    assert [found[f"kills, {kind}"] for kind in kinds] == [1, 1, 1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("size", [1, 4000])
def test_a_file_is_cut_short_after_so_many_bytes(tmp_path, monkeypatch, size):
    class Killed(BaseException):
        pass

    path, sizes = tmp_path / "x.npz", []

    def die():
        sizes.append(path.stat().st_size)
        raise Killed

    monkeypatch.setattr(crash_test, "_die", die)
    with pytest.raises(Killed), io.BufferedWriter(crash_test.CutShort(path, size)) as file:
        for _ in range(10):
            file.write(bytes(1000))
        file.flush()
    assert sizes[0] == size  # the file is closed afterwards, which a killed process cannot


def test_what_a_killed_process_was_writing_is_no_obstacle_and_is_deleted(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.path.mkdir()
    (run.path / ".aside-4194999-config.json").write_text("hal")
    with run.locked():
        run.begin(from_preset("smoke"), resume=False, overwrite=False)
    assert sorted(path.name for path in run.path.iterdir() if path.name != ".lock") == ["config.json"]


def test_a_copy_of_a_checkpoint_is_no_checkpoint_and_one_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    arrays, facts = {"a": np.zeros(2, np.float32)}, {"step": 1, "reports": []}
    monkeypatch.setattr(checkpoints, "_FACTS", dict)
    for name in ("step-00000001.npz", "step-00000002.npz", "step-00000002-mine.npz"):
        write_checkpoint(tmp_path / name, arrays, facts)
    assert checkpoints.latest_checkpoint_in(tmp_path).name == "step-00000002.npz"
    save_checkpoint(tmp_path, 3, arrays, facts)
    kept = ["step-00000002-mine.npz", "step-00000002.npz", "step-00000003.npz"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints.zipfile, "ZipFile", fail)
    with pytest.raises(UsageError, match=r"could not be read .Input/output error.; mend that and repeat"):
        checkpoints.latest_checkpoint_in(tmp_path)


def test_overwriting_deletes_no_folder_of_others_and_nothing_that_the_run_reads(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.path.mkdir()
    run.config.write_text('{"architectures": ["ResNet"]}')  # of another program
    with pytest.raises(UsageError, match="must hold a run to overwrite"):
        run.check(from_preset("smoke"), resume=False, overwrite=True)
    run.config.unlink()
    given = {"version": "x", "runs_dir": str(tmp_path)}
    run.begin(from_preset("smoke", **given), resume=False, overwrite=False)
    for source in (run.best, run.path):
        for reads in ({"is_use_ckpt": True, "ckpt_path": str(source)}, {"teacher": str(source)}):
            with pytest.raises(UsageError, match=r"is read from .*x, which --overwrite would empty"):
                run.check(from_preset("smoke", **given, **reads), resume=False, overwrite=True)


def test_an_export_that_was_killed_between_two_renames_is_put_back(tmp_path):
    run = RunFolder(tmp_path / "x")
    old = run.path / "exported" / ".aside-4194999-old-litert"
    old.mkdir(parents=True)
    (old / "x.tflite").write_bytes(b"older")
    (run.path / "exported" / ".aside-4194999-litert").mkdir()
    with run.locked():
        pass
    assert [path.relative_to(run.path).as_posix() for path in run.path.rglob("*.tflite")] == [
        "exported/litert/x.tflite"
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not say whether a process lives")
def test_what_a_living_process_is_writing_stays(tmp_path):
    run = RunFolder(tmp_path / "x")
    run.path.mkdir()
    written = run.path / f".aside-{os.getppid()}-model.onnx"
    written.write_text("hal")
    with run.locked():
        assert written.exists()
    os.utime(written, (0, 0))  # another process has that number now
    with run.locked():
        assert not written.exists()
    # Processes of two containers that share the folder mostly have the same number.
    elsewhere, killed = (run.path / f".aside-{os.getpid()}-{machine}model.onnx" for machine in ("0123abcd-", ""))
    elsewhere.write_text("hal")
    killed.write_text("hal")
    with run.locked():
        assert elsewhere.exists() and not killed.exists()
    os.utime(elsewhere, (0, 0))
    with run.locked():
        assert not elsewhere.exists()
    assert aside_of(elsewhere) != elsewhere and not is_being_written(aside_of(elsewhere))


def test_a_longer_training_that_was_killed_at_once_is_not_at_its_end(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    (run.checkpoints / "step-00000060.npz").touch()
    run.final.touch()
    run.note_start({"step": 0})
    assert not run.read_starts()[-1].get("final_step")
    run.note_final(60)
    assert run.has_final()
    run.note_start({"step": 60})
    assert not run.has_final()
    run.note_final(60)
    assert run.has_final()


def test_a_kill_while_a_run_is_emptied_leaves_a_run_that_can_be_begun(tmp_path, monkeypatch):
    config = from_preset("smoke")
    for survived in range(3):
        run = RunFolder(tmp_path / str(survived))
        with run.locked():
            run.begin(config, resume=False, overwrite=False)
        for folder in (run.checkpoints, run.figures):
            folder.mkdir()
        run.best.write_bytes(b"old")
        run.error_csv.write_text("old")
        deleted = []

        def delete(path, deleted=deleted, survived=survived):
            if len(deleted) == survived:
                raise KeyboardInterrupt
            deleted.append(path)
            path.rmdir()

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt), run.locked():
            patch.setattr(shutil, "rmtree", delete)
            run.begin(config, resume=False, overwrite=True)
        assert run.holds_run() and run.checkpoints.exists() == (survived == 0) and not run.error_csv.exists()
        with run.locked():
            run.begin(config, resume=True, overwrite=False)
            run.begin(config, resume=False, overwrite=True)
        assert not run.best.exists()


def test_a_run_without_its_checkpoints_is_not_begun_anew(trained_run, tmp_path, capsys):
    shutil.copytree(trained_run.path, tmp_path / "x")
    for path in (tmp_path / "x" / "checkpoints").iterdir():
        path.unlink()
    kept = {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert train_here(tmp_path, "--resume") == 2 and refused(capsys, "expected a checkpoint", "--overwrite")
    assert {path: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()} == kept


def test_the_checkpoint_before_stays_where_steps_grow_by_a_digit(tmp_path):
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, step, {"a": np.ones(3)}, FACTS | {"step": step})
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["step-100000000", "step-99999999"]


def test_runs_are_listed_while_one_deletes_files(tmp_path, monkeypatch):
    run, find_state = a_tested_run(tmp_path, 0), run_list._find_state
    (run.path / "passing").touch()

    def find_late(folder):
        (run.path / "passing").unlink(missing_ok=True)
        return find_state(folder)

    monkeypatch.setattr(run_list, "_find_state", find_late)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text('{"layers": 3}')  # of another program
    assert [row["name"] for row in run_list.list_runs(str(tmp_path))] == ["run0"]


def test_new_checkpoints_outlive_damaged_later_ones(tmp_path):
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for step in (7, 8, 9):
        (run.checkpoints / f"step-{step:08d}.npz").write_bytes(b"damaged")
    for step in (1, 2, 3):
        save_checkpoint(run.checkpoints, step, {"a": np.ones(3)}, FACTS | {"step": step})
    assert sorted(path.stem for path in run.checkpoints.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_large_checkpoint_takes_little_memory(tmp_path):
    run, arrays = RunFolder(tmp_path), {f"net/{index}": np.full(4_000_000, index, np.float32) for index in range(8)}
    tracemalloc.start()
    try:
        save_checkpoint(run.checkpoints, 1, arrays, FACTS)
        _, saving = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        path = run.latest_checkpoint()
        _, finding = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = path.stat().st_size
    assert size > 128e6 and saving < size / 2 and finding < size / 20
    read, facts = read_checkpoint(path)
    assert facts == FACTS == check_checkpoint(path)
    assert read.keys() == arrays.keys() and all((read[name] == arrays[name]).all() for name in arrays)


def test_a_checkpoint_is_a_plain_npz_file_of_variables_too(tmp_path):
    path = tmp_path / "step.npz"
    write_checkpoint(path, {"net/a": tf.Variable([1.0, 2.0]), "state/0": np.arange(3, dtype=np.uint32)}, FACTS)
    with np.load(path) as file:
        assert {name: file[name].dtype for name in file.files} == {"net/a": "f4", "state/0": "u4", "facts.json": "u1"}
        assert file["net/a"].tolist() == [1, 2] and json.loads(file["facts.json"].tobytes()) == FACTS


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.ones(2)},
        {"facts.json": np.frombuffer(b"{}", np.uint8)},
        {"a": np.array(["text"]), "facts.json": np.ones(1)},
    ],
)
def test_what_is_no_checkpoint_is_refused_by_the_check_too(tmp_path, arrays):
    path = tmp_path / "step.npz"
    np.savez(path, **arrays)
    for read in (check_checkpoint, read_checkpoint):
        with pytest.raises(UsageError, match="is no readable checkpoint"):
            read(path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_one_wrong_byte_is_found(tmp_path, place):
    path = tmp_path / "step.npz"
    write_checkpoint(path, {"a": np.random.default_rng(0).random(1_000_000)}, FACTS)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is no readable checkpoint"):
        check_checkpoint(path)


def test_the_lock_of_a_killed_process_is_free(tmp_path, capsys):
    code = f"import time; from resnet_study.run_folder import RunFolder\nwith RunFolder({str(tmp_path / 'x')!r}).locked():\n print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert train_here(tmp_path) == 2 and refused(capsys, "another process", "x")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    started = time.monotonic()
    with RunFolder(tmp_path / "x").locked():
        assert time.monotonic() - started < 5


# Disks


@pytest.fixture
def disk(tmp_path):
    """A small disk: call it with mount options to make it or to change it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", ("remount," if mounted else "") + options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
        mounted.append(True)
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train_here(folder, "--deterministic", "--tensorboard=true") == 0
    return folder / "x"


@pytest.mark.parametrize(
    "size",
    [
        pytest.param("4k", marks=pytest.mark.slow),
        pytest.param("100k", marks=pytest.mark.slow),
        pytest.param("1m", marks=pytest.mark.slow),
        pytest.param("2m", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(disk, undisturbed, capsys, size):
    place = disk(f"size={size}")
    assert train_here(place, "--deterministic", "--tensorboard=true") == 2
    assert refused(capsys, str(place)) and not list(place.rglob(".aside-*"))
    kept = [read_checkpoint(path)[1]["step"] for path in sorted((place / "x" / "checkpoints").glob("*.npz"))]
    print(f"{size}: checkpoints of steps {kept}")
    disk("size=50m")
    assert train_here(place, "--deterministic", "--tensorboard=true", "--resume") == 0
    assert crash_test.compare(RunFolder(undisturbed), RunFolder(place / "x")) == []


def test_a_place_that_may_only_be_read_is_refused_before_the_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(cifar10_input, "load_data", lambda _: pytest.fail("the images were read"))
    with pytest.raises(UsageError, match=f"{tmp_path} must be a folder to write to, .*give another --runs_dir"):
        train(from_preset("smoke", runs_dir=str(tmp_path / "new" / "runs")))


def test_a_read_only_disk_is_one_line_and_nothing_is_lost(disk, trained_run, capsys):
    import shutil

    place = disk("size=50m")
    shutil.copytree(trained_run.path, place / "x")
    disk("ro,size=50m")
    for flags in (["--mode=train", *TINY, "--version=new"], ["--mode=train", "--version=x", "--resume"],
                  ["--mode=train", *TINY, "--version=x", "--overwrite"], ["--mode=test", "--version=x"],
                  ["--mode=predict", "--version=x", "--images", str(ROOT / "examples" / "cat.jpg")]):  # fmt: skip
        assert main([*flags, f"--runs_dir={place}"]) == 2 and refused(capsys, str(place)), flags
    publish = ["--mode=publish", "--version=x", f"--runs_dir={place}", f"--results_dir={place}/results"]
    assert main(publish) == 2 and refused(capsys, str(place))
    assert crash_test.compare(trained_run, RunFolder(place / "x")) == []


# Numbers


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--train_steps=0"], ["--train_steps must be at least 1"]),
        (["--synthetic_images=39"], ["--synthetic_images must be at least 40"]),
        (["--train_batch_size=0"], ["--train_batch_size must be at least 1"]),
        (["--train_batch_size=2000000000"], ["--train_batch_size must be at most"]),
        (["--train_steps=99999999999999"], ["--train_steps must be below"]),
        (["--validation_fraction=0.95"], ["--validation_fraction must be at most 0.9"]),
        (["--validation_fraction=0", "--vali_random_label"], ["holds no images out"]),
        (["--validation_fraction=nan"], ["--validation_fraction must be a finite float32 number"]),
        (["--init_lr=inf"], ["--init_lr must be a finite float32 number"]),
        (["--report_freq=0"], ["--report_freq must be at least 1"]),
    ],
)
def test_numbers_that_make_no_sense(tmp_path, capsys, flags, words):
    assert train_here(tmp_path, *flags) == 2 and refused(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_run_is_a_whole_run(undrawn, tmp_path):
    flags = ["--synthetic_images=60", "--train_steps=1", "--report_freq=100", "--validation_batch_size=1000", "--train_batch_size=60",
             "--test_batch_size=1000"]  # fmt: skip
    assert train_here(tmp_path, *flags) == 0
    run = RunFolder(tmp_path / "x")
    assert run.read_history()["step"].tolist() == [0, 1]
    assert read_json(run.result, {})["test"]["images"] == 12  # all


def test_a_learning_rate_of_zero_learns_nothing(tmp_path):
    settings = {"model": "lenet5", "train_steps": 4, "report_freq": 2, "synthetic_images": 200, "tensorboard": False}
    trainer = Train(from_preset("smoke", init_lr=0.0, warmup_lr=0.0, runs_dir=str(tmp_path), **settings))
    before = [variable.numpy() for variable in trainer.model.trainable_variables]
    trainer.train()
    assert all(map(np.array_equal, before, trainer.model.trainable_variables))


def images_of(labels):
    return Split(np.zeros((len(labels), 32, 32, 3), np.uint8), np.int32(labels))


def test_one_class_and_one_image(tmp_path):
    config = from_preset(
        "smoke", model="lenet5", train_steps=2, report_freq=2, tensorboard=False, runs_dir=str(tmp_path)
    )
    one_class = ImageData(images_of([0] * 6), images_of([0] * 2), ("only",), "here")
    trainer = Train(config, data=one_class)
    trainer.train()
    assert trainer.history[-1]["validation_error"] == 0
    np.testing.assert_array_equal(trainer.test(one_class.test.images), 1)
    with pytest.raises(UsageError, match="class 'only' has 1 image"):
        Train(config, data=dataclasses.replace(one_class, train=images_of([0])))


def test_a_second_run_is_refused_before_its_data_are_read(tmp_path, monkeypatch):
    config = from_preset("smoke", version="x", runs_dir=str(tmp_path))
    monkeypatch.setattr(cifar10_input, "load_data", lambda _: pytest.fail("read the data"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text(config.to_json())
    with pytest.raises(UsageError, match="already holds a run"):
        train(config)


# Downloads


@pytest.fixture
def site(cifar_archive, tmp_path, monkeypatch):
    """A server of the archive on the loopback; `site.answers` is what it does, request by request, the last for ever."""
    content = cifar_archive.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server = self.server
            server.requests.append(self.path)
            if self.path == "/elsewhere":
                return self._send(content)
            answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            return getattr(self, f"_{answer}")()

        def _send(self, body, length=None, code=200):
            self.send_response(code)
            if length is not False:
                self.send_header("Content-Length", str(length or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _good(self):
            self._send(content)

        def _wrong(self):
            self._send(content[:1000] + b"?" + content[1001:])

        def _page(self):
            self._send(b"<html>Please log in</html>")

        def _empty(self):
            self._send(b"", False)

        def _cut(self):
            self._send(content[:5000], len(content))

        def _cut_unnoticed(self):
            self._send(content[:5000], False)

        def _stall(self):
            self._send(content[:5000], len(content))
            self.server.closing.wait(10)

        def _interrupt(self):
            self._send(content[:5000], len(content))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # interrupts the read it waits in
            self.server.closing.wait(10)

        def _hang_up(self):
            self.connection.close()

        def _redirect(self):
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def _circle(self):
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()

        def _missing(self):
            self.send_error(404)

        def _busy(self):
            self.send_error(503)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.requests, server.answers, server.closing = [], ["good"], threading.Event()
    server.sha256 = hashlib.sha256(content).hexdigest()
    server.handle_error = lambda *_: None  # a client that hangs up is part of the tests
    server.home = tmp_path / "keras"
    monkeypatch.setenv("KERAS_HOME", str(server.home))
    monkeypatch.setattr(cifar_files, "_SITE", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(download, "_WAITS", (0.01, 0.02))
    monkeypatch.setattr(download, "_TIMEOUT", 0.5)
    published = dataclasses.replace(_CIFAR10, sha256=server.sha256)
    monkeypatch.setitem(_PUBLISHED, "cifar10", published)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def cached(site):
    return [path.name for path in (site.home / "datasets").iterdir() if path.suffix != ".lock"]


BAD = ["wrong", "page", "empty", "cut", "cut_unnoticed", "stall", "hang_up", "missing", "busy", "circle"]


@pytest.mark.parametrize("answer", BAD)
def test_bad_downloads_are_tried_three_times_and_leave_nothing(site, answer):
    site.answers = [answer]
    with pytest.raises(
        UsageError, match=r"cifar-10-python\.tar\.gz is neither in Keras' cache nor could it be downloaded"
    ):
        load_data(from_preset("fast"))
    assert cached(site) == [] and len(site.requests) >= 3


@pytest.mark.parametrize("answers", [["good"], ["redirect"], *([bad, bad, "good"] for bad in BAD if bad != "circle")])
def test_downloads_that_come_right_in_the_end(site, answers):
    site.answers = list(answers)
    assert len(load_data(from_preset("fast")).train) == 300
    assert cached(site) == ["cifar-10-python.tar.gz"]
    requests = len(site.requests)
    load_data(from_preset("fast"))
    assert len(site.requests) == requests


def test_ctrl_c_and_a_kill_leave_nothing_that_is_read(site):
    site.answers = ["interrupt", "good"]
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            load_data(from_preset("fast"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "cifar-10-python.tar.gz" not in cached(site)
    (site.home / "datasets" / ".incomplete-cifar-10-python.tar.gz").write_bytes(b"half")
    assert len(load_data(from_preset("fast")).train) == 300 and cached(site) == ["cifar-10-python.tar.gz"]


def test_two_processes_end_with_one_good_copy(site):
    code = (
        f"import cifar10_input, dataclasses\nfrom resnet_study.data import cifar_files as c\nfrom hyper_parameters import from_preset\nc._SITE={cifar_files._SITE!r}\n"
        f"c._PUBLISHED['cifar10']=dataclasses.replace(c._CIFAR10, sha256={site.sha256!r})\n"
        "assert len(cifar10_input.load_data(from_preset('fast')).train) == 300"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=120)[1][-500:] for process in processes if process.wait()] == []
    assert cached(site) == ["cifar-10-python.tar.gz"] and len(site.requests) == 1


def a_tested_run(folder, seed):
    """A made-up run that can be published."""
    config = from_preset("smoke", runs_dir=str(folder), version=f"run{seed}", seed=seed)
    run = RunFolder(folder / f"run{seed}")
    with run.locked():
        run.begin(config, resume=False, overwrite=False)
    row = dict.fromkeys(HISTORY, 1.0)
    write_atomically(run.error_csv, ",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    tested = {"error": 10.0 + seed, "top5_error": 1.0, "loss": 1.0, "images": 10, "confusion_matrix": 6 * [6 * [1]]}
    facts = {"best_step": 1, "last_step": 1, "validation_error": 1.0, "predictions": "test"}
    write_json(run.result, facts | {"test": tested | {"per_class": []}})
    write_json(
        run.environment, [{"command": "", "commit": "c", "processor": "p", "cores": 2, "dtype_policy": "float32"}]
    )
    run.figures.mkdir()
    return run


def test_runs_published_at_the_same_time_all_stay(tmp_path, monkeypatch):
    """Without a lock, what one has read and not written yet, the other overwrites."""
    runs, results = [a_tested_run(tmp_path, seed) for seed in range(3)], tmp_path / "results"

    def read_slowly(path, kind):
        value = read_json(path, kind)
        if path.parent == results:
            time.sleep(0.2)
        return value

    publish(runs[0], "smoke", results)
    for run in runs[1:]:
        write_json(run.environment, [read_json(run.environment, list)[0] | {"processor": "another"}])
    monkeypatch.setattr(reports, "read_json", read_slowly)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        assert len(list(pool.map(lambda run: publish(run, "smoke", results), runs[1:]))) == 2
    rows = read_json(results / "smoke.json", [dict])
    assert rows[0]["values"] == {"0": 10.0, "1": 11.0, "2": 12.0} and rows[0]["runs"] == 3
    for run in runs:  # each page tells of all seeds
        page = (results / run.path.name / "README.md").read_text()
        assert "± 1.00 (3 seeds)" in page
        for seed, machine in enumerate(("p", "another", "another")):
            assert re.search(
                rf"\| test_error \| {seed} \| 1{seed}.00 % \| \S+ \|  \| 0 min \| {machine}, 2 cores", page
            )


def test_a_folder_that_was_trained_again_with_another_seed_has_one_row(tmp_path):
    run = a_tested_run(tmp_path, 0)
    publish(run, "smoke", tmp_path / "results")
    write_json(run.config, read_json(run.config, dict) | {"seed": 7, "split_seed": 3})
    publish(run, "smoke", tmp_path / "results")
    rows = [row for row in read_json(tmp_path / "results" / "smoke.json", [dict]) if row["metric"] == "test_error"]
    assert [row["values"] for row in rows] == [{"7": 10.0}] and "split_seed 3" in rows[0]["preset"]


def test_a_seed_that_was_trained_anew_as_another_is_gone_from_the_row(tmp_path):
    runs, results = [a_tested_run(tmp_path, seed) for seed in (0, 1)], tmp_path / "results"
    for run in runs:
        publish(run, "smoke", results)
    write_json(runs[0].config, read_json(runs[0].config, dict) | {"seed": 1})
    (results / "run0" / "heads.png").write_bytes(b"of before")
    publish(runs[0], "smoke", results)
    (row,) = (row for row in read_json(results / "smoke.json", [dict]) if row["metric"] == "test_error")
    assert row["values"] == {"1": 10.0} and row["folders"] == {"1": "run0"} and row["runs"] == 1
    assert not (results / "run0" / "heads.png").exists()


def test_a_run_that_went_on_elsewhere_tells_both_machines(tmp_path):
    run = a_tested_run(tmp_path, 0)
    starts = read_json(run.environment, list)
    write_json(run.environment, [*starts, *starts, starts[0] | {"processor": "another", "commit": "later"}])
    publish(run, "smoke", tmp_path / "results")
    row = read_json(tmp_path / "results" / "smoke.json", [dict])[0]
    assert row["hardware"] == "p, 2 cores, float32; then another, 2 cores, float32" and row["commit"] == "c .. later"


def test_a_run_that_was_extended_twice_says_that_no_command_repeats_it(tmp_path):
    run = a_tested_run(tmp_path, 0)
    (start,) = read_json(run.environment, list)
    write_json(run.environment, [start, *(start | {"extend": step} for step in (0, 10, 20))])
    write_json(run.config, read_json(run.config, dict) | {"train_steps": 40, "extend": 20})
    publish(run, "smoke", tmp_path / "results")
    row = read_json(tmp_path / "results" / "smoke.json", [dict])[0]
    assert "extended before at step 10" in row["preset"] and row["note"] == "no single command repeats it"


def test_a_run_is_not_published_among_what_a_study_measured(tmp_path):
    run, results = a_tested_run(tmp_path, 0), tmp_path / "results"
    publish(run, "smoke", results)
    write_json(results / "smoke.json", [row | {"values": [1.0]} for row in read_json(results / "smoke.json", [dict])])
    with pytest.raises(UsageError, match="holds what a study or a benchmark has measured; give another --experiment"):
        publish(run, "smoke", results)


def test_an_error_among_the_first_five_is_published_of_more_classes_alone(tmp_path):
    run, rows = a_tested_run(tmp_path, 0), tmp_path / "results" / "smoke.json"
    for classes in (6, 5):
        result = read_json(run.result, dict)
        result["test"]["confusion_matrix"] = classes * [classes * [1]]
        write_json(run.result, result)
        publish(run, "smoke", tmp_path / "results")
        assert ("test_top5_error" in [row["metric"] for row in read_json(rows, [dict])]) == (classes > 5)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0.00"), (0.0012, "0.001"), (0.005, "0.01"), (12.345, "12.35"), (1234.5, "1,234")]
)
def test_small_values_are_not_shown_as_none(value, shown):
    row = {"value": value, "unit": "%", "std": value, "runs": 2, "note": ""}
    assert reports._format_value(row) == f"{shown} % ± {shown} (2 seeds)"


def test_another_run_of_a_published_name_is_refused(tmp_path, capsys):
    run, results = a_tested_run(tmp_path, 0), tmp_path / "results"
    publish(run, "smoke", results)
    kept = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    write_json(run.config, read_json(run.config, dict) | {"model": "resnet14"})
    with pytest.raises(UsageError, match="run0 is of resnet8 on synthetic, received resnet14 on synthetic; rename"):
        publish(run, "other", results)
    write_json(results / "run0" / "files.json", [])
    with pytest.raises(UsageError, match="run0 holds a study; rename"):
        publish(run, "smoke", results)
    (results / "run0" / "files.json").unlink()
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == kept
    assert reports.main([str(tmp_path / "none")]) == 2 and "expected lists of results" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_results_that_stay_locked_are_one_line(tmp_path, monkeypatch):
    run, results = a_tested_run(tmp_path, 0), tmp_path / "results"
    results.mkdir()
    monkeypatch.setattr(reports, "_LOCK_SECONDS", 0.1)
    with filelock.FileLock(results / ".lock"), pytest.raises(UsageError, match="another process publishes"):
        publish(run, "smoke", results)
