"""Cross-validation of images of one's own: the folds, the runs that are kept, what is summed up, and what is refused."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedKFold
from test_labelled_files import make

import cifar10_main
import flowers.evaluate
import flowers.train
from flowers import data as flowers_data
from flowers.settings import FlowerParameters
from hyper_parameters import from_preset
from resnet_study.data import folder_data
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError
from resnet_study.files import write_json
from resnet_study.metrics import measure
from resnet_study.run_folder import RunFolder
from resnet_study.studies import cross_validation

SMALL = ["--dataset=folder", "--preset=smoke", "--image_size=8", "--train_steps=4", "--report_freq=2", "--tensorboard=false", "--train_batch_size=8"]  # fmt: skip


@pytest.fixture
def two_classes(tmp_path):
    """11 images of a, 7 of b, one of each in a test part of its own."""
    files = [f"train/{name}/{i}.png" for name, count in (("a", 9), ("b", 5)) for i in range(count)]
    files += [f"valid/{name}/v{i}.png" for name in "ab" for i in range(2)]
    return str(make(tmp_path / "data", *files, "test/a/t.png", "test/b/t.png"))


def fold_of(place, **changes):
    return from_preset(
        "smoke", data_dir=place, **{"dataset": "folder", "image_size": 8, "folds": 3, "fold": 1} | changes
    )


def test_each_image_is_tested_once_and_validation_is_of_the_others(two_classes, capsys):
    found = folder_data.list_classes(fold_of(two_classes))
    parts = [folder_data.find_parts(found, fold_of(two_classes, fold=number)) for number in (1, 2, 3)]
    tested = [pair for part in parts for pair in part["test"]]
    everything = sorted(found.parts["training"] + found.parts["validation"])
    assert sorted(tested) == everything and len(everything) == 18
    for part in parts:
        assert sorted(part["training"] + part["validation"] + part["test"]) == everything
        for name, counts in (("a", {3, 4}), ("b", {2, 3})):
            assert sum(label == name for _, label in part["test"]) in counts
            assert any(label == name for _, label in part["validation"])
    assert "the 2 images of the test part are in no fold" in capsys.readouterr().out
    labels = np.repeat([0, 1], [11, 7])
    members = sorted(everything, key=lambda pair: pair[::-1])
    splits = StratifiedKFold(3, shuffle=True, random_state=0).split(labels, labels)
    assert [[members[i] for i in test] for _, test in splits] == [part["test"] for part in parts]
    other = folder_data.find_parts(found, fold_of(two_classes, split_seed=1))
    assert other["test"] != parts[0]["test"]
    assert "validation" not in folder_data.find_parts(found, fold_of(two_classes, validation_fraction=0.0))
    # Both programs read the same fold.
    config = FlowerParameters(data_dir=two_classes, model="resnet8", weights="none", image_size=8, folds=3, fold=2)
    assert sorted(flowers_data.load_images(config).test.files) == sorted(file for file, _ in parts[1]["test"])
    data = folder_data.load_folder(fold_of(two_classes, fold=2))
    # It is kept for the test of a run, and would be changed there, too.
    with pytest.raises(ValueError, match="read-only"):
        data.train.images[0] = 0
    assert folder_data.load_folder(fold_of(two_classes, fold=2)) is data
    os.utime(parts[1]["training"][0][0], (2e9, 2e9))
    assert folder_data.load_folder(fold_of(two_classes, fold=2)) is not data
    archive = shutil.make_archive(f"{two_classes}-zip", "zip", Path(two_classes).parent, "data")
    packed = fold_of(archive, fold=2)
    data = folder_data.load_folder(packed)
    assert folder_data.load_folder(packed) is data
    os.utime(archive, (2e9, 2e9))
    assert folder_data.load_folder(packed) is not data
    assert {"test": len(data.test), "training": len(data.train), "validation": len(data.validation)} == {
        part: len(members) for part, members in parts[1].items()
    }


@pytest.mark.parametrize("bad_image", ["refuse", "skip"])
def test_each_row_has_the_answer_of_its_own_image(two_classes, tmp_path, bad_image):
    """The network of this test is as sure of a class as the image is red."""
    config = fold_of(two_classes, on_bad_image=bad_image)
    if bad_image == "skip":
        Path(folder_data.find_parts(folder_data.list_classes(config), config)["test"][1][0]).write_bytes(b"no image")
    tested = folder_data.load_folder(config).test
    red = tested.images[:, 0, 0, 0].astype(np.float32) / 255
    probabilities = np.stack([1 - red, red], axis=1)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    np.save(run.predictions, probabilities)
    write_json(run.data, {"class_names": ["A", "B"], "class_folders": ["a", "b"]})
    write_json(run.result, {"best_step": 1, "last_step": 1, "test": measure(probabilities, tested.labels, "AB")})
    answers = cross_validation._list_answers(config, run)
    assert len(answers) == {"refuse": 6, "skip": 5}[bad_image] and set(answers["fold"]) == {1}
    for row in answers.to_dict("records"):
        expected = read_image(Path(two_classes) / row["image"], (8, 8, 3))[0, 0, 0] / 255
        assert (row["probability of A"], row["probability of B"]) == pytest.approx((1 - expected, expected), abs=1e-6)
        assert row["true_class"].lower() == row["image"].split("/")[1]
        assert row["predicted_class"] == ("B" if expected > 0.5 else "A")
    # The other program asks its network in the same order.
    small = {"model": "resnet8", "weights": "none", "image_size": 8, "folds": 3, "fold": 1}
    other = flowers_data.load_images(FlowerParameters(data_dir=two_classes, on_bad_image=bad_image, **small)).test
    assert list(other.files) == [f"{two_classes}/{image}" for image in answers["image"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1, "fold": 0}, "--folds must be at least 2, .* received --folds=1"),
        ({"label_separator": "space"}, "--label_separator is for the cells of --labels=FILE.csv"),
        ({"folds": 2, "fold": 3}, "--fold at most that, received --folds=2 --fold=3"),
        ({"folds": 8}, "--folds=8 needs 8 images of each class or more, received 7 of 'b'"),
        ({"folds": 3, "fold": 0}, "--folds=3 is a run for each fold, .* give --fold=1 to 3"),
        ({"dataset": "digits", "image_size": 32}, "--folds is for --dataset=folder"),
    ],
)
def test_what_cannot_be_is_refused(two_classes, changes, message):
    with pytest.raises(UsageError, match=message):
        config = fold_of(two_classes, **changes)
        folder_data.find_parts(folder_data.list_classes(config), config)


@pytest.mark.slow
def test_one_command_goes_on_and_sums_up(two_classes, tmp_path, monkeypatch, capsys, undrawn):
    runs = tmp_path / "runs"
    command = ["--mode=train", *SMALL, f"--data_dir={two_classes}", f"--runs_dir={runs}", "--folds=2", "--version=cv"]
    test, stops = cifar10_main._test, iter([False, True, False, False, False])

    def stop_once(*arguments):
        if next(stops):
            raise KeyboardInterrupt
        test(*arguments)

    monkeypatch.setattr(cifar10_main, "_test", stop_once)
    assert cifar10_main.main(command) == 130  # after the training of the second fold
    first = (runs / "cv-fold1of2" / "result.json").stat().st_mtime_ns
    trained = (runs / "cv-fold2of2" / "best.keras").read_bytes()
    assert not (runs / "cv").exists()
    assert cifar10_main.main(command) == 0
    assert (runs / "cv-fold1of2" / "result.json").stat().st_mtime_ns == first
    assert (runs / "cv-fold2of2" / "best.keras").read_bytes() == trained
    said = capsys.readouterr().out
    assert "fold 2 of 2, about 0:00:" in said and "mean ± standard deviation" in said
    result = json.loads((runs / "cv" / "result.json").read_text())
    each = [json.loads((runs / f"cv-fold{k}of2" / "result.json").read_text())["test"]["accuracy"] for k in (1, 2)]
    assert result["metrics"]["accuracy"] == {"value": np.mean(each), "std": pytest.approx(np.std(each, ddof=1)), "values": each}  # fmt: skip
    answers = pd.read_csv(runs / "cv" / "out_of_fold.csv")
    assert list(answers) == ["image", "fold", "true_class", "predicted_class", "probability of a", "probability of b"]
    assert len(set(answers["image"])) == len(answers) == 18
    assert (answers["image"].str.split("/").str[1] == answers["true_class"]).all()
    right = 100 * (answers["true_class"] == answers["predicted_class"]).mean()
    assert result["out_of_fold"]["accuracy"] == pytest.approx(right)
    probabilities = np.load(runs / "cv-fold2of2" / "predictions.npy")
    np.testing.assert_allclose(answers[answers["fold"] == 2].sort_values(["true_class", "image"]).iloc[:, 4:], probabilities, rtol=1e-6)  # fmt: skip
    assert "mean ± standard deviation" in (runs / "cv" / "report.html").read_text()
    # Answers that are older than the test of their fold are of another training.
    answers = runs / "cv-fold1of2" / "out_of_fold.csv"
    os.utime(answers, (1, 1))
    assert cifar10_main.main(command) == 0 and answers.stat().st_mtime > 1
    # A fold is a run like any other; its own images are known again, and others' settings are not taken for its own.
    assert cifar10_main.main(["--mode=test", "--version=cv-fold1of2", f"--runs_dir={runs}", "--dataset=folder", f"--data_dir={two_classes}"]) == 0  # fmt: skip
    assert not (runs / "cv-fold1of2" / "evaluations").exists()
    capsys.readouterr()
    for flags, message in (
        (["--overwrite"], "--overwrite is for single runs"),
        (["--init_lr=0.5"], "expected --init_lr=0.1, received 0.5"),
        (["--strategy=multi_worker"], "give --fold=K too"),
        (["--version=cv-fold1of2"], "holds a run; give the study another --version"),
    ):
        assert cifar10_main.main([*command, *flags]) == 2
        assert message in capsys.readouterr().err
    data = runs / "cv-fold1of2" / "data.json"
    data.write_text(json.dumps(json.loads(data.read_text()) | {"fingerprint": "of others"}))
    assert cifar10_main.main(command) == 2 and "have changed since" in capsys.readouterr().err


@pytest.mark.slow
def test_transfer_learning_and_images_that_cannot_be_read(two_classes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flowers.evaluate, "_draw", lambda *_: None)
    (tmp_path / "data" / "train" / "a" / "3.png").write_bytes(b"no image")
    command = [
        f"--data_dir={two_classes}",
        "--model=resnet8",
        "--weights=none",
        "--image_size=8",
        "--epochs=1",
        "--folds=2",
    ]
    command += [f"--runs_dir={tmp_path / 'runs'}", "--tensorboard=false"]
    assert flowers.train.main(command) == 2
    assert "image(s) of" in capsys.readouterr().err
    assert flowers.train.main([*command, "--on_bad_image=skip", "--version=other"]) == 0
    answers = pd.read_csv(tmp_path / "runs" / "other" / "out_of_fold.csv")
    assert len(answers) == 17 and "train/a/3.png" not in set(answers["image"])
    study = json.loads((tmp_path / "runs" / "other" / "study.json").read_text())
    assert study["runs"] == ["other-fold1of2", "other-fold2of2"] and "--folds=2" in study["command"]
    assert str(tmp_path) not in study["command"]
    config = flowers.evaluate.stored_settings({"version": "other-fold2of2", "runs_dir": str(tmp_path / "runs")})
    assert (config.folds, config.fold) == (2, 2) and dataclasses.replace(config, fold=0).crosses


def test_names_that_cannot_be_told_apart_in_a_cell_are_refused(tmp_path, capsys):
    folder = make(tmp_path / "data", *(f"{number}.png" for number in range(12)))
    rows = [f"{number}.png,{number % 2},{number // 6}" for number in range(12)]
    (folder / "labels.csv").write_text("\n".join(['image,"x; y",z', *rows]))
    flags = ["--dataset=folder", f"--data_dir={folder}", "--labels=labels.csv", "--folds=2", f"--runs_dir={tmp_path}"]
    assert cifar10_main.main(["--mode=train", *flags]) == 2
    assert "received a class 'x; y'; name it otherwise" in capsys.readouterr().err
