"""Measures of calibration against cases worked out by hand, and that a temperature mends what it should."""

import shutil

import keras
import ml_dtypes
import numpy as np
import pytest
import scipy.special
from conftest import TINY

import cifar10_input
from cifar10_input import load_data
from cifar10_main import main
from cifar10_test import test as predict
from hyper_parameters import from_preset
from resnet_study.calibration import (
    brier_score,
    change_temperature,
    error_by_chance,
    expected_calibration_error,
    fit_temperature,
    reliability_table,
    set_temperature,
)
from resnet_study.exporting.export import hash_file
from resnet_study.files import read_json, write_json
from resnet_study.metrics import measure
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model
from resnet_study.studies.calibrate import calibrate


def test_measures_of_a_case_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    # Bin of .9: half are right, 40 points off; bin of .6: all are right, 40 points off.
    assert expected_calibration_error(probabilities, labels) == pytest.approx(40)
    assert brier_score(probabilities, labels) == pytest.approx((0.02 + 1.62 + 0.32 + 0.32) / 4)
    table = reliability_table(probabilities, labels)
    assert len(table) == 15 and table["images"].sum() == 4
    assert table.dropna()["accuracy"].tolist() == [1.0, 0.5]


def test_each_class_has_a_name():
    with pytest.raises(ValueError, match="one for each of the 2 classes of the probabilities, received 1"):
        measure(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), ["cat"])


def test_labels_of_keras_datasets_are_labels(tmp_path):
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(3), 50), rng.integers(0, 3, 50)
    for measure_some in (fit_temperature, brier_score, expected_calibration_error, lambda *pair: measure(*pair, "abc")):
        assert measure_some(probabilities, labels[:, None].tolist()) == measure_some(probabilities, labels)
        with pytest.raises(ValueError, match="labels must be whole numbers"):
            measure_some(probabilities, labels / 2)
        for wrong in (labels - 1, labels + 1, labels[:1], labels[:0]):
            with pytest.raises(ValueError, match="labels must be one for each of the 50 answers"):
                measure_some(probabilities, wrong)


def test_a_sure_and_right_network_is_calibrated_and_a_bound_belongs_to_the_bin_below():
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0
    assert brier_score(np.eye(3), np.arange(3)) == 0 and brier_score(np.eye(2), np.array([1, 0])) == 2
    assert reliability_table(np.array([[0.2] * 5]), np.array([0]))["images"].tolist() == [0, 0, 1, *[0] * 12]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0, 10.0])
def test_the_temperature_of_a_distorted_network_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20000, 6))
    honest = scipy.special.softmax(logits, axis=1)
    labels = (honest.cumsum(axis=1) > rng.random((len(logits), 1))).argmax(axis=1)
    distorted = scipy.special.softmax(logits * temperature, axis=1)
    found = fit_temperature(distorted, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    mended = change_temperature(distorted, found)
    assert (mended.argmax(axis=1) == distorted.argmax(axis=1)).all()
    measured, chance = expected_calibration_error(mended, labels), error_by_chance(reliability_table(mended, labels))
    assert measured < 1.0 and 0.5 * chance < measured < 2 * chance


def test_the_calibration_error_of_perfect_answers_is_that_by_chance():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 500)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    samples = [
        expected_calibration_error(probabilities, (rng.random(500) > confidence).astype(int)) for _ in range(300)
    ]
    table = reliability_table(probabilities, np.zeros(500, int))
    assert error_by_chance(table) == pytest.approx(np.mean(samples), rel=0.05)
    assert error_by_chance(table.dropna()) == pytest.approx(error_by_chance(table))


def test_a_model_keeps_its_temperature():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "softmax")])
    inputs = np.random.default_rng(0).normal(size=(50, 6))
    before = model.predict(inputs, verbose=0)
    set_temperature(model, 2.5)
    np.testing.assert_allclose(model.predict(inputs, verbose=0), change_temperature(before, 2.5), atol=1e-6)


def test_a_model_without_softmax_is_refused():
    with pytest.raises(ValueError, match="dense layer with softmax"):
        set_temperature(keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)]), 2.0)
    inputs = keras.Input((6,))
    heads = keras.Model(inputs, {name: keras.layers.Dense(2, "softmax", name=name)(inputs) for name in "ab"})
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "softmax")])
    model.quantize("int8")
    with pytest.raises(ValueError, match="is quantized or has LoRA"):
        set_temperature(model, 2.0)
    with pytest.raises(ValueError, match="one head, received one with 2"):
        set_temperature(heads, 2.0)
    for temperature in (0, -1, np.nan):
        with pytest.raises(ValueError, match="a number above 0"):
            set_temperature(heads, temperature)
        with pytest.raises(ValueError, match="a number above 0"):
            change_temperature(np.array([[0.8, 0.2]]), temperature)


def test_a_run_is_calibrated_on_images_that_it_held_out(undrawn, trained_run, tmp_path, capsys):
    flags = ["--preset=smoke", f"--runs_dir={tmp_path}"]
    shutil.copytree(trained_run.path, tmp_path / "parts")
    assert main(["--mode=train", *TINY, flags[1], "--version=all", "--validation_fraction=0"]) == 0
    best = (tmp_path / "parts" / "best.keras").read_bytes()
    assert main(["--mode=calibrate", *flags, "--version=parts"]) == 0
    facts = read_json(tmp_path / "parts" / "calibration.json", {"temperature": float})
    assert f"temperature {facts['temperature']:.3f}, fitted on" in capsys.readouterr().out
    assert facts["validation_after"]["loss"] <= facts["validation_before"]["loss"]
    assert (tmp_path / "parts" / "best.keras").read_bytes() == best
    images = load_data(from_preset("smoke", synthetic_images=200)).test.images
    before, after = (
        predict(load_model(str(tmp_path / "parts" / f"{name}.keras")), images) for name in ("best", "calibrated")
    )
    np.testing.assert_allclose(after, change_temperature(before, facts["temperature"]), atol=1e-5)

    assert main(["--mode=calibrate", *flags, "--version=all"]) == 2
    assert "was trained on all; give --held_out=RUN" in capsys.readouterr().err
    assert main(["--mode=calibrate", *flags, "--version=all", "--held_out=nothing"]) == 2
    assert "--held_out must be a run in" in capsys.readouterr().err
    assert main(["--mode=calibrate", *flags, "--version=all", "--held_out=parts"]) == 0
    facts_of_all = read_json(tmp_path / "all" / "calibration.json", {})
    assert facts_of_all["temperature"] == facts["temperature"]
    # It is measured on the test images of the run itself.
    tested = read_json(tmp_path / "all" / "result.json", {})["test"]
    assert facts_of_all["test_before"]["loss"] == pytest.approx(tested["loss"], rel=1e-4)
    assert facts["of"] == hash_file(tmp_path / "parts" / "best.keras")
    # Other images would be split otherwise, and the temperature fitted on what the run was trained on.
    data = tmp_path / "parts" / "data.json"
    write_json(data, read_json(data, dict) | {"fingerprint": "of others"})
    capsys.readouterr()
    assert main(["--mode=calibrate", *flags, "--version=parts"]) == 2
    assert "have changed since" in capsys.readouterr().err


def test_images_that_were_moved_are_found_with_their_table_for_the_run_that_held_some_out(tmp_path, monkeypatch):
    old = {"dataset": "folder", "data_dir": "old", "labels": "old.csv", "runs_dir": str(tmp_path)}
    for version in ("all", "parts"):
        (tmp_path / version).mkdir()
        RunFolder(tmp_path / version).begin(
            from_preset("folder", **old, version=version), resume=False, overwrite=False
        )
    moved = {"data_dir": "new", "labels": "new.csv", "label_separator": "comma"}
    config = from_preset("folder", **old | moved, version="all")
    asked = []
    monkeypatch.setattr(cifar10_input, "load_data", lambda config: asked.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        calibrate(config, str(tmp_path / "parts"))
    assert {name: getattr(asked[0], name) for name in moved} == moved


def test_logits_percents_and_nan_are_no_probabilities():
    good, labels = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
    assert measure(good.tolist(), labels.tolist(), ["a", "b"])["error"] == 0
    assert measure(good.astype(ml_dtypes.bfloat16), labels, ["a", "b"])["error"] == 0
    for values in (np.log(good), 100 * good, np.where(good > 0.8, np.nan, good), good[0]):
        for function in (
            lambda given: measure(given, labels, ["a", "b"]),
            lambda given: expected_calibration_error(given, labels),
            lambda given: brier_score(given, labels),
            lambda given: fit_temperature(given, labels),
            lambda given: change_temperature(given, 2.0),
        ):
            with pytest.raises(ValueError, match="probabilities must be numbers"):
                function(values)
    with pytest.raises(ValueError, match=r"must be 0 and 1, received 0..2"):
        measure(good, np.array([[0, 2], [1, 0]]), ["a", "b"])
