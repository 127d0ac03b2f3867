"""The command line: fast help, one-line errors, exit codes."""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import ROOT, TINY, run_main

import cifar10_main
import flowers.evaluate
import flowers.predict
import flowers.train
from cifar10_main import main, make_parser
from cifar10_train import train
from hyper_parameters import HyperParameters, from_flags
from resnet_study.checkpoints import HISTORY, write_checkpoint
from resnet_study.command_settings import check_read
from resnet_study.environment import processor_flags
from resnet_study.files import read_json, write_json
from resnet_study.reports import model_cards
from resnet_study.run_folder import RunFolder
from resnet_study.training.stage import Stage


def test_help_needs_neither_tensorflow_nor_keras():
    code = (
        "import sys, cifar10_main, flowers.train, flowers.evaluate, flowers.predict, flowers.export\n"
        "for module in (cifar10_main, flowers.train, flowers.evaluate, flowers.predict, flowers.export):\n"
        "    try: module.main(['--help-all'])\n    except SystemExit: pass\n"
        "assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 30  # not a speed test: loading TensorFlow would not be noticed by it
    for group in (
        "run and report",
        "data and augmentation",
        "network",
        "training and learning rate",
        "validating, testing and loading",
        "--cache_features",
    ):
        assert group in done.stdout


@pytest.mark.parametrize("command", [cifar10_main, flowers.train, flowers.evaluate, flowers.predict])
def test_the_short_help_fits_a_screen_and_names_the_long_one(command, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    text = capsys.readouterr().out
    assert not end.value.code and len(text.splitlines()) < 60
    assert "--help-all" in text and "--version" in text and "examples:" in text and "--split_seed" not in text


def test_versions_are_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version-info"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["resnet-study", "keras", "tensorflow", "Python"]
    assert keras.__version__ in lines[1] and "core" in lines[4]


def test_a_shell_completes_flags(capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit):
        main(["--print-completion=bash"])
    script = capsys.readouterr().out
    assert "complete -o" in script and script.rstrip().endswith(" cifar10") and "--test_ckpt_path" in script


def test_runs_are_listed_with_their_state(tmp_path, capsys):
    config = from_flags({"preset": "smoke", "train_steps": 20})
    runs = {name: RunFolder(tmp_path / name) for name in ("done", "waiting", "busy", "broken", "longer")}
    for run in runs.values():
        run.begin(config, resume=False, overwrite=False)
    history = pd.DataFrame([dict.fromkeys((*HISTORY, "validation_loss", "validation_error"), 20.0)])
    runs["done"].error_csv.write_text(history.to_csv(index=False))
    runs["done"].final.write_bytes(b"weights")
    # One that was made longer, and stopped, still has the last weights of before.
    runs["longer"].final.write_bytes(b"weights")
    os.utime(runs["longer"].final, (1, 1))
    interval = {"images": 0, "wrong": 0.0, "loss": 0.0, "seconds": 0.0}
    facts = {"step": 15, "history": [], "interval": interval, "seconds": 0.0, "net": {}}
    runs["longer"].checkpoints.mkdir()
    write_checkpoint(runs["longer"].checkpoints / "step-00000015.npz", {"a": np.zeros(2, np.float32)}, facts)
    write_json(runs["done"].result, {"test": {"error": 12.5}, "predictions": "test"})
    write_json(tmp_path / "test-old" / "result.json", {"test_error": 3.25})
    write_json(tmp_path / "comparison" / "study.json", {})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("not of ours")
    runs["broken"].config.write_text("{")
    with runs["busy"].locked():
        code = "import sys, cifar10_main; cifar10_main.main(sys.argv[1:]); assert not {'tensorflow', 'keras'} & set(sys.modules)"
        command = [sys.executable, "-c", code, "runs", f"--runs_dir={tmp_path}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert (
        "finished, step 20 of 20" in lines["done"] and "12.50 % (test)" in lines["done"] and "0:00:20" in lines["done"]
    )
    assert "stopped, step 15 of 20" in lines["longer"]
    assert "stopped, step 0 of 20" in lines["waiting"] and "running, step 0 of 20" in lines["busy"]
    assert "damaged" in lines["broken"] and "3.25 %" in lines["test-old"] and "study" in lines["comparison"]
    assert "notes" not in lines
    assert main(["--mode=runs", f"--runs_dir={tmp_path}"]) == 0 and "stopped, step 0 of 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("resnet_study.training.stage.Stage.__init__", "lower --maxout=2"),
        ("resnet_study.training.stage.Stage.train", "lower --train_batch_size=32 or --validation_batch_size=250, in a new run"),
        ("resnet_study.predictor.Predictor.predict", "give smaller batches (--train_batch_size, --test_batch_size)"),
    ],
)  # fmt: skip
def test_too_little_memory_is_one_line(tmp_path, monkeypatch, capsys, place, remedy):
    def fail(*_, **__):
        raise tf.errors.ResourceExhaustedError(
            None, None, "OOM when allocating tensor with shape[64,640000000] and type float"
        )

    monkeypatch.setattr(place, fail)
    asks = ["--mode=predict", "--test_ckpt_path=cifar10", "--images", str(ROOT / "examples" / "cat.jpg")]
    trains = ["--mode=train", *TINY, "--maxout=2"]
    assert main([*(asks if "Predictor" in place else trains), f"--runs_dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: there is too little memory for a tensor of 64 x 640000000 numbers; ")
    assert remedy in line


def test_a_batch_that_a_device_cannot_hold_names_one_that_it_can(tmp_path, monkeypatch, capsys):
    train_batch = Stage.train

    def train(stage, images, labels, step):
        if len(images) > 8:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[32,16]")
        return train_batch(stage, images, labels, step)

    monkeypatch.setattr(Stage, "train", train)
    assert main(["--mode=train", *TINY, f"--runs_dir={tmp_path}"]) == 2
    expected = "for a tensor of 32 x 16 numbers; in a new run, --train_batch_size=8 fits; --accumulate=4 computes the batch of 32 in parts"
    assert expected in capsys.readouterr().err


def test_a_batch_that_the_memory_cannot_hold_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("resnet_study.training.memory.free_memory", lambda: 500_000_000)
    flags = ["--mode=train", *TINY, f"--runs_dir={tmp_path}", "--train_batch_size"]
    assert main([*flags, "2048"]) == 2
    told = capsys.readouterr().err
    assert re.search(r"--train_batch_size=2048 needs about .* GB of memory, 0.1 are free; --train_batch_size=", told)
    assert not any(tmp_path.iterdir())
    fits = re.search(r"(\d+) fits", told)[1]
    assert 32 < int(fits) < 1024
    assert main([*flags, "3072", "--accumulate=3"]) == 2
    fits = re.search(r"(\d+) fits", capsys.readouterr().err)[1]
    assert 32 < int(fits) < 3072 and int(fits) % 24 == 0  # what --accumulate divides
    monkeypatch.setattr("resnet_study.training.memory.free_memory", lambda: 0)
    assert (
        main([*flags, "32"]) == 2
        and "0.0 are free; give a smaller --model or smaller images" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--mode=train", "--learning_rate=1"], "unrecognized arguments"),
        (["--mode=fly"], "invalid choice: 'fly'"),
        (["--mode=train", "--preset=best"], "invalid choice: 'best'"),
        (["--mode=train", "--dataset=digits", "--model=vgg"], "received 'vgg'; give one of resnet20"),
        (["--mode=train", "--train_steps=many"], "expected a whole number of at least 1, received 'many'"),
        (["--mode=train", "--momentum=high"], "--momentum: expected a number from 0 to"),
        (["--mode=train", "--init_lr=-1"], "--init_lr must be at least 0"),
        (["--mode=train", "--augment=maybe"], "expected true or false"),
        (["--mode=train", "--data_dir=/no/such/folder"], "--data_dir must hold cifar-10-batches-py/"),
        (["--mode=train", "--resume", "--overwrite"], "exclude each other"),
        (["--mode=test", "--version=never"], "expected a run in runs/never"),
        (["--mode=test", "--test_ckpt_path=nowhere.keras", "--dataset=digits"], "expected a run folder, .keras file"),
        (["--mode=predict", "--test_ckpt_path=cifar10"], "needs --images"),
        (["--mode=export", "--test_ckpt_path=cifar10", "--compare=abc"], "expected an int >= 1, received 'abc'"),
        (["--mode=predict", "--test_ckpt_path=cifar10", "--images", "nothing.png"], "received 'nothing.png'"),
        (["--mode=publish", "--version=never"], "expected a run in runs/never"),
        (["--mode=publish", "--test_ckpt_path=cifar10"], "publish a run, by its --version"),
        (["--mode=report", "--test_ckpt_path=cifar10"], "report a run, by its --version"),
        (["--mode=test", "--test_ckpt_path=cifar10", "--version=mine"], "both name a model"),
        (["--mode=compare", "--models=resnet8", "--model=resnet20"], "--model and --models exclude each other"),
        (["--mode=compress", "--num_residual_blocks=5"], "reads no --num_residual_blocks"),
        (["--mode=serve", "--port=99999"], "--port must be 0 (any that is free) to 65535, received 99999"),
        (["--mode=serve", "--versions=a,b", "--version=c"], "--versions and --version exclude each other"),
        ([], "argument is required: --mode"),
        (["--mod=train"], "did you mean --mode or"),
        (["runs"], "found none in runs"),
    ],
)
def test_mistakes_give_one_line_and_2(tmp_path, monkeypatch, capsys, flags, expected):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.strip().splitlines()) == 1 and error.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


_FILE = "--test_ckpt_path=cifar10"
_PRUNED = ["--mode=prune", _FILE, "--sparsity=0.5"]


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--mode=models", "--dataset=mnist"], "dataset"),
        (["--mode=runs", "--model=resnet20"], "model"),
        (["--mode=runs", "--version=x"], "version"),
        (["--mode=report", "--version=x", "--train_steps=5"], "train_steps"),
        (["--mode=report", "--version=x", "--model=resnet20"], "model"),
        (["--mode=report", "--value_range=0,1"], "value_range"),
        (["--mode=report", "--versions=a,b", "--dataset=folder", "--labels=a.csv"], "dataset"),
        (["--mode=serve", _FILE, "--train_steps=5"], "train_steps"),
        (["--mode=serve", _FILE, "--test_batch_size=5"], "test_batch_size"),
        (["--mode=serve", _FILE, "--jpeg_size=full"], "jpeg_size"),
        (["--mode=serve", "--test_ckpt_path=a.keras", "--model=resnet20"], "model"),
        (["--mode=serve", "--strategy=cpu"], "strategy"),
        (["--mode=test", _FILE, "--train_steps=5"], "train_steps"),
        (["--mode=test", _FILE, "--init_lr=9"], "init_lr"),
        (["--mode=test", _FILE, "--normalization=pixel_mean"], "normalization"),
        (["--mode=test", _FILE, "--precision=float32"], "precision"),
        (["--mode=test", _FILE, "--watch_test"], "watch_test"),
        (["--mode=test", _FILE, "--jpeg_size=full"], "jpeg_size"),
        (["--mode=test", "--test_ckpt_path=a.keras", "--model=resnet20"], "model"),
        (["--mode=test", "--version=x", "--strategy=cpu"], "strategy"),
        (["--mode=test", "--version=x", "--tensorboard"], "tensorboard"),
        (["--mode=test", "--version=x", "--watch_test"], "watch_test"),
        (["--mode=test", "--version=x", "--jpeg_size=full"], "jpeg_size"),
        (["--mode=predict", _FILE, "--test_flip"], "test_flip"),
        (["--mode=predict", _FILE, "--init_lr=9"], "init_lr"),
        (["--mode=predict", "--version=x", "--test_shifts"], "test_shifts"),
        (["--mode=predict", "--version=x", "--watch_test"], "watch_test"),
        (["--mode=predict", "--version=x", "--jpeg_size=full"], "jpeg_size"),
        (["--mode=export", _FILE, "--test_flip"], "test_flip"),
        (["--mode=export", "--version=x", "--test_shifts"], "test_shifts"),
        (["--mode=export", "--version=x", "--strategy=cpu"], "strategy"),
        (["--mode=calibrate", "--version=x", "--tensorboard"], "tensorboard"),
        (["--mode=calibrate", "--version=x", "--test_flip"], "test_flip"),
        (["--mode=publish", "--version=x", "--watch_test"], "watch_test"),
        (["--mode=train", _FILE], "test_ckpt_path"),
        ([*_PRUNED, "--is_use_ckpt"], "is_use_ckpt"),
        ([*_PRUNED, "--ckpt_path=x"], "ckpt_path"),
        ([*_PRUNED, "--quantize_aware"], "quantize_aware"),
    ],
)
def test_flags_that_a_mode_does_not_read_are_refused(tmp_path, monkeypatch, capsys, flags, name):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {flags[0]}") and f" reads no --{name}, received --{name}=" in error
    assert len(error.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_a_served_run_is_read_as_it_was_trained(trained_run, capsys):
    for named in (f"--test_ckpt_path={trained_run}", f"--versions={trained_run.best}"):
        for flag in ("dataset=mnist", "model=resnet20", "resize=pad"):
            assert main(["--mode=serve", named, f"--{flag}"]) == 2
            assert f"--mode=serve of a run reads no --{flag.partition('=')[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--synthetic_images=500"], "--synthetic_images needs --dataset=synthetic, received --synthetic_images=500"),
        (["--test_fraction=0.2"], "--test_fraction needs --dataset=folder"),
        (["--on_bad_image=skip"], "--on_bad_image needs image files"),
        (["--jpeg_size=full"], "--jpeg_size needs image files"),
        (["--heads=kind", "--head_weights=2"], "--head_weights needs several --heads"),
        (["--teacher_temperature=3"], "--teacher_temperature needs --teacher"),
        (["--teacher_share=0.3"], "--teacher_share needs --teacher"),
        (["--model=lenet5", "--optimizer=momentum", "--beta_lr_factor=2"], "batch norm, which --model=lenet5 lacks"),
        (["--validation_fraction=0", "--split_seed=3"], "--split_seed needs --validation_fraction above 0"),
        (["--augment=false", "--rotation=9"], "--rotation needs --augment=true"),
        (["--augment=false", "--flip=random"], "--flip needs --augment=true"),
        (["--augment=false", "--padding_size=2"], "--padding_size needs --augment=true"),
        (["--augment=false", "--padding_mode=zero"], "--padding_mode needs --augment=true"),
        (["--augment=false", "--cutout=8"], "--cutout needs --augment=true"),
        (["--cutout=33"], "--cutout must be at most 32"),
        (["--is_use_ckpt", "--ckpt_path=cifar10", "--decay_step0=10"], "--decay_step0 needs --lr_schedule=step"),
        (["--teacher=resnet9", "--teacher_share=0"], "--teacher needs --teacher_share above 0"),
        (["--teacher=resnet9", "--teacher_share=1", "--label_smoothing=0.1"], "needs --teacher_share below 1"),
        (["--dataset=mnist", "--cutout=29"], "--cutout must be at most 28"),
        (["--lr_schedule=constant", "--final_lr=0.1"], "--final_lr needs --lr_schedule=linear, cosine or plateau"),
        (["--preset=he2015", "--final_lr=0.1"], "--final_lr needs --lr_schedule=linear"),
        (["--decay_step0=5"], "--decay_step0 needs --lr_schedule=step"),
        (["--decay_step1=5"], "--decay_step1 needs --lr_schedule=step"),
        (["--lr_decay_factor=0.5"], "--lr_decay_factor needs --lr_schedule=step or plateau"),
        (["--plateau_patience=3"], "--plateau_patience needs --lr_schedule=plateau"),
        (["--warmup_steps=0", "--warmup_lr=0.1"], "--warmup_lr needs --warmup_steps above 0"),
        (["--preset=he2015", "--warmup_shape=constant"], "--warmup_shape needs --warmup_steps above 0"),
        (["--weight_decay=0", "--weight_decay_on=all"], "--weight_decay_on needs --weight_decay above 0"),
        ([_FILE, "--mode=prune", "--sparsity=0.5", "--prune_by=l1"], "chooses the channels that --macs leaves"),
    ],
)
def test_settings_that_another_switches_off_are_refused(tmp_path, monkeypatch, capsys, flags, expected):
    monkeypatch.chdir(tmp_path)
    assert main(["--mode=train", *flags]) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [
        # What asks for nothing, what the preset carries, and what --mode=prune writes into the commands of its runs.
        ["--augment=false", "--flip=none", "--cutout=0"],
        ["--model=lenet5", "--preset=resnet9"],
        ["--preset=he2015", "--weight_decay=0"],
        ["--decay_step0=10000", "--decay_step1=15000", "--is_use_ckpt=True", "--ckpt_path=cifar10", "--sparsity=0.5"],
        ["--dataset=folder", "--data_dir=x", "--validation_fraction=0", "--split_seed=1", "--test_fraction=0.2"],
        ["--resize=pad", "--value_range=0,4095"],  # which predictions read
    ],
)
def test_settings_that_change_something_or_ask_for_nothing_are_taken(flags):
    given = vars(make_parser().parse_args(["--mode=train", *flags]))
    given = {name: value for name, value in given.items() if name in {field.name for field in fields(HyperParameters)}}
    check_read(given, "train")
    from_flags(given).check_given(given)


@pytest.mark.parametrize("flag", ["--weights=cifar100", "--runs_dir=mine"])
def test_cards_are_measured_again_without_flags_of_a_run(capsys, flag):
    assert model_cards.main([flag]) == 2
    assert f"{flag.partition('=')[0]} is about the run to ship" in capsys.readouterr().err


def test_a_network_of_another_data_set_is_refused(tmp_path, capsys):
    import keras

    inputs = keras.Input((32, 32, 3))
    keras.Model(inputs, keras.layers.Dense(7)(keras.layers.Flatten()(inputs))).save(tmp_path / "seven.keras")
    flags = [
        "--mode=test",
        "--dataset=digits",
        f"--runs_dir={tmp_path}/runs",
        f"--test_ckpt_path={tmp_path / 'seven.keras'}",
    ]
    assert main(flags) == 2
    assert "tells 7 classes apart, but --dataset=digits has 10" in capsys.readouterr().err


def test_shipped_weights_tell_their_classes(tmp_path, capsys):
    command = [f"--runs_dir={tmp_path}", "--test_ckpt_path=cifar10", "--images", str(ROOT / "examples" / "cat.jpg")]
    for flags, name in (([], "resnet20"), (["--model=resnet9"], "resnet9")):
        assert main(["--mode=predict", *command, *flags]) == 0
        table = pd.read_csv(tmp_path / f"test-{name}-cifar10-cifar10" / "predictions.csv")
        assert table["class_1"].tolist() == ["cat"]
    assert main(["--mode=predict", *command, "--model=plain20"]) == 2
    assert "cannot be loaded for plain20" in capsys.readouterr().err


def test_the_shipped_weights_are_tested_on_a_folder_with_the_published_files(tmp_path, cifar_folder, capsys):
    flags = ["--test_ckpt_path=cifar10", f"--runs_dir={tmp_path}", f"--data_dir={cifar_folder.parent}"]
    assert main(["--mode=test", *flags]) == 0
    assert "resnet20 on 60 test images of cifar10" in capsys.readouterr().out


def test_publish_writes_rows_and_a_table(trained_run, tmp_path):
    import json

    place = f"--runs_dir={tmp_path}/runs"
    shutil.copytree(trained_run.path, tmp_path / "runs" / "p")
    for _ in range(2):  # publishing again replaces
        published = ["--version=p", place, f"--results_dir={tmp_path}/results", "--experiment=study"]
        assert main(["--mode=publish", *published]) == 0
    rows = json.loads((tmp_path / "results" / "study.json").read_text())
    keys = {"experiment", "dataset", "model", "preset", "metric", "unit", "value", "std", "runs", "published",
            "published_source", "command", "images_seen", "wall_seconds", "hardware", "commit"}  # fmt: skip
    assert len(rows) == 4 and keys <= rows[0].keys() and "--train_steps=6" in rows[0]["command"]
    assert [row["pflop"] > 0 for row in rows] == 4 * [True]
    table = (tmp_path / "results" / "README.md").read_text()
    assert "test_error" in table and "[page](p/README.md)" in table
    assert re.search(r"\| 192 \| [\d.e-]+ \|", (tmp_path / "results" / "p" / "README.md").read_text())  # images, PFLOP
    assert "the tested weights](error_curve.png)" in (tmp_path / "results" / "p" / "README.md").read_text()
    assert (tmp_path / "results" / "p" / "error.csv").is_file()

    # Trained again otherwise, or tested without what was told before, it leaves no row of before.
    config = tmp_path / "runs" / "p" / "config.json"
    write_json(config, json.loads(config.read_text()) | {"towers": 2})
    assert main(["--mode=publish", *published]) == 0
    again = json.loads((tmp_path / "results" / "study.json").read_text())
    assert len(again) == 4 and ["--towers=2" in row["command"] for row in again] == 4 * [True]

    # Trained again otherwise, a seed leaves the mean that it was part of.
    shutil.copytree(tmp_path / "runs" / "p", tmp_path / "runs" / "p1")
    config = tmp_path / "runs" / "p1" / "config.json"
    write_json(config, json.loads(config.read_text()) | {"seed": 1})
    second = ["--version=p1", *published[1:]]
    assert main(["--mode=publish", *second]) == 0
    rows = json.loads((tmp_path / "results" / "study.json").read_text())
    assert [(row["runs"], row["run"]) for row in rows] == 4 * [(2, "p1")] and "for seed in 0 1" in rows[0]["command"]
    write_json(config, json.loads(config.read_text()) | {"towers": 4})
    assert main(["--mode=publish", *second]) == 0
    rows = json.loads((tmp_path / "results" / "study.json").read_text())
    assert [(row["runs"], row["run"], row["std"]) for row in rows] == 4 * [(1, "p", None)] + 4 * [(1, "p1", None)]
    assert (
        "--seed" not in rows[0]["command"]
        and rows[0]["folders"] == {"0": "p"}
        and rows[0]["value"] == again[0]["value"]
    )
    (tmp_path / "results" / "study.json").write_text(json.dumps(rows[:4]))

    # A run that differs in an option of the network has rows of its own.
    shutil.copytree(tmp_path / "runs" / "p", tmp_path / "runs" / "q")
    config = tmp_path / "runs" / "q" / "config.json"
    config.write_text(config.read_text().replace('"squeeze_excitation": 0', '"squeeze_excitation": 4'))
    flags = [f"--runs_dir={tmp_path}/runs", f"--results_dir={tmp_path}/results", "--version=q", "--experiment=study"]
    assert main(["--mode=publish", *flags]) == 0
    rows = json.loads((tmp_path / "results" / "study.json").read_text())
    assert len(rows) == 8
    assert "--squeeze_excitation=4" in rows[4]["command"]
    table = (tmp_path / "results" / "README.md").read_text()
    assert "| resnet8, squeeze_excitation 4 | smoke, 6 steps | test_error |" in table
    assert "| resnet8 | smoke, 6 steps | test_error |" in table


def test_the_table_shows_every_kind_of_row(tmp_path):
    import json

    from resnet_study.reports.results import write_table

    row = dict.fromkeys(("dataset", "model", "preset", "std", "published", "published_source", "run"))
    row |= {
        "unit": "x",
        "runs": 3,
        "command": "c",
        "images_seen": 0,
        "wall_seconds": 60,
        "hardware": "h",
        "commit": "f",
    }
    kinds = [
        {"metric": "count", "value": 100},
        {"metric": "median", "value": 1234.5, "minimum": 0.5, "maximum": 2000.0},
        {"metric": "mean", "value": 8.5, "std": 0.25, "published": 8.75, "published_source": "paper"},
        {"metric": "missing", "value": None, "runs": 0, "note": "not measured: no torch"},
    ]
    (tmp_path / "kinds.json").write_text(json.dumps([row | kind for kind in kinds]))
    write_table(tmp_path)
    table = (tmp_path / "kinds" / "README.md").read_text()
    for cells in (
        "| count | 100 x |",
        "| median | 1,234 x [0.50 .. 2,000] (3 times) |",
        "| mean | 8.50 x ± 0.25 (3 seeds) | 8.75 x (paper) |",
        "| missing | not measured: no torch |",
    ):
        assert cells in table
    speeds = [
        {"metric": "training_rate", "value": 5},
        {"metric": "training_ratio", "value": 2.0, "unit": "times"},
        {"metric": "inference_ratio", "value": 0.9, "unit": "times"},
    ]
    (tmp_path / "speeds.json").write_text(json.dumps([row | speed for speed in speeds]))
    index = write_table(tmp_path).read_text()
    assert (
        "| training_ratio | 2.00 times" in index
        and "| inference_ratio | 0.90 times" in index
        and "training_rate" not in index
    )
    assert "| training_rate | 5 x" in (tmp_path / "speeds" / "README.md").read_text()
    forms = [
        row | {"preset": f"form {number}", "metric": "size", "value": number, "run": "large"} for number in range(21)
    ]
    (tmp_path / "large.json").write_text(json.dumps(forms))
    assert "21 rows: [large](large/README.md)" in write_table(tmp_path).read_text()
    # The row of the index is that of the test, which "while testing" is not.
    kinds = ("survived", "while testing", "test accuracy")
    for shown in (2, 3):
        counts = [row | {"preset": "x", "metric": kind, "value": 5, "run": "kills"} for kind in kinds[:shown]]
        (tmp_path / "kills.json").write_text(json.dumps(counts))
        assert f"| {kinds[2 * (shown - 2)]} | 5 x" in write_table(tmp_path).read_text()
    assert "| form 20 |" in (tmp_path / "large" / "README.md").read_text()


def test_the_index_of_results_is_short_and_its_links_lead_somewhere():
    import json
    import re

    from conftest import ROOT

    results = ROOT / "results"
    assert (results / "README.md").stat().st_size < 24_000
    pages = [results / "README.md", *results.glob("*/README.md")]
    assert len(pages) > 30
    linked = [page.parent / link for page in pages for link in re.findall(r"\]\(([^)#]+)\)", page.read_text())]
    assert len(linked) > 200
    assert [str(path) for path in linked if "://" not in str(path) and not path.exists()] == []
    rows = [row for path in results.glob("*.json") for row in json.loads(path.read_text())]
    written = "".join(page.read_text() for page in pages[1:])
    assert rows and all(row["command"] in written and f"| {row['metric']} |" in written for row in rows)


@pytest.mark.slow
def test_a_preset_of_another_kind_of_network_is_named(tmp_path):
    flags = ("--mode=train", "--dataset=synthetic", "--train_steps=1", "--tensorboard=false")
    done = run_main(*flags, "--model=lenet5", "--preset=resnet9", "--version=x", cwd=tmp_path)
    starts = read_json(tmp_path / "runs" / "x" / "environment.json", [dict])
    assert starts[-1]["onednn"] or "avx2" not in processor_flags()
    assert "preset resnet9 (made for other networks, that of this one is smoke)" in done.stdout
    assert "made for" not in run_main(*flags, "--model=lenet5", cwd=tmp_path).stdout


def test_a_test_of_an_unfinished_run_says_so(undrawn, tmp_path, capsys):
    flags = ["--preset=smoke", "--synthetic_images=60", "--train_batch_size=60", "--tensorboard=false", "--version=x"]
    flags += [f"--runs_dir={tmp_path}", "--train_steps=2", "--report_freq=1"]

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    settings = vars(make_parser().parse_args(["--mode=train", *flags]))
    fields = HyperParameters.__dataclass_fields__
    train(from_flags({name: value for name, value in settings.items() if name in fields}), callbacks=[Stop()])
    assert "a batch of 60 images is more than the" in capsys.readouterr().out
    assert main(["--mode=test", f"--runs_dir={tmp_path}", "--version=x"]) == 0
    said = capsys.readouterr().out
    assert "came after 1 of 2 steps" in said
    assert f"--mode=train --runs_dir={tmp_path} --version=x --resume goes on with it" in said
    for mode in ("export", "calibrate", "predict"):
        more = {"export": ["--format=keras"], "predict": ["--images", str(ROOT / "examples" / "cat.jpg")]}
        assert main([f"--mode={mode}", f"--runs_dir={tmp_path}", "--version=x", *more.get(mode, [])]) == 0
        assert "came after 1 of 2 steps, these are the best weights up to there; " in capsys.readouterr().out
    stored = RunFolder(tmp_path / "x").read_config(HyperParameters)
    cifar10_main.note_unfinished(replace(stored, runs_dir=str(tmp_path), version="x", validation_fraction=0))
    assert "these are the last weights up to there; " in capsys.readouterr().out
    stored = replace(stored, runs_dir=str(tmp_path), version="x")
    with RunFolder(tmp_path / "x").locked():
        cifar10_main.note_unfinished(stored)
    assert capsys.readouterr().out.endswith("; it is still training\n")
    RunFolder(tmp_path / "x").error_csv.write_text("")  # which a prediction does not need
    cifar10_main.note_unfinished(stored)
    assert capsys.readouterr().out == ""


def test_the_index_draws_the_errors_of_each_depth(tmp_path):
    import json

    from resnet_study.reports.depth import draw_depths
    from resnet_study.reports.results import write_table

    row = dict.fromkeys(("published", "published_source", "std")) | {"dataset": "cifar10", "metric": "test_error"}
    row |= {"preset": "zoo", "unit": "%", "runs": 1, "command": "c", "images_seen": 0, "wall_seconds": 60}
    row |= {"hardware": "h", "commit": "f", "run": "x"}
    rows = [
        row | {"model": model, "value": value}
        for model, value in {"resnet20": 8.4, "resnet56": 6.8, "plain20": 9.0, "plain56": 17.0, "resnet9": 5.0}.items()
    ]
    rows.append(row | {"model": "resnet44", "value": 1.0, "options": {"maxout": 2}})
    rows.append(row | {"model": "resnet20", "value": 8.0, "preset": "zoo, with a teacher"})  # of one depth alone
    figure = draw_depths(rows, "cifar10")
    lines = {container.get_label(): container.lines[0].get_xydata().tolist() for container in figure.axes[0].containers}
    assert lines == {
        "here, recipe zoo": [[20.6, 8.4], [56.6, 6.8]],
        "here, plain networks, zoo": [[20, 9.0], [56, 17.0]],
    }
    assert "He et al. 2015" in figure.axes[0].get_legend_handles_labels()[1]
    assert figure.axes[0].get_title().endswith("one seed each")
    several = draw_depths([rows[0] | {"runs": 3, "std": 0.3}, *rows[1:]], "cifar10")
    assert several.axes[0].get_title().endswith("bars: standard deviation over seeds")
    assert draw_depths(rows[:1], "cifar10") is None
    (tmp_path / "cifar10.json").write_text(json.dumps(rows))
    assert "](depth-cifar10.png)" in write_table(tmp_path).read_text()
    assert (tmp_path / "depth-cifar10.png").is_file()
