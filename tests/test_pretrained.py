"""The shipped weights are the files that their README lists, and have the errors it states; files of every network load."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import cifar10_test
import resnet
from cifar10_input import load_data
from cifar10_main import main
from hyper_parameters import HyperParameters, from_preset
from resnet_study.class_names import read_class_names
from resnet_study.data.cifar_files import CIFAR10_CLASSES
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError
from resnet_study.files import write_json
from resnet_study.metrics import measure
from resnet_study.networks import registry
from resnet_study.networks.baselines import build_alexnet
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.networks.layers import CaffePreprocessing
from resnet_study.reports import model_cards
from resnet_study.reports.model_cards import draw_cards, write_cards
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model

FOLDER = registry.PRETRAINED
CARDS = {registry.shipped_file(card["model"], card["weights"]).name: card for card in registry.read_cards()}
CLASSES = {"cifar10": (10, "airplane", "truck"), "cifar100": (100, "apple", "worm")}  # how many, the first, the last


def test_every_file_has_a_card_with_its_checksum_and_the_page_shows_it(tmp_path):
    stated = {name: card["sha256"] for name, card in CARDS.items()}
    assert stated == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.glob("*.keras")}
    write_cards(registry.read_cards(), tmp_path)
    for name in ("README.md", "cards.json"):
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text()


def test_the_files_of_the_papers_networks_stay_below_15_mb():
    """ResNet-9, which is of no text, has two files of 6 MB more."""
    sizes = {name: card["bytes"] for name, card in CARDS.items() if card["model"] != "resnet9"}
    assert len(sizes) >= 5 and sum(sizes.values()) < 15e6


@pytest.mark.slow
def test_a_run_is_shipped_with_a_card(cifar_folder, tmp_path, monkeypatch, undrawn):
    flags = [f"--data_dir={cifar_folder}", f"--runs_dir={tmp_path}", "--train_steps=2", "--report_freq=2"]
    assert main(["--mode=train", "--model=resnet8", "--train_batch_size=8", "--tensorboard=false", *flags]) == 0
    run = RunFolder(tmp_path / "resnet8-cifar10-fast-seed0")
    monkeypatch.setattr(registry, "PRETRAINED", tmp_path)
    card = model_cards.ship(run, "cifar10", tmp_path)
    path = registry.shipped_file("resnet8", "cifar10")
    assert path.stat().st_size < 0.7 * run.best.stat().st_size
    test = load_data(run.read_config(HyperParameters)).test
    card |= model_cards.measure_file(path, test.take(np.arange(20)))
    assert (
        card["images_seen"] == 16
        and card["recipe"] == "fast, 2 steps, train_batch_size 8"
        and "--model=resnet8" in card["command"]
    )
    assert 0 <= card["error"] <= 100 and len(card["corrupted"]["jpeg"]) == 5 and card["uncalibrated"] is None
    calibrated = model_cards.measure_file(path, test.take(np.arange(20)), temperature=2.0)
    assert calibrated["uncalibrated"]["loss"] != calibrated["loss"] == card["loss"]
    draw_cards([card, card | calibrated | {"weights": "cifar100"}], tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "calibration.png",
        "robustness-cifar10.png",
        "robustness-cifar100.png",
    }
    write_json(tmp_path / "cards.json", [card])
    registry.read_cards.cache_clear()
    assert registry.find("resnet8").shipped_errors == {"cifar10": card["error"]}
    # The builder loads it, with its normalisation, and as many classes as it has.
    loaded = registry.find("resnet8").build(weights="cifar10")
    np.testing.assert_allclose(loaded(test.images[:2]), load_model(str(run.best))(test.images[:2]), atol=1e-2)
    registry.read_cards.cache_clear()
    with pytest.raises(UsageError, match="--weights=cifar100 must be of that data set, received a run on cifar10"):
        model_cards.ship(run, "cifar100", tmp_path)


def test_networks_without_shipped_weights_say_which_have_some():
    with pytest.raises(ValueError, match=r"are shipped for resnet20, resnet20_preact, .*resnet110, received plain20"):
        resnet.build_resnet(3, "plain", weights="cifar10")
    with pytest.raises(ValueError, match="received resnet20 with shortcut 'B'; take one of these, or train your own"):
        resnet.build_resnet20(weights="cifar10", shortcut="B")


@pytest.mark.parametrize("name", CARDS)
def test_a_moved_file_names_its_classes(tmp_path, name):
    shutil.copy(FOLDER / name, tmp_path)
    count, first, last = CLASSES[registry.dataset_of(CARDS[name]["weights"])]
    names = read_class_names(tmp_path / name, {"": count})[""]
    assert (len(names), names[0], names[-1]) == (count, first, last)


@pytest.mark.parametrize(
    "build",
    [resnet.build_resnet20, functools.partial(resnet.build_resnet, 3, "preact"), resnet.build_resnet9],
)
def test_shipped_weights_know_a_cat(build):
    model = build(weights="cifar10")
    image = read_image(ROOT / "examples" / "cat.jpg", (32, 32, 3))
    assert CIFAR10_CLASSES[int(model(image[None])[0].numpy().argmax())] == "cat"


@pytest.mark.parametrize("build", [resnet.build_resnet20, resnet.build_resnet9])
def test_features_of_the_shipped_models(build):
    whole, features = build(weights="cifar10"), build(weights="cifar10", include_top=False)
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    kernel, bias = whole.get_layer("predictions").get_weights()
    logits = features(image).numpy() @ kernel + bias
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), whole(image), rtol=1e-3)


@pytest.mark.slow
def test_a_process_that_has_built_nothing_loads_the_files_of_every_network(tmp_path):
    """`load_model` knows the layers of a file without the module of its network."""
    build_alexnet("original", input_shape=(64, 64, 3), classes=2, dense_units=()).save(tmp_path / "alexmodel.keras")
    pixels = keras.Input((8, 8, 3))
    maps = keras.layers.Flatten()(CaffePreprocessing()(pixels))
    keras.Model(pixels, keras.layers.Dense(2, "softmax")(maps)).save(tmp_path / "flowers.keras")
    code = """
import sys
from resnet_study.saved_models import load_model
for path in sys.argv[1:]:
    print(load_model(path).output_shape)
assert not [name for name in sys.modules if name.startswith("flowers") or name.endswith("baselines")]
"""
    command = [sys.executable, "-c", code, tmp_path / "alexmodel.keras", tmp_path / "flowers.keras"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(None, 2)\n" * 2


@functools.cache
def real(dataset):
    if "CIFAR_DIR" not in os.environ:
        pytest.skip("needs the real CIFAR-10 and CIFAR-100: set CIFAR_DIR to the folder that holds both")
    return load_data(from_preset("fast", dataset=dataset, data_dir=os.environ["CIFAR_DIR"]))


@pytest.fixture
def cifar10():
    return real("cifar10")


@pytest.mark.slow
def test_real_cifar10_is_read_right(cifar10):
    assert len(cifar10.train) == 50_000 and len(cifar10.test) == 10_000
    assert set(np.bincount(cifar10.train.labels)) == {5_000} and set(np.bincount(cifar10.test.labels)) == {1_000}
    # The moments that the field quotes, in units of 255.
    np.testing.assert_allclose(cifar10.train.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=1e-4)
    np.testing.assert_allclose(cifar10.train.images.std((0, 1, 2)) / 255, [0.2470, 0.2435, 0.2616], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_shipped_weights_have_the_error_they_state(name):
    data = real(registry.dataset_of(CARDS[name]["weights"]))
    probabilities = cifar10_test.test(load_model(str(FOLDER / name)), data.test.images)
    result = measure(probabilities, data.test.labels, data.class_names)
    assert result["error"] == pytest.approx(CARDS[name]["error"], abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", CARDS)
def test_folded_bfloat16_names_the_same_classes(name):
    images, model = real(registry.dataset_of(CARDS[name]["weights"])).test.images, load_model(str(FOLDER / name))
    folded = fold_batch_norm(model, "mixed_bfloat16")
    expected, received = (cifar10_test.test(tested, images).argmax(axis=1) for tested in (model, folded))
    assert np.mean(received == expected) >= 0.998


def test_weights_of_another_network_are_refused(tmp_path):
    """Their layers have the same names and shapes as far as the smaller network goes."""
    deep, named = resnet.build_resnet(2), resnet.build_resnet(2, name="mine")
    for source, message in (
        (deep, "a layer stage1_block2"),
        (named, "a layer stage1_block2"),
        (resnet.build_resnet(1, "plain"), "one has a layer stage1_block1_add, which the other lacks"),
    ):
        source.save(tmp_path / "source.keras")
        with pytest.raises(ValueError, match=message):
            resnet.build_resnet(1, weights=tmp_path / "source.keras")


def test_what_would_be_shipped_under_a_wrong_name_is_refused(trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "SHIPPED", ("synthetic", "synthetic_robust"))
    run = RunFolder(shutil.copytree(trained_run.path, tmp_path / "run"))

    def refused(message, weights="synthetic"):
        with pytest.raises(UsageError, match=message):
            model_cards.ship(run, weights, tmp_path)

    refused("synthetic_robust are not for a run without --corrupt", "synthetic_robust")
    shutil.copy(run.best, run.path / "calibrated.keras")
    write_json(run.path / "calibration.json", {"temperature": 2.0, "of": "others"})
    refused("is of other weights")
    history = run.error_csv.read_text().splitlines()
    run.error_csv.write_text(
        "\n".join([*history[:-1], history[-1].replace(history[-1].split(",")[0], "999", 1)]) + "\n"
    )
    refused("was tested after .* and trained on to 999")
    config = json.loads(run.config.read_text())
    run.config.write_text(json.dumps(config | {"block_dropout": 0.1}))
    refused("expected a network as its name says")
    assert not list(tmp_path.glob("*.keras"))
