"""Training, killing, resuming, testing: real runs on drawn images."""

import dataclasses
import functools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import (
    ROOT,
    TINY,
    assert_resumes_exactly,
    assert_same_state,
    check_run_folder,
    last_arrays,
    run_main,
    stop_after,
    tiny,
    user_environment,
)

import cifar10_input
import cifar10_test
from cifar10_input import load_data
from cifar10_main import main
from cifar10_test import evaluate
from cifar10_train import Interrupted, Train, train
from flowers.settings import FlowerParameters
from hyper_parameters import HyperParameters, from_preset
from resnet_study import devices
from resnet_study.checkpoints import checkpoint_of, read_checkpoint
from resnet_study.data.image_data import ImageData, Split, as_given, digest
from resnet_study.errors import UsageError
from resnet_study.evaluation import find_model
from resnet_study.metrics import confidence_interval, measure
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model
from resnet_study.studies.calibrate import calibrate
from resnet_study.training import optimizers, run_log, tensorboard_log

GUIDE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trained_run):
    """A copy of `trained_run` in `runs/`."""
    return RunFolder(shutil.copytree(trained_run.path, tmp_path_factory.mktemp("finished") / "runs" / "done"))


def test_a_run_folder_holds_everything(finished):
    check_run_folder(finished)
    history = pd.read_csv(finished.error_csv)
    assert history["step"].tolist() == [0, 3, 6] and len(list(finished.checkpoints.glob("*.npz"))) == 2
    assert history.columns.tolist() == [
        "step", "epoch", "train_error", "train_error_smoothed", "train_loss", "validation_loss", "validation_error",
        "learning_rate", "examples_per_sec", "seconds",
    ]  # fmt: skip
    assert history["train_loss"][0] == pytest.approx(np.log(10), abs=1)
    result = json.loads(finished.result.read_text())
    assert result["test"]["images"] == 40 and result["validation_error"] == history["validation_error"].min()
    probabilities = np.load(finished.predictions)
    assert probabilities.shape == (40, 10) and probabilities.dtype == np.float32
    assert "| total |" in (finished.figures / "layers.md").read_text()


def test_tensorboard_has_the_original_names(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished.tensorboard))
    events.Reload()
    names = set(events.Tags()["tensors"])
    for name in ("learning_rate", "train_loss", "train_loss_avg", "train_top1_error", "train_top1_error_avg", "val_loss",
                 "val_loss_avg", "val_top1_error", "val_top1_error_avg", "full_validation_error", "images",
                 "stem_relu/activations", "stage3_block1_relu2/sparsity"):  # fmt: skip
        assert name in names, name
    assert events.Tags()["graph"]
    history = finished.read_history()
    for name, column, unit in (
        ("learning_rate", "learning_rate", 1),
        ("train_loss", "train_loss", 1),
        ("train_top1_error", "train_error", 100),
        ("train_top1_error_avg", "train_error_smoothed", 100),
        ("val_loss", "validation_loss", 1),
        ("val_top1_error", "validation_error", 100),
        ("full_validation_error", "validation_error", 100),
    ):
        written = {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(name)}
        assert written == pytest.approx(dict(zip(history["step"], history[column] / unit, strict=True)), rel=1e-5), name


def test_a_smoothed_curve_leaves_out_the_untrained_network():
    assert run_log.smooth([90, 4, 2], 0.8) == pytest.approx((0.8 * 4 + 2) / 1.8)
    assert run_log.smooth([90], 0.8) == 90


def test_event_files_go_back_to_what_a_checkpoint_knew(tmp_path):
    for name in ("longer", "shorter", "newer", "damaged", "empty"):
        (tmp_path / f"events.out.tfevents.{name}").write_bytes(b"12345")
    (tmp_path / "notes.txt").write_bytes(b"12345")
    known = {"longer": 3, "shorter": 9, "damaged": "3", "empty": 0, "gone": 4}
    tensorboard_log.trim_events(tmp_path, {f"events.out.tfevents.{name}": size for name, size in known.items()})
    left = {path.name.removeprefix("events.out.tfevents."): path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {"longer": b"123", "shorter": b"12345", "notes.txt": b"12345"}


def test_mode_test_and_predict(finished, undrawn, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(finished.path.parent.parent)
    assert main(["--mode=test", "--version=done"]) == 0 and "top-1 error" in capsys.readouterr().out
    grey, rgb, rgba = (
        np.random.default_rng(0).integers(0, 256, shape, np.uint8) for shape in ((50, 40), (9, 80, 3), (32, 32, 4))
    )
    for name, image in (("grey.png", grey), ("colour.jpg", rgb), ("transparent.png", rgba)):
        cv2.imwrite(str(tmp_path / name), image)
    images = [str(tmp_path), str(tmp_path / "grey.png")]  # what is named twice is asked once
    assert main(["--mode=predict", "--version=done", "--images", *images]) == 0
    table = pd.read_csv(finished.path / "predictions.csv")
    assert len(table) == 3 and "transparent.png" in capsys.readouterr().out
    assert (table["probability_1"] >= table["probability_2"]).all() and table["class_1"].isin(
        json.loads(finished.data.read_text())["class_names"]
    ).all()


@pytest.mark.usefixtures("eager")
def test_mirror_images_are_reported_apart(finished):
    config = dataclasses.replace(finished.read_config(HyperParameters), runs_dir=str(finished.path.parent))
    plain, _ = cifar10_test.evaluate(config)
    both, _ = cifar10_test.evaluate(dataclasses.replace(config, test_flip=True))
    tested, model = cifar10_input.load_data(config).test, load_model(finished.best)
    answers = cifar10_test.test(model, tested.images) + cifar10_test.test(model, np.flip(tested.images, axis=2))
    assert both["test"].pop("error_flip") == pytest.approx(100 * np.mean(answers.argmax(axis=1) != tested.labels))
    assert both == plain
    # What was measured stays, also where a later test does not ask for it.
    assert "error_flip" in cifar10_test.evaluate(config)[0]["test"]
    finished.result.unlink()
    assert cifar10_test.evaluate(config)[0] == plain


@pytest.mark.usefixtures("eager")
def test_shifted_images_are_reported_apart(finished):
    config = dataclasses.replace(finished.read_config(HyperParameters), runs_dir=str(finished.path.parent))
    tested, model = cifar10_input.load_data(config).test, load_model(finished.best)
    views = [(tested.images, 2)]
    for lines in ([1, *range(31)], [*range(1, 32), 30]):  # the margin is reflected
        views.append((tested.images[:, lines][:, :, lines], 1))
    answers = sum(
        weight * (cifar10_test.test(model, images) + cifar10_test.test(model, images[:, :, ::-1]))
        for images, weight in views
    )
    shifted, _ = cifar10_test.evaluate(dataclasses.replace(config, test_shifts=True))
    expected = 100 * np.mean(answers.argmax(axis=1) != tested.labels)
    assert shifted["test"].pop("error_shifts") == pytest.approx(expected)
    finished.result.unlink()
    plain, _ = cifar10_test.evaluate(config)
    assert shifted == plain


def test_the_result_tells_the_work_of_the_training(finished):
    config = dataclasses.replace(finished.read_config(HyperParameters), runs_dir=str(finished.path.parent))
    result, _ = cifar10_test.evaluate(config)
    # ResNet-8: stem, then two convolutions on each of the maps of 32, 16 and 8 pixels; the shortcuts have no weights.
    macs = 32 * 32 * 9 * 16 * (3 + 16 + 16) + 16 * 16 * 9 * 32 * (16 + 32) + 8 * 8 * 9 * 64 * (32 + 64) + 64 * 10
    images = result["last_step"] * config.train_batch_size
    assert result["pflop"] == pytest.approx(3 * 2 * macs * images / 1e15)
    elsewhere = dataclasses.replace(config, test_ckpt_path=str(finished.best))
    assert "pflop" not in cifar10_test.evaluate(elsewhere)[0]


def test_checkpoint_keras_file_and_folder_are_the_same_network(finished):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    final = load_model(str(finished.final))
    for path in (str(finished.checkpoints / "step-00000006.npz"), str(finished.final)):
        np.testing.assert_allclose(
            cifar10_test.test(load_model(path), images), cifar10_test.test(final, images), atol=1e-6
        )
    assert load_model(str(finished.path)).name == "resnet8"


def test_one_image_alone_equals_its_row_and_the_last_batch_counts(finished):
    model = load_model(str(finished.best))
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
    together = cifar10_test.test(model, images, batch_size=3)
    assert together.shape == (7, 10) and together.dtype == np.float32
    for index in range(7):
        np.testing.assert_allclose(cifar10_test.test(model, images[index : index + 1])[0], together[index], atol=1e-5)
    assert cifar10_test.test(model, images[:0]).shape == (0, 10)
    with pytest.raises(UsageError, match=r"shape \(num_images, 32, 32, 3\), received \(7, 32, 32\)"):
        cifar10_test.test(model, images[..., 0])


def test_measure_by_hand():
    probabilities = np.float32([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    result = measure(probabilities, np.array([0, 1, 1, 2]), ["a", "b", "c"])
    assert result["error"] == 25 and result["accuracy"] == 75 and result["top5_error"] == 0
    assert result["accuracy_interval"] == list(confidence_interval(3, 4))
    assert result["loss"] == pytest.approx(-np.log([0.7, 0.8, 0.3, 0.6]).mean(), rel=1e-6)
    assert result["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert [row["recall"] for row in result["per_class"]] == [1, 0.5, 1] and result["per_class"][0]["precision"] == 0.5


def test_what_is_said_of_other_networks_lies_apart(finished):
    for path, name in (
        (finished.path, finished.path.name),
        (finished.best, f"{finished.path.name}-best"),
        (finished.checkpoints / "step-00000006.npz", f"{finished.path.name}-step-00000006"),
        ("cifar10", "resnet8-cifar10"),
        (finished.path / "net.onnx", f"{finished.path.name}-net-onnx"),
        (finished.path / "exported" / "onnx" / "net.onnx", "onnx-net"),
    ):
        config = from_preset("smoke", test_ckpt_path=str(path), runs_dir="~/runs")
        folder = find_model(config)[1].path
        assert folder == Path.home() / "runs" / f"test-{name}-synthetic"


def test_a_stored_run_is_tested_as_it_was_trained(finished, capsys):
    flags = ["--mode=test", f"--runs_dir={finished.path.parent}", "--version=done"]
    assert main([*flags, "--synthetic_images=300"]) == 2
    assert "received --synthetic_images=300; leave that out" in capsys.readouterr().err
    assert main([*flags, "--test_ckpt_path=cifar10", "--mode=train", "--resume"]) == 2
    assert "--mode=train reads no --test_ckpt_path" in capsys.readouterr().err


def test_a_second_run_needs_a_word(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.path.parent.parent)
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.is_file()}
    assert main(["--mode=train", *TINY, "--version=done"]) == 2
    error = capsys.readouterr().err
    assert "--resume" in error and "--overwrite" in error and len(error.strip().splitlines()) == 1
    assert main(["--mode=train", "--version=done", "--resume", "--init_lr=0.3"]) == 2
    assert "expected --init_lr=0.1, received 0.3" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in before}


def start(*flags, cwd):
    command = [sys.executable, str(ROOT / "cifar10_main.py"), *flags]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=user_environment()
    )


def wait_for(path_or_glob, process, run):
    deadline = time.monotonic() + 120
    while not list(run.path.glob(path_or_glob)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_between_reports_loses_no_step(tmp_path):
    flags = ["--mode=train", *TINY, "--model=lenet5", "--deterministic", "--train_steps=400", "--report_freq=200"]
    run = RunFolder(tmp_path / "runs" / "stopped")
    process = start(*flags, "--version=stopped", cwd=tmp_path)
    wait_for("error.csv", process, run)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "--version=stopped --resume" in output and "Traceback" not in output
    _, facts = read_checkpoint(run.latest_checkpoint())
    assert 0 < facts["step"] < 400 and facts["step"] % 200 and facts["interval"]["images"] == 32 * facts["step"]


def test_resuming_in_the_middle_of_an_interval_changes_nothing(tmp_path):
    """With averages; a run without them is resumed in test_towers."""
    settings = {
        "deterministic": True,
        "train_steps": 8,
        "report_freq": 4,
        "weight_averaging": 0.8,
        "lookahead_steps": 4,
    }
    assert_resumes_exactly(lambda version, **how: train(tiny(tmp_path, version=version, **settings), **how), 6)


def test_an_option_that_the_network_lacks_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="--model=plain20 has no option shortcut"):
        train(tiny(tmp_path, version="x", model="plain20", shortcut="B", dataset="cifar10", data_dir="/nowhere"))
    assert not (tmp_path / "x").exists()


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, capsys):
    run = RunFolder(shutil.copytree(finished.path, tmp_path / "x"))
    newest = run.checkpoints / "step-00000006.npz"
    newest.write_bytes(newest.read_bytes()[:5000])
    assert run.latest_checkpoint().name == "step-00000003.npz"
    assert "step-00000006.npz is no readable checkpoint" in capsys.readouterr().out
    content = bytearray((run.checkpoints / "step-00000003.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (run.checkpoints / "step-00000003.npz").write_bytes(content)
    with pytest.raises(UsageError, match=r"none of the 2 checkpoints .* can be read"):
        run.latest_checkpoint()


def test_a_checkpoint_of_another_network_is_refused(finished, tmp_path):
    other = Train(tiny(tmp_path, version="large", num_residual_blocks=2))
    with pytest.raises(UsageError, match=r"checkpoint of another network or optimizer: expected .* for resnet14"):
        other.restore(finished.latest_checkpoint())
    with pytest.raises(UsageError, match="does not fit --model=resnet14"):
        train(tiny(tmp_path, version="start", num_residual_blocks=2, is_use_ckpt=True, ckpt_path=str(finished.path)))


def test_starting_from_given_weights(finished, tmp_path):
    settings = {"init_lr": 0.0, "warmup_lr": 0.0, "train_steps": 3, "weight_averaging": 0.9}
    trainer = Train(tiny(tmp_path, is_use_ckpt=True, ckpt_path=str(finished.final), **settings))
    trainer.train()
    final = load_model(str(finished.final))
    # The averages begin there too.
    first, given = (run.read_history()["validation_loss"].iloc[row] for run, row in ((trainer.run, 0), (finished, -1)))
    assert first == pytest.approx(given, rel=1e-3)
    np.testing.assert_array_equal(
        trainer.model.get_layer("stem_conv").get_weights()[0], final.get_layer("stem_conv").get_weights()[0]
    )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny(tmp_path, version="wild", init_lr=1e30, warmup_steps=0, train_steps=60, precision="float32")
    with pytest.raises(UsageError, match=r"loss must be finite, received .* at step \d+ .*step-0000000\d\.npz"):
        train(config)
    arrays = last_arrays(RunFolder(tmp_path / "wild"))
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("held_out", [0.1, 0.0])
def test_weights_that_are_no_numbers_are_not_written(tmp_path, held_out):
    settings = {"init_lr": 1e30, "warmup_steps": 0, "report_freq": 1, "precision": "float32"}
    config = tiny(tmp_path, version="wild", validation_fraction=held_out, **settings)
    with pytest.raises(UsageError, match=r"loss must be finite, received nan at step 1 .*step-00000000\.npz"):
        train(config)
    assert RunFolder(tmp_path / "wild").latest_checkpoint().name == "step-00000000.npz"


def test_callbacks_that_set_the_learning_rate_are_refused(tmp_path):
    callback = keras.callbacks.LearningRateScheduler(lambda _: 0.1)
    with pytest.raises(UsageError, match="received the callback LearningRateScheduler"):
        train(tiny(tmp_path, version="scheduled"), callbacks=[callback])


def test_keras_callbacks_work_at_the_report_cadence(tmp_path):
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, sorted(logs)))

        def on_train_batch_end(self, batch, logs=None):
            seen.append(batch)

    stopping = keras.callbacks.EarlyStopping(monitor="val_loss", patience=0, min_delta=1e9)
    run = train(tiny(tmp_path, version="stopped", model="lenet5", train_steps=30), callbacks=[Watch(), stopping])
    logs = ["accuracy", "learning_rate", "loss", "val_accuracy", "val_loss"]
    assert seen == [0, 1, 2, (0, logs), 3, 4, 5, (1, logs)]
    assert pd.read_csv(run.error_csv)["step"].tolist() == [0, 3, 6]


@pytest.mark.usefixtures("eager")
def test_weight_decay_is_the_gradient_of_half_the_sum_of_squares(tmp_path):
    """One momentum step with and without decay differ by rate * decay * weight, for the variables that decay and no others."""
    rate, decay = 0.5, 0.25
    settings = {
        "init_lr": rate,
        "warmup_steps": 0,
        "lr_schedule": "constant",
        "optimizer": "momentum",
        "precision": "float32",
    }
    decays = {
        "none": set(),
        "kernels": {"kernel"},
        "weights": {"kernel", "bias"},
        "all": {"kernel", "bias", "gamma", "beta"},
    }
    after = {}
    for kinds in decays:
        how = {"weight_decay": 0.0} if kinds == "none" else {"weight_decay": decay, "weight_decay_on": kinds}
        trainer = Train(tiny(tmp_path, deterministic=True, **how, **settings))
        before = [variable.numpy() for variable in trainer.model.trainable_variables]
        images = np.random.default_rng(0).normal(size=(32, 32, 32, 3)).astype(np.float32)
        trainer._take_step(images, np.arange(32, dtype=np.int32) % 10)
        after[kinds] = trainer.model.trainable_variables
    for kinds, names in decays.items():
        for start_value, plain, decayed in zip(before, after["none"], after[kinds], strict=True):
            expected = -rate * decay * start_value if plain.name in names else 0
            np.testing.assert_allclose(
                decayed.numpy() - plain.numpy(), expected + 0 * start_value, atol=2e-6, err_msg=plain.path
            )


@pytest.mark.usefixtures("eager")
def test_the_offsets_of_batch_norm_learn_faster_but_do_not_decay_faster(tmp_path):
    changes = []
    for factor, decay in ((1.0, 0.0), (5.0, 0.0), (5.0, 0.1)):
        config = tiny(tmp_path, momentum=0.0, beta_lr_factor=factor, weight_decay=decay, weight_decay_on="all")
        trainer = Train(dataclasses.replace(config, precision="float32", warmup_steps=0))
        # At 0, where batch norm puts them, decay would not be seen.
        for variable in trainer.model.trainable_variables:
            variable.assign(variable + (variable.name == "beta"))
        before = [variable.numpy() for variable in trainer.model.trainable_variables]
        images = np.random.default_rng(0).normal(size=(32, 32, 32, 3)).astype(np.float32)
        trainer._take_step(images, np.arange(32, dtype=np.int32) % 10)
        after = trainer.model.trainable_variables
        changes.append([new.numpy() - old for new, old in zip(after, before, strict=True)])
    for variable, plain, fast, decayed in zip(after, *changes, strict=True):
        is_offset = variable.name == "beta"
        np.testing.assert_allclose(fast, plain * (5 if is_offset else 1), rtol=1e-3, atol=1e-6, err_msg=variable.path)
        if is_offset:
            np.testing.assert_allclose(decayed - fast, -0.1 * config.init_lr, rtol=1e-3)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    trainer = Train(tiny(tmp_path_factory.mktemp("averaged"), deterministic=True, weight_averaging=0.9))
    trainer.train()
    return trainer


def test_watching_the_test_error_changes_nothing_else(averaged, tmp_path):
    config = tiny(tmp_path, watch_test=True, weight_averaging=0.9, deterministic=True)
    first, second = train(config), averaged.run
    tables = [run.read_history().drop(columns=["seconds", "examples_per_sec"]) for run in (first, second)]
    watched = tables[0][["test_loss", "test_error"]]
    pd.testing.assert_frame_equal(tables[0].drop(columns=watched.columns), tables[1])
    assert_same_state(last_arrays(first), last_arrays(second))
    # What a later start was asked for stands in the command that goes on, what the run keeps does not.
    later = tiny(tmp_path, watch_test=True, test_flip=True, strategy="cpu", tensorboard=True, data_dir="new")
    flags = set(later.resume_command(first.path).split())
    assert {"--test_flip=true", "--strategy=cpu", "--tensorboard=true", "--data_dir=new"} < flags
    assert "--watch_test=true" not in flags
    flags = tiny(tmp_path, watch_test=False).resume_command(first.path).split()
    assert "--watch_test=false" in flags and not {"--test_flip=false", "--strategy=auto"} & set(flags)
    # Of the averaged weights, which are those that are kept.
    data = cifar10_input.load_data(config)
    probabilities = cifar10_test.test(load_model(str(first.final)), data.test.images)
    expected = measure(probabilities, data.test.labels, data.class_names)
    assert watched["test_error"].iloc[-1] == pytest.approx(expected["error"], abs=1)  # of another number format
    assert watched["test_loss"].iloc[-1] == pytest.approx(expected["loss"], rel=1e-2)


def test_the_example_of_the_page_on_training_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "Train(" in block)
    assert '"demo"' in code
    variables = {}
    exec(code.replace('"demo"', '"smoke", train_steps=2, synthetic_images=200, tensorboard=False'), variables)
    assert variables["probabilities"].shape == (len(variables["trainer"].data.test), 10)
    np.testing.assert_allclose(variables["probabilities"].sum(axis=1), 1, rtol=1e-5)


def test_measuring_the_untrained_network_changes_nothing(tmp_path):
    config = tiny(tmp_path, train_steps=1, optimizer="adam", weight_averaging=0.9, block_dropout=0.1)
    untrained = read_checkpoint(checkpoint_of(train(config).checkpoints, 0))[0]
    expected = {name: np.asarray(variable) for name, variable in Train(config).stage.variables.items()}
    assert any(name.startswith("state/") for name in expected)  # of the dropout
    assert_same_state(untrained, expected)


@pytest.mark.slow
def test_all_images_can_be_trained_on(tmp_path):
    """The last weights are kept, also of a run that was killed; nothing is told of a validation that does not take place."""
    settings = {
        "version": "",
        "validation_fraction": 0.0,
        "train_steps": 9,
        "weight_averaging": 0.9,
        "tensorboard": True,
    }
    trainer = Train(tiny(tmp_path, **settings))
    assert len(trainer.task.training) == 160 and trainer.run.path.name.endswith("-smoke-all-seed0")
    stop = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: setattr(trainer.model, "stop_training", epoch == 1)
    )
    trainer.train(callbacks=[stop])
    assert trainer.step == 6

    common = ("--validation_fraction=0", "--preset=smoke", f"--runs_dir={tmp_path}")
    run_main("--mode=train", "--resume", *common, cwd=tmp_path)
    run = trainer.run
    history = run.read_history()
    assert history["step"].tolist() == [0, 3, 6, 9] and not [name for name in history if name.startswith("validation")]
    result = json.loads(run.result.read_text())
    assert result["best_step"] == 9 and "validation_error" not in result
    best, final = load_model(run.best), load_model(run.final)
    for one, other in zip(best.weights, final.weights, strict=True):
        np.testing.assert_array_equal(one, other)

    run_main("--mode=publish", *common, f"--results_dir={tmp_path / 'results'}", cwd=tmp_path)
    rows = json.loads((tmp_path / "results" / "synthetic.json").read_text())
    assert [row["metric"] for row in rows] == ["test_error", "test_top5_error"]
    assert {row["preset"] for row in rows} == {"smoke, all training images, 9 steps, weight_averaging 0.9"}


def test_averaged_weights_watch_and_are_kept(averaged, tmp_path):
    plain = Train(tiny(tmp_path, deterministic=True))
    plain.train()
    for expected, received in zip(plain.model.variables, averaged.model.variables, strict=True):
        np.testing.assert_array_equal(expected, received)
    history = pd.read_csv(averaged.run.error_csv)
    np.testing.assert_array_equal(
        history["validation_error_unaveraged"], pd.read_csv(plain.run.error_csv)["validation_error"]
    )
    kernel = load_model(str(averaged.run.final)).get_layer("stem_conv").get_weights()[0]
    np.testing.assert_array_equal(kernel, averaged.stage.averages[0])
    assert not np.array_equal(kernel, averaged.model.variables[0])
    reloaded = load_model(str(averaged.run.latest_checkpoint())).get_layer("stem_conv").get_weights()[0]
    np.testing.assert_array_equal(reloaded, kernel)


def test_a_report_of_lookahead_tells_of_the_average_which_the_last_step_enters(tmp_path):
    trainer = Train(tiny(tmp_path, train_steps=5, report_freq=5, weight_averaging=0.8, lookahead_steps=2))
    trainer.train()
    assert not [name for name in pd.read_csv(trainer.run.error_csv) if "unaveraged" in name]
    for average, variable in zip(trainer.stage.averages, trainer.model.weights, strict=True):
        np.testing.assert_array_equal(average, variable, err_msg=variable.path)


def test_lookahead_sets_the_weights_to_their_average(tmp_path):
    """Also the moving statistics of batch norm; in between, the steps are those of SGD."""
    settings = {"train_steps": 4, "deterministic": True, "precision": "float32"}
    plain = Train(tiny(tmp_path, **settings))
    ahead = Train(tiny(tmp_path, weight_averaging=0.8, lookahead_steps=2, **settings))
    start = [variable.numpy() for variable in ahead.model.weights]
    images = np.random.default_rng(0).normal(size=(32, 32, 32, 3)).astype(np.float32)
    for step in range(2):
        for trainer in (plain, ahead):
            trainer._take_step(images, np.arange(32, dtype=np.int32) % 10)
        for old, free, average, variable in zip(
            start, plain.model.weights, ahead.stage.averages, ahead.model.weights, strict=True
        ):
            decay = 0.8 * 0.5**3  # half of the steps are done
            expected = old if step == 0 else decay * old + (1 - decay) * free.numpy()
            np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7, err_msg=variable.path)
            np.testing.assert_array_equal(variable, free if step == 0 else average, err_msg=variable.path)


def test_a_random_batch_validates_where_not_all_images_do(tmp_path):
    task = Train(tiny(tmp_path, is_full_validation=False, validation_batch_size=5)).task
    ((first, labels),), ((other, _),) = (task.validation_batches(step) for step in (3, 6))
    assert len(labels) == 5 < len(task.validation) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "init_lr": 0.001, "model": "alexnet_c", "dropout": 0.1, "label_smoothing": 0.1},
        {"weight_averaging": 0.8, "lookahead_steps": 2, "is_full_validation": False, "validation_batch_size": 5},
        {"model": "resnet8", "shortcut": "B", "normalization": "pixel_mean", "padding_mode": "zero", "flip": "random"},
        {
            "lr_schedule": "step",
            "decay_step0": 1,
            "decay_step1": 2,
            "train_batch_size": 50,  # more than there are training images
            "synthetic_images": 60,
            "precision": "bfloat16",
            "vali_random_label": True,
        },
    ],
)
def test_settings_train(tmp_path, settings):
    config = tiny(tmp_path, version="x", train_steps=3, **settings)
    run = train(config)
    history = pd.read_csv(run.error_csv)
    assert np.isfinite(history.to_numpy()).all()
    assert history["step"].tolist() == [0, 3] and run.read_config(HyperParameters) == config
    assert (run.stored_policy() == "mixed_bfloat16") == (config.precision == "bfloat16")


def test_overwrite_empties_runs_only(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="received other files"):
        train(tiny(tmp_path, version="photos"), overwrite=True)
    assert (tmp_path / "photos" / "holiday.jpg").exists()
    run = RunFolder(tmp_path / "again")
    run.begin(tiny(tmp_path, version="again"), resume=False, overwrite=False)
    (run.path / "result.json").write_text("old")
    train(tiny(tmp_path, version="again"), overwrite=True)
    assert not run.result.exists()


@pytest.mark.slow
def test_two_devices_train_as_one(tmp_path):
    """Two logical CPU devices share each batch: the losses of 20 steps, the checkpoint and the resumed rest are those of one."""
    code = """
import keras, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from cifar10_train import train
from hyper_parameters import from_preset

class Losses(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        losses[-1].append(logs["loss"])

losses = []
# A small rate: a large one amplifies the last bits of different sums step by step.
settings = dict(precision="float32", init_lr=0.002, warmup_lr=0.002, report_freq=10, synthetic_images=200, runs_dir=sys.argv[1])
settings |= dict(weight_averaging=0.8, lookahead_steps=4, towers=1)  # of towers, batch norm sees a shard alone
for strategy in ("cpu", "mirrored"):
    losses.append([])
    for steps in (10, 20):
        config = from_preset("smoke", train_steps=20, strategy=strategy, version=strategy, lr_schedule="constant", **settings)
        class Stop(Losses):
            def on_epoch_end(self, epoch, logs=None):
                self.model.stop_training = steps == 10
        train(config, resume=True, callbacks=[Stop()])
assert len(losses[0]) == len(losses[1]) == 20
for one, two in zip(*losses):
    assert abs(one - two) <= 1e-4 * one, losses
# Batches in parts, and another network in the same process.
for version, changes in (("parts", {"accumulate": 2}), ("other", {"model": "resnet14"})):
    train(from_preset("smoke", train_steps=10, strategy="mirrored", version=version, **settings, **changes))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=user_environment()
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all((tmp_path / version / "best.keras").exists() for version in ("mirrored", "parts", "other"))


def test_devices_that_share_a_batch_are_several_and_get_equal_parts(tmp_path):
    with pytest.raises(UsageError, match="needs two devices or more, TensorFlow found 1"):
        Train(tiny(tmp_path, strategy="mirrored"))
    with pytest.raises(UsageError, match="a multiple of the 2 devices, received 7"):
        devices.choose_towers(1, types.SimpleNamespace(num_replicas_in_sync=2), 7)


@pytest.mark.parametrize(
    ("kind", "fused", "options"),
    [
        (keras.optimizers.Adam, optimizers.FusedAdam, {"beta_1": 0.8}),
        (keras.optimizers.SGD, optimizers.FusedSGD, {"momentum": 0.8}),
        (keras.optimizers.SGD, optimizers.FusedSGD, {"momentum": 0.8, "nesterov": True}),
    ],
)
def test_fused_optimizers_step_as_the_plain_ones(kind, fused, options):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=(6, 5, 3)).astype(np.float32)
    values, states = [], []
    for each in (kind, fused):
        variable = keras.Variable(start)
        optimizer = each(0.01, **options)
        optimizer.build([variable])
        for step, gradient in enumerate(gradients):
            optimizer.learning_rate.assign(0.01 / (step + 1))
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        values.append(variable.numpy())
        states.append([state.numpy() for state in optimizer.variables])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)
    assert np.abs(values[1] - start).min() > 1e-4
    for one, other in zip(*states, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-7)


def given_images(shift=0, **changes) -> ImageData:
    images = np.random.default_rng(shift).integers(0, 256, (60, 16, 16, 3), np.uint8)
    parts = {"train": Split(images, np.arange(60) % 5), "test": Split(images[:20], np.arange(20) % 5)} | changes
    return ImageData(class_names=tuple("abcde"), found="a program", **parts)


@pytest.mark.parametrize(
    "settings",
    [{"teacher": "resnet9"}, {"class_weight": "balanced"}, {"balanced_sampling": True}, {"train_random_label": True}],
)
def test_several_labels_that_a_program_gives_refuse_what_is_for_one(tmp_path, settings):
    parts = {"train": given_images().train, "test": given_images().test}
    several = {name: Split(part.images, np.eye(5, dtype=np.uint8)[part.labels]) for name, part in parts.items()}
    (name,) = settings
    with pytest.raises(
        UsageError, match=f"--{name} is for one label of each image, received images with several labels"
    ):
        Train(tiny(tmp_path, **settings), data=given_images(**several))


def test_what_is_no_settings_is_told_so():
    for function in (train, evaluate, functools.partial(cifar10_test.predict, paths=["a.png"])):
        with pytest.raises(UsageError, match=r"config must be HyperParameters.*received str"):
            function("demo")
    with pytest.raises(UsageError, match=r"received FlowerParameters; flowers\.evaluate tests"):
        evaluate(FlowerParameters(data_dir="x"))


def test_images_that_a_program_gives_may_have_labels_as_keras_has_them(tmp_path):
    finished, drawn = [], []
    for version, labels in (("a", np.arange(60) % 5), ("b", (np.arange(60) % 5).astype(np.uint8)[:, None])):
        data = given_images(train=Split(given_images().train.images, labels))
        trainer = Train(tiny(tmp_path, version=version, model="lenet5", train_steps=2), data=data)
        drawn.append((random.random(), np.random.uniform()))
        trainer.train()
        drawn.append((random.random(), np.random.uniform()))
        finished.append(trainer.history[-1]["train_loss"])
    assert finished[0] == finished[1]
    assert len({number for pair in drawn for number in pair}) == 8  # a search at random tries another value each time
    other = tiny(tmp_path, version="b", model="lenet5", train_steps=2, seed=3, synthetic_images=300)
    with pytest.raises(
        UsageError, match="was trained with --seed=0 --synthetic_images=200, received --seed=3 --synthetic_images=300"
    ):
        evaluate(other)
    with pytest.raises(UsageError, match="received --seed=3 --synthetic_images=300"):
        cifar10_test.export(other, "keras")
    with pytest.raises(UsageError, match="received --seed=3 --synthetic_images=300"):
        calibrate(other)


def test_a_run_goes_on_and_is_tested_on_the_images_that_it_was_given_only(tmp_path):
    config = tiny(tmp_path, version="given", model="lenet5", train_steps=2)
    with pytest.raises(Interrupted, match=r"go on with: Train\(config, data=THE SAME IMAGES\)"):
        Train(config, data=given_images()).train(callbacks=[stop_after(1)])
    Train(config, data=given_images()).train(resume=True)
    for data in (None, given_images(shift=1), dataclasses.replace(given_images(), class_names=tuple("vwxyz"))):
        with pytest.raises(UsageError, match=r"a program gave .* its images"):
            Train(config, data=data).train(resume=True)
    Train(config, data=given_images()).train(resume=True)
    with pytest.raises(UsageError, match="a program gave"):
        evaluate(config)
    given = json.loads(Train(config).run.data.read_text())["given"]
    data = as_given(given_images())  # whose labels are as those of the library
    assert given == digest(data) == digest(dataclasses.replace(data, class_names=list("abcde")))
    Train(config).train(overwrite=True)
    assert "given" not in json.loads((tmp_path / "given" / "data.json").read_text())
    own = load_data(config)
    config = dataclasses.replace(config, version="own")
    Train(config, data=own).train()
    assert evaluate(config)[0]["test"]["images"] == len(own.test)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": Split(np.zeros((9, 8, 8, 3), np.float32), np.arange(9) % 5)}, "must be uint8 .* received float32"),
        (
            {"train": Split(np.zeros((9, 3, 8, 8), np.uint8), np.arange(9) % 5)},
            r"raw pixels 0..255, received uint8 \[9, 3, 8, 8\]",
        ),
        (
            {"test": Split(np.zeros((5, 16, 16, 3), np.uint8), np.arange(1, 6))},
            r"test labels must be 0..4, .* received 1..5",
        ),
        ({"test": Split(np.zeros((5, 16, 16, 3), np.uint8), np.ones(5))}, "whole numbers .* received float64"),
    ],
)
def test_images_and_labels_that_cannot_be_used_are_refused(tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        Train(tiny(tmp_path), data=given_images(**change))
    one = ImageData(
        *(Split(np.zeros((8, 16, 16, 3), np.uint8), np.arange(8)[:, None] % 2) for _ in range(2)), ("a",), "x"
    )
    assert as_given(one).multi_label  # one class that an image has or has not
    with pytest.raises(UsageError, match="received 60 images and 50 labels"):
        Split(given_images().train.images, np.zeros(50, int))


def test_a_run_whose_images_were_split_before_goes_on_with_its_parts(tmp_path):
    """Those of several labels, of which a class of one image might be held out."""
    labels = np.eye(1, 8, dtype=np.int32).repeat(60, axis=0)
    labels[range(7), range(1, 8)] = 1
    data = given_images(
        train=Split(given_images().train.images, labels), test=Split(given_images().test.images, labels[:20])
    )
    data = dataclasses.replace(data, class_names=tuple("abcdefgh"))
    config = next(
        config
        for config in (
            tiny(tmp_path, version="old", model="lenet5", train_steps=2, validation_fraction=0.3, split_seed=seed)
            for seed in range(9)
        )
        if len(
            set(
                map(
                    len,
                    [
                        np.unique(np.flatnonzero(cifar10_input.split_data(data, config, keeps)[0].labels.any(axis=0)))
                        for keeps in (True, False)
                    ],
                )
            )
        )
        == 2
    )
    old, new = (cifar10_input.split_data(data, config, keeps)[0] for keeps in (False, True))
    assert not np.array_equal(old.labels, new.labels) and len(old) == len(new)
    assert np.array_equal(Train(config, data=data).task.training.labels, new.labels)
    Train(config, data=data).train()
    facts = json.loads((tmp_path / "old" / "data.json").read_text())
    assert facts.pop("keeps_last") is True
    (tmp_path / "old" / "data.json").write_text(json.dumps(facts))
    trainer = Train(config, data=data)
    assert np.array_equal(trainer.task.training.labels, old.labels)
    with pytest.raises(UsageError, match="has split its images as the run"):
        trainer.train(overwrite=True)
    trainer.train(resume=True)
    assert json.loads((tmp_path / "old" / "data.json").read_text())["keeps_last"] is False


def test_a_run_of_a_folder_does_not_go_on_with_images_that_a_program_gives(tmp_path):
    for number in range(12):
        (tmp_path / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(
            str(tmp_path / "images" / "ab"[number % 2] / f"{number}.png"), np.full((16, 16, 3), number, np.uint8)
        )
    config = tiny(
        tmp_path,
        version="own",
        model="lenet5",
        dataset="folder",
        data_dir=str(tmp_path / "images"),
        image_size=16,
        train_steps=2,
        train_batch_size=4,
    )
    Train(config).train()
    with pytest.raises(UsageError, match=r"goes on with the images that .* has read, received others"):
        Train(config, data=dataclasses.replace(load_data(config), fingerprint="")).train(resume=True)
    Train(config).train(resume=True)
