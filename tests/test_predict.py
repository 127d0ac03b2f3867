"""What `predict` writes and leaves alone, which program it names, and results of earlier versions."""

import dataclasses
import itertools
import json
import shutil
import types
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import cifar10_main
import cifar10_test
import flowers.evaluate
import flowers.export
import flowers.predict
import flowers.train
from cifar10_train import Train, train
from flowers.settings import FlowerParameters
from hyper_parameters import HyperParameters, from_preset
from resnet_study import command_settings, evaluation, new_data, predict_files
from resnet_study.class_names import ClassNames, labels_by_name, list_label_files, read_class_names
from resnet_study.data.image_files import read_image
from resnet_study.data.labelled_files import find_labelled
from resnet_study.errors import UsageError, _said
from resnet_study.evaluation import PARTS, read_result
from resnet_study.files import read_json, write_json
from resnet_study.metrics import measure
from resnet_study.networks import registry
from resnet_study.networks.layers import PixelNormalization
from resnet_study.predict_files import list_images
from resnet_study.predictor import Predictor
from resnet_study.reports import published
from resnet_study.reports.console import print_predictions
from resnet_study.reports.published import list_cifar_numbers, list_flower_numbers
from resnet_study.reports.results import publish
from resnet_study.run_folder import RunFolder, run_around
from resnet_study.run_images import tell_known_images, tell_own_images
from resnet_study.saved_models import load_model, save_model
from resnet_study.studies import compress, prune


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((40, 40, 3), 60 * number, np.uint8))
    return folder


def begin(config):
    """A run that has begun and tells its classes, with a model that answers."""
    run = RunFolder(f"{config.runs_dir}/{config.run_name}")
    run.path.mkdir(parents=True)
    run.begin(config, resume=False, overwrite=False)
    write_json(run.data, {"class_names": [str(index) for index in range(10)]})
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(inputs))
    keras.Model(inputs, outputs).save(run.best)
    return run


def test_answers_of_images_that_were_replaced_are_not_taken(tmp_path):
    image, packed = tmp_path / "a.png", tmp_path / "b.zip"
    image.write_bytes(b"first")
    packed.write_bytes(b"archive")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    images = types.SimpleNamespace(files=[str(image), f"{packed}/c.png"])
    keys = [predict_files._key(model, images, "") for _ in range(2)]
    for changed in (image, packed):
        changed.write_bytes(b"another")
        keys.append(predict_files._key(model, images, ""))
    assert keys[0] == keys[1] and len(set(keys)) == 3


def test_a_model_with_one_named_output_has_no_heads(tmp_path):
    pixels = keras.Input((8, 8, 3))
    output = keras.layers.Dense(2, "softmax")(keras.layers.Flatten()(pixels))
    keras.Model(pixels, {"label": output}).save(tmp_path / "named.keras")
    assert load_model(str(tmp_path / "named.keras")).output_shape == (None, 2)


def test_a_changed_recipe_is_told_and_held_against_nobody(tmp_path):
    changed = from_preset("fast", optimizer="adam", label_smoothing=0.1)
    assert published.list_changes(changed) == {"optimizer": "adam", "label_smoothing": 0.1}
    assert published.published_number(changed) is None and published.published_number(from_preset("fast"))
    assert not published.list_changes(from_preset("mnist_resnet9")) and not published.list_changes(
        from_preset("zoo", seed=2)
    )


def test_a_recipe_tells_how_files_were_read_where_there_are_files_only(trained_run, tmp_path):
    run = RunFolder(shutil.copytree(trained_run.path, tmp_path / "old"))
    recipe = list_cifar_numbers(run)[1]
    write_json(run.config, {name: value for name, value in read_json(run.config, dict).items() if name != "jpeg_size"})
    assert run.read_config(HyperParameters).jpeg_size == "full" and list_cifar_numbers(run)[1] == recipe


def test_shipped_weights_lie_in_no_run(tmp_path, monkeypatch):
    write_json(tmp_path / "data.json", {"class_names": ["a", "b"]})
    monkeypatch.chdir(tmp_path)
    assert run_around("cifar10") is None and run_around(str(tmp_path / "x.keras")).path == tmp_path
    for content in ("[1, 2]", '{"rows": 3}', "no JSON"):  # of another program
        (tmp_path / "data.json").write_text(content)
        assert run_around(str(tmp_path / "x.keras")) is None


def begun(config):
    """The folder of a run with these settings that has done nothing yet."""
    run = RunFolder(f"{config.runs_dir}/{config.run_name}")
    with run.locked():
        run.begin(config, resume=False, overwrite=False)
    return run


ALL = ("training", "validation", "test")


def test_weights_that_may_know_the_validation_images_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = begun(from_preset("fast", runs_dir=str(tmp_path)))
    own = begun(from_preset("folder", dataset="folder", data_dir=".", version="own", runs_dir=str(tmp_path)))
    write_json(run.data, {"class_names": ["a"]})
    write_json(own.data, {"class_names": ["a"], "fingerprint": "of before"})
    for path, changes, told in (
        ("cifar10", {}, True),
        ("cifar10", {"validation_fraction": 0.0}, False),
        ("cifar100", {}, False),
        ("cifar100", {"dataset": "cifar100_coarse"}, True),
        (str(run.best), {"heads": "kind"}, True),
        (str(own.best), {"data_dir": str(tmp_path), "label_level": 1}, True),
        (str(run.best), {}, False),
        (str(run.best), {"split_seed": 1}, True),
        (str(run.best), {"validation_fraction": 0.02}, True),
        (str(run.best), {"split_seed": 1, "dataset": "mnist"}, False),
        (str(run.best), {"split_seed": 1, "data_dir": "/wherever/CIFAR-10/lies"}, True),
        (str(own.best), {"data_dir": str(tmp_path)}, False),
        (str(own.best), {"data_dir": str(tmp_path), "split_seed": 1}, True),
        (str(own.best), {"data_dir": str(tmp_path), "test_fraction": 0.4}, True),
        (str(own.best), {"data_dir": str(tmp_path), "folds": 5, "fold": 2}, True),
        (str(own.best), {"data_dir": str(tmp_path / "others"), "split_seed": 1}, False),
        (str(own.best), {"data_dir": str(tmp_path / "moved"), "split_seed": 1}, True),
        (str(own.best), {"data_dir": str(tmp_path / "moved")}, False),
        (str(own.best), {"data_dir": str(tmp_path), "fingerprint": "one image more"}, True),
        (str(own.best), {"data_dir": str(tmp_path), "split_seed": 1, "validation_fraction": 0.0}, True),
        # Parts that the folder has are those of both, unless images were moved or other labels make them.
        (str(own.best), {"data_dir": str(tmp_path), "split_seed": 1, "own_parts": ALL}, False),
        (str(own.best), {"data_dir": str(tmp_path), "fingerprint": "one was moved", "own_parts": ALL}, True),
        (str(own.best), {"data_dir": str(tmp_path), "labels": "split.csv", "own_parts": ALL}, True),
    ):
        _said.clear()
        asked = {"dataset": "folder"} | changes if path == str(own.best) else changes
        fingerprint = asked.pop("fingerprint", "of others" if "others" in asked.get("data_dir", "") else "of before")
        own_parts = asked.pop("own_parts", ())
        tell_known_images(
            path,
            from_preset("fast", **asked),
            types.SimpleNamespace(fingerprint=fingerprint, own_parts=own_parts, test=()),
        )
        parts = (
            "test"
            if asked.get("validation_fraction") == 0
            else "validation and test"
            if path == str(own.best)
            else "validation"
        )
        said = capsys.readouterr().out
        assert (f"may have been trained on the {parts} images" in said) == told == ("may have been" in said), (
            path,
            changes,
        )


def test_files_that_a_model_was_trained_on_are_told(tmp_path, capsys):
    photos = tmp_path / "photos"
    own = begun(from_preset("folder", dataset="folder", data_dir=str(photos), version="own", runs_dir=str(tmp_path)))
    write_json(own.data, {"class_names": ["a"]})
    for given, told in (
        (photos, True),
        (photos / "train" / "1.png", True),
        (tmp_path, True),
        (tmp_path / "new", False),
    ):
        _said.clear()
        tell_own_images(str(own.best), [tmp_path / "x.png", given])
        assert (f"was trained on, in {photos}" in capsys.readouterr().out) == told, given
    tell_own_images("cifar10", [photos])
    assert capsys.readouterr().out == ""
    write_json(
        own.config, json.loads(own.config.read_text()) | {"labels": "labels.csv"}
    )  # where the folders are no parts
    tell_own_images(str(own.best), [photos / "test" / "a"])
    assert "was trained on, in" in capsys.readouterr().out


def test_a_run_that_is_pruned_keeps_its_parts_and_its_recipe(tmp_path, capsys):
    run = begun(from_preset("folder", dataset="folder", data_dir="photos", version="mine", runs_dir=str(tmp_path)))
    write_json(run.data, {"class_names": ["a", "b"]})
    flags = ["--mode=prune", "--sparsity=.5", f"--runs_dir={tmp_path}"]
    for source in ("--version=mine", f"--test_ckpt_path={run.path}"):
        assert cifar10_main.main([*flags, source, "--split_seed=1"]) == 2
        assert "was trained with --split_seed=0, received --split_seed=1; leave that out" in capsys.readouterr().err
        assert cifar10_main.main([*flags, source, "--preset=he2015"]) == 2
        assert "received --preset=he2015; give single settings" in capsys.readouterr().err


def test_other_predictions_are_kept(tmp_path):
    def write(name, value=0.5):
        answers = {head: np.full((1, 2), value, np.float32) for head in ("", "fine")}
        path, places = predict_files._write_beside(tmp_path, f"image\n{name}\n", answers)
        assert [place.name for place in places.values()] == [
            path.name.replace("predictions", f"probabilities{head}").replace("csv", "npy") for head in ("", "-fine")
        ]
        for head, place in places.items():
            np.save(place, answers[head])
        return path.name

    assert [write(name) for name in "aab"] == ["predictions.csv", "predictions.csv", "predictions-2.csv"]
    assert [write("a", 0.6) for _ in range(2)] == ["predictions-3.csv"] * 2  # of the same table, in four digits
    for left in tmp_path.glob("*-3.*"):
        left.unlink()
    assert (tmp_path / "predictions.csv").read_text() == "image\na\n"
    # A table that was renamed leaves its probabilities behind.
    for number, left in ((2, "probabilities-2.csv"), (3, "probabilities-fine-3.npy")):
        (tmp_path / left).write_text("")
        (tmp_path / f"predictions-{number}.csv").unlink(missing_ok=True)
    assert [write(name) for name in "bb"] == ["predictions-4.csv", "predictions-4.csv"]


def test_a_model_file_says_how_images_were_resized(tmp_path):
    run = begin(from_preset("demo", runs_dir=str(tmp_path / "runs"), version="digits"))
    moved = tmp_path / "moved.keras"
    names = ClassNames({"": [str(index) for index in range(10)]}, "pad")
    save_model(load_model(str(run.best)), moved, names)
    assert json.loads(list_label_files(names)["class_names.json"])["/resize"] == "pad"
    cv2.imwrite(str(tmp_path / "wide.png"), np.full((8, 24, 3), 200, np.uint8))
    given = {"runs_dir": str(tmp_path), "test_ckpt_path": str(moved)}
    padded, cropped = (
        cifar10_test.predict(from_preset("demo", **given, resize=way), [str(tmp_path / "wide.png")], 1).images[0]
        for way in ("auto", "crop")
    )
    assert not padded[0].any() and (padded[3:5] == 200).all() and (cropped == 200).all()


def test_a_moved_model_is_tested_on_images_resized_as_in_its_training(tmp_path):
    rng, moved = np.random.default_rng(0), tmp_path / "moved.keras"
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(10):
            image = rng.integers(0, 256, (8, 32, 3), np.uint8)
            cv2.imwrite(str(tmp_path / "images" / label / f"{number}.png"), image)
    model = registry.find("resnet8").build(
        input_shape=(16, 16, 3), classes=2, preprocessing=PixelNormalization(127.5, 127.5)
    )
    save_model(model, moved, ClassNames({"": ["a", "b"]}, "pad"))
    answers = {}
    for way in ("auto", "pad", "crop"):
        config = from_preset(
            "smoke", dataset="folder", data_dir=str(tmp_path / "images"), image_size=16, runs_dir=str(tmp_path / way),
            test_ckpt_path=str(moved), resize=way,
        )  # fmt: skip
        answers[way] = np.load(cifar10_test.evaluate(config)[1].predictions)
    np.testing.assert_array_equal(answers["auto"], answers["pad"])
    assert not np.allclose(answers["auto"], answers["crop"])


def test_an_exported_file_says_how_images_are_read_where_its_source_does_not(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), np.zeros((8, 32, 3), np.uint8))
    model = registry.find("resnet8").build(input_shape=(16, 16, 3), classes=2)
    save_model(model, tmp_path / "model.keras", ClassNames({"": ["a", "b"]}))
    given = {"dataset": "folder", "data_dir": str(tmp_path), "resize": "pad", "value_range": "0,4095"}
    config = from_preset("smoke", **given, runs_dir=str(tmp_path), test_ckpt_path=str(tmp_path / "model.keras"))
    (exported,) = cifar10_test.export(config, ["keras"], paths=[tmp_path / "x.png"])
    told = read_class_names(Path(exported["path"]), {"": 2})
    assert (told.resize, told.value_range, told.jpeg_size) == ("pad", "0,4095", "full")


def test_a_moved_model_with_the_quirks_of_the_text_is_tested_with_them(tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(inputs)))
    moved = str(tmp_path / "moved.keras")
    save_model(model, tmp_path / "moved.keras", ClassNames({"": ["1", "10", "2"]}, "nearest"))
    for way, read in (("auto", {"resize": "nearest", "jpeg_size": "full"}), ("crop", {"resize": "crop"})):
        config = FlowerParameters(test_ckpt_path=moved, resize=way)
        reading = evaluation.read_as_trained(config, moved, model).reading()
        assert read.items() <= reading.items()


def test_other_images_have_a_folder_of_their_own_however_they_are_named(tmp_path, monkeypatch):
    run = begin(from_preset("demo", runs_dir=str(tmp_path), version="digits"))
    run.result.write_text("of the run")
    (tmp_path / "new" / "3").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "new" / "3" / "a.png"), np.zeros((9, 9, 3), np.uint8))
    config = from_preset("demo", runs_dir=str(tmp_path), version="digits")
    for here, name in (("new/3", ".."), ("new", ".")):
        monkeypatch.chdir(tmp_path / here)
        result, folder = cifar10_test.evaluate_others(config, find_labelled(name))
        assert folder.path == run.path / "evaluations" / "new" and result["dataset"] == "new"
        assert (folder.path / result["answers"]).is_file()
    assert run.result.read_text() == "of the run"


@pytest.mark.slow
def test_new_runs_decode_jpegs_smaller_and_what_was_before_does_not(tmp_path, capsys):
    """A run with and one without the setting in its config.json, as earlier versions wrote it; each resumed, tested, moved."""
    rng, images, asked = np.random.default_rng(0), tmp_path / "images", {}
    for label in "ab":
        (images / label).mkdir(parents=True)
        for number in range(10):
            colours = cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(images / label / f"{number}.jpg"), colours)
    photo = images / "a" / "0.jpg"
    expected = {size: read_image(photo, (16, 16, 3), jpeg_size=size) for size in ("full", "reduced")}
    assert (expected["full"] != expected["reduced"]).any()
    for size in expected:
        config = from_preset(
            "smoke", dataset="folder", data_dir=str(images), image_size=16, train_steps=2, report_freq=1, runs_dir=str(tmp_path),
            version=size, train_batch_size=4, jpeg_size=size,
        )  # fmt: skip
        run = train(config)
        if size == "full":
            stored = json.loads(run.config.read_text())
            write_json(run.config, {name: value for name, value in stored.items() if name != "jpeg_size"})
        # Python gives the default where the command line takes what is stored.
        wanted = dataclasses.replace(config, jpeg_size="reduced")
        trainer = Train(wanted, run)
        parts = [trainer.task.training.images, trainer.task.validation.images, trainer.data.test.images]
        assert [(np.concatenate(parts) == image).all(axis=(1, 2, 3)).any() for image in expected.values()] == [
            size == name for name in expected
        ]
        trainer.train(resume=True)
        assert ("was begun with --jpeg_size=full" in capsys.readouterr().out) == (size == "full")
        assert run.read_config(HyperParameters).jpeg_size == size
        moved = tmp_path / f"moved-{size}.keras"
        shutil.move(run.best, moved)
        given = {"test_ckpt_path": str(moved), "dataset": "folder", "data_dir": str(images), "image_size": 16}
        fresh = from_preset("smoke", **given, runs_dir=str(tmp_path / "new"))
        asked[size] = cifar10_test.predict(fresh, [str(photo)], 1).images[0]
        np.testing.assert_array_equal(asked[size], expected[size])
        assert evaluation.read_as_trained(fresh, str(moved), load_model(str(moved))).jpeg_size == size
        packed = list_label_files(evaluation.find_class_names(str(moved), load_model(str(moved))))
        assert ("jpeg_size" in packed["class_names.json"]) == (size == "reduced")


def test_predictions_of_a_folder_tree_go_on_after_a_kill(tmp_path, monkeypatch, capsys):
    """40 images in folders of two classes and one that is none, three at a time; the model answers by their brightness."""
    run = begin(from_preset("demo", runs_dir=str(tmp_path), version="digits"))
    for number in range(40):
        folder = tmp_path / "tree" / ("3", "7", "else")[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number:02d}.png"), np.full((9, 9, 3), 5 * number, np.uint8))
    (tmp_path / "tree" / "3" / "99.png").write_bytes(b"broken")
    flags = ["--mode=predict", f"--runs_dir={tmp_path}", "--version=digits", "--images", str(tmp_path / "tree")]
    monkeypatch.setattr(predict_files, "_AT_A_TIME", 3 * 8 * 8 * 3)
    asked, predict = [], Predictor.predict

    def answer(model, images, *rest):
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(len(images))
        return predict(model, images, *rest)

    monkeypatch.setattr(Predictor, "predict", answer)
    assert cifar10_main.main(flags) == 130
    assert f"stopped after {sum(asked)} of 41 images; the same command again goes on" in capsys.readouterr().err
    (part,) = run.path.glob("predictions.part-*.csv")
    part.write_bytes(part.read_bytes()[:-3])  # the last row is cut off, perhaps within a number
    monkeypatch.setattr(Predictor, "predict", predict)
    capsys.readouterr()
    assert cifar10_main.main(flags) == 0
    told = capsys.readouterr()
    assert f"going on after {sum(asked) - 1} images" in told.out and "99.png" in told.err and not part.exists()
    table, values = pd.read_csv(run.path / "predictions.csv", dtype=str), np.load(run.path / "probabilities.npy")
    assert table["image"].tolist() == sorted(table["image"]) and len(table) == 40 == len(values)
    assert table["true_class"].fillna("").tolist() == ["3"] * 14 + ["7"] * 13 + [""] * 13
    every = pd.read_csv(run.path / "probabilities.csv")
    np.testing.assert_array_equal(every.iloc[:, 1:].to_numpy(np.float32), values)
    assert every["image"].tolist() == table["image"].tolist()
    images = np.stack([read_image(path, (8, 8, 3)) for path in table["image"]])
    # A killed process asks in batches of other sizes, which round otherwise.
    np.testing.assert_allclose(values, cifar10_test.test(load_model(str(run.best)), images), atol=1e-5)
    assert (
        "... and 30 more images" in told.out and "of the 27 images that lie in folders named like classes" in told.out
    )
    right = 100 * (table["true_class"] == table["class_1"])[table["true_class"].notna()].mean()
    assert f"accuracy {right:.2f} % of the 27" in told.out and "  3: " in told.out


def test_two_that_answer_at_once_do_not_mix(tmp_path, monkeypatch, capsys):
    """The same images are refused; others, which are done in between, get files of their own."""
    begin(from_preset("demo", runs_dir=str(tmp_path), version="digits"))
    images = [str(tmp_path / f"{name}.png") for name in "abc"]
    for image in images:
        cv2.imwrite(image, np.full((9, 9, 3), 100, np.uint8))
    flags = ["--mode=predict", f"--runs_dir={tmp_path}", "--version=digits", "--images"]
    monkeypatch.setattr(predict_files, "_AT_A_TIME", 8 * 8 * 3)  # an image at a time
    predict, asked = Predictor.predict, []

    def answer(model, *rest):
        asked.append(model)
        if len(asked) == 2:  # the first image is done
            assert cifar10_main.main([*flags, *images[:2]]) == 2
            assert cifar10_main.main([*flags, images[2]]) == 0
        return predict(model, *rest)

    monkeypatch.setattr(Predictor, "predict", answer)
    assert cifar10_main.main([*flags, *images[:2]]) == 0
    assert "another process answers for these images" in capsys.readouterr().err
    tables = [pd.read_csv(tmp_path / "digits" / name) for name in ("predictions.csv", "predictions-2.csv")]
    assert [table["image"].tolist() for table in tables] == [images[2:], images[:2]]


def test_a_run_is_tested_on_other_images_in_a_folder_of_their_own(tmp_path, capsys):
    run = begin(from_preset("demo", runs_dir=str(tmp_path), version="digits"))
    rng = np.random.default_rng(0)
    for name, count in (("test/3", 4), ("test/7", 6)):
        (tmp_path / "new" / name).mkdir(parents=True)
        for number in range(count):
            cv2.imwrite(str(tmp_path / "new" / name / f"{number}.png"), rng.integers(0, 256, (9, 9, 3)))
    before = sorted(run.path.rglob("*"))
    flags = [
        "--mode=test",
        f"--runs_dir={tmp_path}",
        "--version=digits",
        "--dataset=folder",
        f"--data_dir={tmp_path / 'new'}",
    ]
    assert cifar10_main.main(flags) == 0
    assert "on 10 test images of new: top-1 error" in capsys.readouterr().out
    folder = run.path / "evaluations" / "new"
    new = {path for path in run.path.rglob("*") if path not in before}
    assert (
        new == {folder.parent, folder, *folder.rglob("*")} and (folder / "figures" / "confusion_matrix.png").is_file()
    )
    result = json.loads((folder / "result.json").read_text())
    assert [row["images"] for row in result["test"]["per_class"]] == [
        0,
        0,
        0,
        4,
        0,
        0,
        0,
        6,
        0,
        0,
    ] and "last_step" not in result
    answers = np.load(folder / "probabilities.npy")
    assert result["test"]["accuracy"] == 100 * np.mean(answers.argmax(axis=1) == np.repeat([3, 7], [4, 6]))
    assert cifar10_main.main(flags) == 0 and len(list(folder.parent.iterdir())) == 1
    # A table, with a class in other letters; other images of the same name get a place of their own.
    (tmp_path / "new" / "test" / "3" / "9.png").write_bytes((tmp_path / "new" / "test" / "3" / "1.png").read_bytes())
    (tmp_path / "t.csv").write_text("path,label\ntest/3/1.png,3\ntest/7/2.png,7\n")
    assert cifar10_main.main([*flags, f"--labels={tmp_path / 't.csv'}"]) == 0
    assert json.loads((folder.with_name("new-2") / "result.json").read_text())["test"]["images"] == 2
    shutil.copytree(tmp_path / "new" / "test" / "3", tmp_path / "new" / "test" / "owl")
    assert cifar10_main.main(flags) == 2
    assert "has owl; rename or take out what the model does not know" in capsys.readouterr().err


def test_explanations_show_progress_and_have_a_limit(images, tmp_path, capsys):
    flags = [
        "--mode=predict",
        f"--runs_dir={tmp_path}",
        "--test_ckpt_path=cifar10",
        "--images",
        str(images),
        "--explain",
    ]
    assert cifar10_main.main([*flags, "--explain_limit=2"]) == 0
    told = capsys.readouterr()
    assert "explained the first 2 of 3 images; --explain_limit=3 explains them all" in told.out
    assert "2/2" in told.err
    folder = tmp_path / "test-resnet20-cifar10-cifar10" / "explanations"
    assert sorted(path.name for path in folder.iterdir()) == ["001-0.png", "002-1.png"]
    assert cifar10_main.main(flags) == 0
    assert "explained the first" not in capsys.readouterr().out and len(list(folder.iterdir())) == 3
    assert cifar10_main.make_parser().parse_args(["--mode=predict"]).explain_limit == 24
    assert cifar10_main.main([*flags, "--explain_limit=0"]) == 2
    assert "expected an int >= 1, received '0'" in capsys.readouterr().err


def test_an_unknown_flag_is_told_the_nearest():
    with pytest.raises(UsageError, match="did you mean --dataset"):
        cifar10_main.make_parser().parse_args(["--mode=train", "--datset=digits"])
    with pytest.raises(UsageError, match="--model"):
        cifar10_main.make_parser().parse_args(["--mode=train", "--modle=resnet20"])
    with pytest.raises(UsageError, match="did you mean --train_steps"):
        cifar10_main.make_parser().parse_args(["--mode=train", "--epochs=3"])
    with pytest.raises(UsageError, match="did you mean --epochs"):
        flowers.train.make_parser().parse_args(["--train_steps=3"])
    with pytest.raises(UsageError, match="received epochs"):
        from_preset("demo", epochs=3)
    with pytest.raises(UsageError, match="received aaaa, train_step; for train_step, did you mean train_steps"):
        from_preset("demo", aaaa=1, train_step=3)


def test_a_run_of_the_other_program_is_named(images, tmp_path, capsys):
    begin(FlowerParameters(runs_dir=str(tmp_path), version="flower"))
    run = begin(from_preset("demo", runs_dir=str(tmp_path), version="digits"))
    place = f"--runs_dir={tmp_path}"

    def refused(main, *flags):
        assert main([place, *flags]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1 and "is of a run of another program; use " in error
        return error

    for named, mode in itertools.product(
        ("--version=flower", f"--test_ckpt_path={tmp_path / 'flower'}"),
        (["--mode=test"], ["--mode=predict", "--images", str(images)]),
    ):
        error = refused(cifar10_main.main, named, *mode)
        assert "python -m flowers.train, flowers.evaluate or flowers.predict" in error
    assert "python -m flowers" in refused(cifar10_main.main, "--mode=train", "--version=flower", "--resume")
    assert "python cifar10_main.py" in refused(flowers.predict.main, "--version=digits", str(images))
    assert "python cifar10_main.py" in refused(flowers.evaluate.main, "--version=digits")
    assert run.best.is_file()


def test_images_alone_are_told_the_shipped_weights(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cifar10_main.main(["--mode=predict", "--images", str(images)]) == 2
    assert "--test_ckpt_path=cifar10 for the shipped weights" in capsys.readouterr().err


def test_classes_that_differ_in_case_are_two():
    images = predict_files.ImageList([], frozenset(), [("letters", "A"), ("letters", "a"), ("B",), ("none",)])
    assert predict_files.find_true_names(images, ["A", "a", "b"], ["A", "a", "b"]) == ["A", "a", "b", None]


def test_predictions_of_a_run_are_named_after_its_data(images, tmp_path):
    run = begin(from_preset("demo", dataset="digits", runs_dir=str(tmp_path / "elsewhere"), version="demo"))
    flags = ["--mode=predict", f"--runs_dir={tmp_path}", "--images", str(images)]
    assert cifar10_main.main([*flags, f"--test_ckpt_path={run.path}"]) == 0
    assert (tmp_path / "test-demo-digits" / "predictions.csv").is_file()
    assert cifar10_main.main([*flags, f"--test_ckpt_path={run.best}", "--dataset=mnist"]) == 0
    assert (tmp_path / "test-demo-best-mnist" / "predictions.csv").is_file()


def test_flags_with_a_model_leave_the_data_and_the_recipe_of_its_training(tmp_path):
    run = begin(from_preset("demo", runs_dir=str(tmp_path), version="x", split_seed=3, model="resnet14"))
    flags = {"test_ckpt_path": str(run.path), "data_dir": "elsewhere"}
    config = command_settings.with_data(flags)
    assert (config.dataset, config.data_dir, config.model) == ("digits", "elsewhere", "resnet20")
    longer = begin(from_preset("demo", runs_dir=str(tmp_path), version="y", train_steps=900, extend=400))
    assert command_settings.with_recipe({"test_ckpt_path": str(longer.path), "train_steps": 100}).extend == 0
    named = command_settings.find_command_settings(
        {"version": "y", "runs_dir": str(tmp_path), "train_steps": 100}, "prune", False
    )
    assert (named.extend, named.train_steps) == (0, 100)
    pruned = command_settings.with_recipe(flags)
    assert (pruned.preset, pruned.model, pruned.split_seed, pruned.version) == ("demo", "resnet14", 3, "")
    assert command_settings.with_recipe({"test_ckpt_path": "cifar10"}).model == "resnet20"
    shipped = command_settings.with_recipe({"test_ckpt_path": "cifar10", "model": "resnet20_preact"})
    assert (shipped.normalization, shipped.weight_decay, shipped.model_name) == (
        "image_standard",
        2e-4,
        "resnet20_preact",
    )
    assert command_settings.with_recipe({"test_ckpt_path": "cifar10", "preset": "he2015"}).init_lr == 0.1


def test_weights_are_meant_of_the_data_set_that_is_named(monkeypatch):
    cards = [{"model": "resnet9", "weights": "cifar100"}, {"model": "resnet20", "weights": "cifar10"}]
    monkeypatch.setattr(registry, "read_cards", lambda: cards)
    found = command_settings.find_sources({"dataset": "cifar100"}, ["resnet9"])["resnet9"]
    assert (found.test_ckpt_path, found.dataset) == ("cifar100", "cifar100")
    config = command_settings.with_data({"test_ckpt_path": "cifar100"})
    assert (config.model, config.dataset) == ("resnet9", "cifar100")
    assert [registry.default_network(weights) for weights in registry.SHIPPED] == ["resnet20", "resnet20", "resnet9"]


def test_runs_are_found_in_a_folder_of_ones_home(trained_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(trained_run.path, tmp_path / "runs" / "resnet9")  # a run, not the shipped weights
    found = command_settings.find_sources({"runs_dir": "~/runs"}, ["resnet9"])["resnet9"]
    assert found.test_ckpt_path == str(tmp_path / "runs" / "resnet9")


def test_labels_of_other_classes_are_refused_wherever_they_are_used():
    config = from_preset("demo", test_ckpt_path="cifar10")
    for use in (
        lambda: cifar10_test.load_as_trained(config, "cifar10", load_model("cifar10")),
        lambda: cifar10_test.export(config, ["keras"]),
        lambda: prune.plan(config, {}, 0.5, resume=False),
        lambda: compress._make_forms("resnet20", config, None, []),
    ):
        with pytest.raises(
            UsageError, match=r"cifar10 tells airplane, automobile, bird, \.\.\. apart, but --dataset=digits has"
        ):
            use()


def test_a_transfer_model_is_tested_on_the_data_of_its_run(images, tmp_path, capsys):
    given = {"data_dir": str(tmp_path / "tulips"), "classes": 10, "split_seed": 3, "faithful": True}
    run = begin(FlowerParameters(runs_dir=str(tmp_path / "elsewhere"), version="flower", **given))
    flags = {"runs_dir": str(tmp_path), "test_ckpt_path": str(run.best)}
    assert flowers.evaluate.stored_settings(flags) == FlowerParameters(**flags, **given)
    other = flags | {"data_dir": str(tmp_path / "roses")}
    # The parts of its images are its own wherever these lie.
    assert flowers.evaluate.stored_settings(other) == FlowerParameters(**given | other)
    assert flowers.evaluate.stored_settings(other | {"dataset": "cifar10"}).split_seed == 0
    place = [f"--runs_dir={tmp_path}", f"--test_ckpt_path={run.path}"]
    assert flowers.predict.main([str(images), *place]) == 0
    assert (tmp_path / "test-flower-tulips" / "predictions.csv").is_file()
    assert flowers.train.main(place) == 2
    assert "--test_ckpt_path is for flowers.evaluate" in capsys.readouterr().err
    # A model of the other program may be asked too; its run says nothing of folders of images.
    other = begin(from_preset("demo", dataset="digits", runs_dir=str(tmp_path), version="digits"))
    assert flowers.predict.main([str(images), place[0], f"--test_ckpt_path={other.path}"]) == 0


def test_a_model_of_the_other_program_is_asked_as_it_was_trained_and_not_tested_on_its_own_images(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for part, name in itertools.product(("train", "valid"), ("0", "1")):
        (tmp_path / "images" / part / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / part / name / "a.png"), rng.integers(0, 256, (40, 40, 3), np.uint8))
    given = {"dataset": "folder", "data_dir": str(tmp_path / "images"), "value_range": "0,4095", "resize": "pad"}
    run = begin(from_preset("folder", runs_dir=str(tmp_path), version="other", **given))
    fingerprint = find_labelled(given["data_dir"]).fingerprint()
    write_json(run.data, {"class_names": ["0", "1"], "class_folders": ["0", "1"], "fingerprint": fingerprint})
    config = flowers.evaluate.stored_settings({"test_ckpt_path": str(run.path)})
    assert config.reading() == {"value_range": (0, 4095), "resize": "pad", "jpeg_size": "reduced"}
    # This program draws other parts: what it calls test images, the model may have been trained on.
    flags = [f"--runs_dir={tmp_path}", f"--test_ckpt_path={run.path}", f"--data_dir={given['data_dir']}"]
    for command, more in ((flowers.evaluate, []), (flowers.export, ["--format=keras"])):
        assert command.main([*flags, *more]) == 2
        assert "is of a run of another program; use python cifar10_main.py" in capsys.readouterr().err


def test_a_transfer_model_is_not_exported_with_images_of_other_classes(tmp_path, capsys):
    for part, name in itertools.product(("train", "valid"), "cd"):
        (tmp_path / "images" / part / name).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / part / name / "1.png"), np.zeros((8, 8, 3), np.uint8))
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(inputs))
    save_model(keras.Model(inputs, outputs), tmp_path / "model.keras", ClassNames({"": ["a", "b"]}))
    flags = [f"--test_ckpt_path={tmp_path / 'model.keras'}", f"--data_dir={tmp_path / 'images'}", "--format=keras"]
    assert flowers.export.main([*flags, f"--runs_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "tells a, b apart, but" in error and "has c, d; give the images and --classes" in error


def published_results():
    return sorted(ROOT.glob("results/**/result.json"))


@pytest.mark.parametrize("path", published_results(), ids=lambda path: str(path.parent.relative_to(ROOT / "results")))
def test_results_of_earlier_versions_are_read(path, tmp_path):
    shutil.copy(path, tmp_path)
    kept, result = json.loads(path.read_text()), read_result(RunFolder(tmp_path))
    # Later metrics, such as those of calibration, cannot be told from what was kept.
    new = {"images", "error", "accuracy", "accuracy_interval", "top5_error", "loss", "per_class", "confusion_matrix"}
    for part in PARTS:
        assert part not in result or new <= result[part].keys()
    part = result["predictions"]
    earlier = kept if "test_error" in kept else {f"test_{name}": value for name, value in kept[part].items()}
    for name in ("error", "top5_error", "loss"):
        assert result[part][name] == earlier[f"test_{name}"]
    assert result["best_step"] == kept["best_step"]
    for head, metrics in kept.get("heads", {}).items():
        told = metrics["test_error"] if "test_error" in metrics else metrics["test"]["error"]
        assert result["heads"][head]["test"]["error"] == told


@pytest.mark.parametrize(
    "damage",
    [
        {"heads": {"kind": {}}},
        {"heads": []},
        {"test": {}},
        {"predictions": "training"},
        {"last_step": None},
        {"images": 0},
        {"error": 101.0},
        {"validation_error": "low"},
    ],
    ids=str,
)
def test_results_that_cannot_be_are_one_line(tmp_path, damage):
    run = begin(from_preset("fast", runs_dir=str(tmp_path), version="x"))
    shutil.copy(ROOT / "results" / "resnet20-cifar10-fast-seed0" / "error.csv", run.path)
    metrics = measure(np.eye(3), np.arange(3), "abc") | {
        name: damage[name] for name in damage if name in ("images", "error")
    }
    facts = {"best_step": 1, "last_step": 1, "validation_error": 1.0, "predictions": "test", "test": metrics}
    write_json(run.result, facts)
    if not {"images", "error"} & damage.keys():
        assert list_cifar_numbers(run)[2]["test_error"][0] == 0
        write_json(run.result, facts | damage)
        if "predictions" in damage:  # of which only those who ask for no part depend
            with pytest.raises(UsageError, match=r"result\.json"):
                read_result(run)
            return
    with pytest.raises(UsageError, match=r"result\.json"):
        list_cifar_numbers(run)


@pytest.mark.parametrize(("fraction", "recipe"), [(0.1, "fast"), (0.02, "fast, 2% held out")])
def test_a_recipe_names_the_share_that_it_holds_out_if_it_is_not_the_usual_one(tmp_path, fraction, recipe):
    run = begin(from_preset("fast", runs_dir=str(tmp_path), version="x", validation_fraction=fraction))
    for name in ("result.json", "error.csv"):
        shutil.copy(ROOT / "results" / "resnet20-cifar10-fast-seed0" / name, run.path)
    assert list_cifar_numbers(run)[1] == recipe
    assert list_cifar_numbers(run)[2]["test_error"][1] == 8.75
    # Of a run that did not come to its end, the paper's number is no measure.
    result = read_json(run.result, dict)
    write_json(run.result, result | {"last_step": 9})
    _, told, numbers = list_cifar_numbers(run)
    assert told == f"{recipe}, ended at step 9" and numbers["test_error"][1] is None


def test_runs_of_earlier_versions_are_published(tmp_path):
    cifar = from_preset("fast", runs_dir=str(tmp_path), version="resnet20-cifar10-fast-seed0")
    flower = FlowerParameters(runs_dir=str(tmp_path), version="flowers10-resnet50-pool", head="pool")
    for config, list_numbers, metric in (
        (cifar, list_cifar_numbers, "test_error"),
        (flower, list_flower_numbers, "validation_accuracy"),
    ):
        run = begin(config)
        kept = ROOT / "results" / config.version
        for name in ("result.json", "error.csv"):
            shutil.copy(kept / name, run.path)
        start = {"command": "", "commit": "c", "processor": "p", "cores": 2, "dtype_policy": "float32"}
        write_json(run.environment, [start])
        run.figures.mkdir()
        publish(run, metric, tmp_path / "results", list_numbers)
        rows = json.loads((tmp_path / "results" / f"{metric}.json").read_text())
        result = json.loads(run.result.read_text())
        expected = result["test_error"] if metric == "test_error" else result["validation"]["accuracy"]
        (value,) = [row["value"] for row in rows if row["metric"] == metric]
        assert value == pytest.approx(expected, abs=1e-6)
        # What an earlier version called otherwise is replaced.
        write_json(tmp_path / "results" / f"{metric}.json", [row | {"preset": "by another name"} for row in rows])
        publish(run, metric, tmp_path / "results", list_numbers)
        assert json.loads((tmp_path / "results" / f"{metric}.json").read_text()) == rows


def test_images_of_no_likely_class_are_told(tmp_path, capsys):
    answers = np.array([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3], [0.4, 0.4, 0.2]])
    predictions = types.SimpleNamespace(
        table=pd.DataFrame({"image": ["a", "b", "c"]}),
        csv_path=tmp_path / "predictions.csv",
        files=["a", "b", "c"],
        probabilities={"": answers},
        class_names={"": ["cat", "dog", "owl"]},
        images=[],
    )
    print_predictions(predictions)
    told = capsys.readouterr().out
    assert "no class is likely (all below 50%) in 2 of 3 images, such as b" in told
    assert "each answer is one of cat, dog, owl, whatever the image shows" in told


def test_a_moved_model_knows_the_range_of_its_pixels(tmp_path):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(inputs)))
    moved, image = str(tmp_path / "moved.keras"), str(tmp_path / "dark.png")
    save_model(model, tmp_path / "moved.keras", ClassNames({"": ["a", "b"]}, value_range="0,2000"))
    cv2.imwrite(image, np.full((8, 8, 3), 1000, np.uint16))
    config = from_preset("demo", runs_dir=str(tmp_path), test_ckpt_path=moved)
    assert (cifar10_test.predict(config, [image], 1).images[0] == 128).all()
    wider = dataclasses.replace(config, value_range="0,4000")
    assert (cifar10_test.predict(wider, [image], 1).images[0] == 64).all()


@pytest.mark.parametrize(("file", "told"), [("result.json", "weights"), ("exported/keras/model.json", "source")])
def test_models_of_one_name_in_two_places_keep_their_files(tmp_path, file, told):
    folders = []
    for place in ("here", "there", "here"):
        config = from_preset("demo", runs_dir=str(tmp_path / "runs"), test_ckpt_path=str(tmp_path / place / "mine"))
        run = evaluation.find_model(config)[1]
        (run.path / file).parent.mkdir(parents=True, exist_ok=True)
        write_json(run.path / file, {told: config.test_ckpt_path})
        folders.append(run.path.name)
    assert folders == ["test-mine-digits", "test-mine-digits-2", "test-mine-digits"]


def test_home_in_a_path_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UsageError, match="must name files or folders, received ''"):
        predict_files.list_images([""])
    with pytest.raises(
        UsageError, match=r"received the address https://example\.com/cat\.jpg; save the image as a file"
    ):
        predict_files.list_images(["https://example.com/cat.jpg"])
    with pytest.raises(UsageError, match=r"the address FILE:///a\.png; give its path alone"):
        predict_files.list_images(["FILE:///a.png"])
    assert predict_files.list_images(["~/a.png"]).files == [(tmp_path / "a.png").as_posix()]


def test_other_images_and_other_models_of_one_name_have_folders_of_their_own(tmp_path):
    base, names = tmp_path / "test-mine-D", []
    for images, weights in (("X", "a/mine"), ("Y", "b/mine"), ("Y", "a/mine"), ("X", "a/mine")):
        folder = new_data._free_folder(base, images, weights)
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.result, {"weights": weights, "fingerprint": images})
        names.append(folder.path.name)
    assert names == ["test-mine-D", "test-mine-D-2", "test-mine-D-3", "test-mine-D"]
    folder.result.write_text("{")
    assert evaluation.is_free_for(folder, "c/mine")


def test_one_path_may_be_given_as_it_is(trained_run, tmp_path):
    shutil.copy(ROOT / "examples" / "cat.jpg", tmp_path / "cat.jpg")
    config = from_preset("fast", test_ckpt_path=str(trained_run.best), runs_dir=str(tmp_path / "runs"))
    for path in (tmp_path, tmp_path / "cat.jpg", str(tmp_path / "cat.jpg")):
        assert len(cifar10_test.predict(config, path).table) == 1
    (tmp_path / "cat").symlink_to(tmp_path / "store")
    assert list_images([tmp_path / "cat" / "a.png"]).folders == [("cat",)]


def test_a_class_is_found_by_its_exact_name_first():
    found = labels_by_name(["x", "y"], ["1", "X"])
    assert [found[name] for name in ("1", "x", "X", "y")] == [0, 0, 1, 1]
    assert labels_by_name(["Cat"], ["Felis"]) == {"cat": 0, "felis": 0, "Cat": 0, "Felis": 0}
