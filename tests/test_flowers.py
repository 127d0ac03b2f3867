"""Transfer learning: exact parameter counts, weights that are checked, pure batches, runs that can be killed."""

import dataclasses
import functools
import itertools
import json
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import PIL.Image
import pytest
from conftest import ROOT, assert_resumes_exactly, check_run_folder, user_environment

import cifar10_main
import cifar10_test
import cifar10_train
import flowers.evaluate
import flowers.export
import flowers.predict
import flowers.train
from flowers import (
    augmentation,
    backbone_weights,
    backbones,
    batches,
    data,
    features,
    heads,
    image_part,
    leaks,
    transfer,
)
from flowers.settings import FlowerParameters
from flowers.work import transfer_pflop
from resnet_study import devices, errors, saved_models
from resnet_study.data import download
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError
from resnet_study.files import write_json
from resnet_study.metrics import confidence_interval
from resnet_study.networks import registry
from resnet_study.predictor import Predictor
from resnet_study.reports import grad_cam
from resnet_study.reports.published import published_trials
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model, save_model


def draw_images(folder, counts, size=40):
    """Images of one colour per class with noise: {class folder: number}; returns the folder."""
    rng = np.random.default_rng(zlib.crc32(str(folder).encode()))
    for index, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        color = np.array([40 * index, 250 - 40 * index, 120])
        for number in range(count):
            image = np.clip(color + rng.normal(0, 25, (size, size, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / name / f"image_{number:02d}.jpg"), image)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """train/ and valid/ with the classes 1, 2 and 10."""
    folder = tmp_path_factory.mktemp("images")
    draw_images(folder / "train", {"1": 8, "2": 7, "10": 6})
    draw_images(folder / "valid", {"1": 2, "2": 3, "10": 2})
    (folder / "cat_to_name.json").write_text('{"1": "pink primrose", "10": "globe thistle"}')
    return folder


RESNET50 = keras.applications.ResNet50


def quick_backbone(include_top, weights, input_shape):
    """A network with the stages of ResNet50 and the names of its layers, but of one small convolution each."""
    x = inputs = keras.Input(input_shape)
    for stage in range(1, 6):
        block = f"conv{stage}_block1"
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"{block}_1_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{block}_1_bn")(x)
        x = keras.layers.Activation("relu", name=f"{block}_out")(x)
    return keras.Model(inputs, x, name="resnet50")


@pytest.fixture(scope="module", autouse=True)
def _quick_backbone():
    """ResNet50 takes half a minute of each run; what is said of its layers and its weights is tested with `small`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "ResNet50", quick_backbone)
        yield


@pytest.fixture
def _resnet50(monkeypatch):
    monkeypatch.setattr(keras.applications, "ResNet50", RESNET50)


def settings(image_folder, tmp_path, **changes):
    small = {
        "image_size": 32,
        "weights": "none",
        "head": "pool",
        "epochs": 2,
        "train_batch_size": 8,
        "init_lr": 0.01,
        "precision": "float32",
        "tensorboard": False,
        "version": "x",
    }
    return FlowerParameters(data_dir=str(image_folder), runs_dir=str(tmp_path), **small | changes)


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


# The models


@pytest.mark.usefixtures("_resnet50")
def test_parameters_of_the_flower_text():
    model = heads.build_resnet50_transfer(10)
    assert model.count_params() == 75_001_930 and count(model.trainable_variables) == 51_414_218
    assert heads.find_backbone(model).count_params() == 23_587_712
    assert [layer.name for layer in model.layers if layer.name.startswith("fc")] == ["fc1", "fc2", "fc3_output"]
    assert [model.get_layer(name).count_params() for name in ("fc1", "fc2", "fc3_output")] == [51_380_736, 32_832, 650]
    trained = heads.build_resnet50_transfer(10, backbone_trainable=True, input_shape=(64, 64, 3), head="pool")
    assert trained.count_params() == 24_670_282 and count(trained.non_trainable_weights) == 53_120


def test_parameters_of_the_cifar_text():
    model = heads.build_resnet152v2_transfer(10)
    assert model.count_params() == 59_024_586 and count(model.trainable_variables) == 58_880_842
    rows = {layer.name: (layer.output.shape[1:], layer.count_params()) for layer in model.layers[2:]}
    assert rows == {
        "resnet152v2": ((1, 1, 2048), 58_331_648),
        "conv2d": ((1, 1, 32), 589_856),
        "activation": ((1, 1, 32), 0),
        "conv2d_1": ((1, 1, 32), 9_248),
        "activation_1": ((1, 1, 32), 0),
        "max_pooling2d_3": ((1, 1, 32), 0),
        "conv2d_2": ((1, 1, 64), 18_496),
        "activation_2": ((1, 1, 64), 0),
        "conv2d_3": ((1, 1, 64), 36_928),
        "activation_3": ((1, 1, 64), 0),
        "max_pooling2d_4": ((1, 1, 64), 0),
        "flatten": ((64,), 0),
        "dense": ((512,), 33_280),
        "dropout": ((512,), 0),
        "dense_1": ((10,), 5_130),
    }


@pytest.fixture(scope="module")
def small():
    """ResNet50 with the head of the text at 32 x 32 pixels and 3 classes."""
    keras.utils.set_random_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "ResNet50", RESNET50)
        return heads.build_resnet50_transfer(3, input_shape=(32, 32, 3))


def test_preprocessing_is_that_of_the_weights():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    for name, module in (("resnet50", keras.applications.resnet), ("resnet152v2", keras.applications.resnet_v2)):
        expected = module.preprocess_input(images.copy())
        np.testing.assert_allclose(backbones.find(name).make_preprocessing()(images), expected, atol=1e-4)


def test_the_program_of_the_text_has_the_same_loss(small):
    """The text's `ResNet50_transfer`, in plain Keras calls, with the same weights, on the same batch without augmentation."""
    layers = keras.layers
    base_model = RESNET50(include_top=False, weights=None, input_tensor=keras.Input((32, 32, 3)))
    for layer in base_model.layers:
        layer.trainable = False
    x = layers.Dropout(0.4)(layers.Flatten()(base_model.output))
    for stage, units in enumerate((512, 64), start=1):
        x = layers.Dropout(0.4)(layers.Dense(units, activation="elu", name=f"fc{stage}")(x))
    x = layers.Dense(3, activation="softmax", name="fc3_output")(x)
    text = keras.Model(base_model.input, x)
    base_model.set_weights(heads.find_backbone(small).get_weights())
    for name in ("fc1", "fc2", "fc3_output"):
        text.get_layer(name).set_weights(small.get_layer(name).get_weights())
    assert count(text.trainable_variables) == count(small.trainable_variables)

    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3)).astype(np.float32)
    targets = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    preprocessed = keras.applications.resnet.preprocess_input(images.copy())
    ours = keras.losses.categorical_crossentropy(targets, small(images)).numpy().mean()
    theirs = keras.losses.categorical_crossentropy(targets, text(preprocessed)).numpy().mean()
    assert abs(ours - theirs) < 1e-5


def test_what_stands_before_a_backbone_may_be_a_model():
    before = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255)])
    model = heads.build_transfer(
        "resnet8", np.int64(3), input_shape=np.array([32, 32, 3]), weights=None, preprocessing=before
    )
    assert heads.find_backbone(model).name == "resnet8" and heads.split_model(model)[0].output.shape == (None, 64)
    with pytest.raises(UsageError, match=r"input_shape must be .*received \(None, None, 3\)"):
        heads.build_transfer("resnet8", 3, input_shape=(None, None, 3), weights=None)


def test_a_frozen_backbone_keeps_its_statistics_and_one_image_equals_its_row(small):
    backbone = heads.find_backbone(small)
    before = backbone.get_weights()
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.float32)
    features, head = heads.split_model(small)
    together = features(images, training=True).numpy()
    for expected, received in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, received)
    np.testing.assert_allclose(features(images[1:2], training=True)[0], together[1], atol=1e-4)
    np.testing.assert_allclose(head(together), small(images), atol=1e-5)


def test_saved_models_come_back(small, tmp_path):
    small.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))
    again = load_model(str(tmp_path / "model.keras"))
    np.testing.assert_allclose(again(images), small(images), atol=1e-6)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(quick_backbone, id="quick"),
        pytest.param(RESNET50, id="resnet50", marks=pytest.mark.slow),
    ],
)
def pair(request):
    """A model with the head of the text, and its backbone with other random weights, for images of another size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.applications, "ResNet50", request.param)
        model = heads.build_resnet50_transfer(3, input_shape=(32, 32, 3))
    return model, request.param(include_top=False, weights=None, input_shape=(64, 64, 3))


@pytest.mark.parametrize(
    "name",
    [
        "backbone.weights.h5",
        "backbone.h5",
        "backbone.keras",
        "model.keras",
        "flat.h5",
        "nested.h5",
        "nested.weights.h5",
    ],
)
def test_weights_come_from_every_kind_of_file(pair, tmp_path, name):
    model, other = pair
    backbone = heads.find_backbone(model)
    path = tmp_path / name
    if name == "backbone.weights.h5":
        backbone.save_weights(path)
    elif name == "flat.h5":  # as a model of Keras 2 with the layers of the backbone among its own
        keras.Model(backbone.inputs, keras.layers.Flatten()(backbone.output)).save(path)
    elif name.startswith("nested"):  # as a stock script of transfer learning
        stock = keras.Sequential([keras.Input((32, 32, 3)), backbone, keras.layers.Flatten(), keras.layers.Dense(2)])
        (stock.save_weights if name.endswith(".weights.h5") else stock.save)(path)
    else:
        (model if name == "model.keras" else backbone).save(path)
    backbone_weights.load_backbone_weights(other, str(path))
    for expected, received in zip(backbone.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, received)


def test_weights_that_do_not_fit_are_refused(pair, tmp_path, monkeypatch):
    model, other = pair
    backbone = heads.find_backbone(model)
    part = keras.Model(backbone.inputs, backbone.get_layer("conv4_block1_out").output)
    part.save(tmp_path / "part.h5")
    part.save_weights(tmp_path / "part.weights.h5")
    part.save(tmp_path / "part.keras")
    (tmp_path / "broken.h5").write_bytes(b"no weights")
    (tmp_path / "broken.keras").write_bytes(b"no weights")
    (tmp_path / "broken.weights.h5").write_bytes(b"no weights")
    faults = {
        "part.h5": " must hold finite weights for every layer of resnet50, received none for",
        "part.weights.h5": " does not fit resnet50: ",
        "part.keras": " does not fit resnet50: ",
        "broken.h5": " could not be read: ",
        "broken.weights.h5": " could not be read: ",
        "broken.keras": " could not be read: ",
        "missing.h5": "'; give one that exists",
    }
    for name, fault in faults.items():
        with pytest.raises(UsageError, match=f"--weights.*{name}{fault}"):
            backbone_weights.load_backbone_weights(other, str(tmp_path / name))
    monkeypatch.setattr(saved_models, "_LARGEST_MODEL", 1000)
    backbone.save(tmp_path / "large.keras")
    with pytest.raises(UsageError, match="more than 1,000"):
        backbone_weights.load_backbone_weights(other, str(tmp_path / "large.keras"))
    with pytest.raises(UsageError, match=r"received none for .* of them \((conv4_block2|conv5_block1)"):
        backbone_weights.load_backbone_weights(other, str(tmp_path / "part.h5"))


def test_imagenet_without_network_fails_soon_and_names_the_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(backbone_weights, "_WEIGHTS_SITE", "http://192.0.2.1/")  # an address that never answers
    monkeypatch.setattr(download, "_SECONDS_TO_CONNECT", 1)
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"could not be downloaded.*--weights=FILE, --weights=RUN or --weights=none"):
        heads.build_resnet50_transfer(10, weights="imagenet")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("name", "file", "other"),
    [
        ("resnet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5", "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("mobilenet", "mobilenet_1_0_224_tf_no_top.h5", "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"),
        ("mobilenetv3large", "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5", "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5"),
        ("efficientnetv2b0", "efficientnetv2-b0_notop.h5", "efficientnetb0_notop.h5"),
        ("nasnetmobile", "NASNet-mobile-no-top.h5", "NASNet-large-no-top.h5"),
    ],
)  # fmt: skip
def test_weights_in_the_cache_of_keras_are_those_of_the_network(tmp_path, monkeypatch, name, file, other):
    monkeypatch.setattr(backbone_weights, "keras_cache", lambda _: tmp_path)
    monkeypatch.setattr(backbone_weights, "is_reachable", lambda _: False)
    (tmp_path / other).touch()
    with pytest.raises(UsageError, match=f"the ImageNet weights of {backbones.find(name).application} are not in"):
        backbone_weights.check_imagenet(backbones.find(name))
    (tmp_path / file).touch()
    backbone_weights.check_imagenet(backbones.find(name))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "classes must be an int >= 2, received 1"),
        ({"classes": 3, "head": "round"}, "head must be one of flatten"),
        ({"classes": 3, "input_shape": (31, 31, 3)}, "32 pixels or more"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(UsageError, match=message):
        heads.build_resnet50_transfer(**arguments)


# What speaks for a class


def test_grad_cam_of_a_network_whose_answer_is_known():
    """One map per class, which the head averages: the heat of a class is its own map."""
    inputs = keras.Input((16, 16, 3))
    maps = keras.layers.AveragePooling2D(2)(inputs)
    outputs = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(maps))
    model = keras.Model(inputs, outputs)
    model.layers[-1].set_weights([np.eye(3, dtype=np.float32), np.zeros(3, np.float32)])
    image = np.zeros((16, 16, 3), np.float32)
    image[:8, :8, 0] = 200
    image[8:, 8:, 1] = 200
    first, second, third = grad_cam.explain(model, np.stack([image] * 3), [0, 1, 2])
    assert first[2, 2] > 0.8 and first[12, 12] < 0.1 and second[12, 12] > 0.8 and second[2, 2] < 0.1
    assert not third.any() and first.max() == 1 and first.min() >= 0


def test_grad_cam_finds_maps_within_the_backbone(small):
    heat = grad_cam.explain(small, np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)), [0, 2])
    assert heat.shape == (2, 32, 32) and np.isfinite(heat).all() and heat.max() <= 1
    with pytest.raises(UsageError, match="ends in a dense layer"):
        grad_cam.explain(heads.find_backbone(small), np.zeros((1, 32, 32, 3)), [0])


def test_grad_cam_of_a_network_within_another_is_that_of_the_network():
    flat = registry.find("resnet8").build(input_shape=(16, 16, 3), classes=3)
    trunk = registry.find("resnet8").build(input_shape=(16, 16, 3), include_top=False)
    nested = keras.Sequential([keras.Input((16, 16, 3)), trunk, keras.layers.Dense(3, "softmax")])
    nested.set_weights(flat.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    expected = grad_cam.explain(flat, images, [0, 2])
    np.testing.assert_allclose(grad_cam.explain(nested, images, np.array([0, 2])), expected, atol=1e-5)
    for labels in ([3.0, 1.0], 1, [0]):
        with pytest.raises(UsageError, match="labels must be one whole number for each"):
            grad_cam.explain(flat, images, labels)


@pytest.mark.parametrize(("name", "size"), [("resnet8", 8), ("inception_resnet_v1_small", 32)])
def test_grad_cam_passes_over_layers_on_branches(name, size):
    """The last maps of 4 x 4 cells lie within a residual block or a reduction."""
    model = registry.find(name).build(input_shape=(size, size, 3), classes=3)
    heat = grad_cam.explain(model, np.random.default_rng(0).integers(0, 256, (1, size, size, 3)), [1])
    assert heat.shape == (1, size, size) and np.isfinite(heat).all()


def test_grad_cam_explains_the_head_that_is_meant(tmp_path):
    model = registry.find("resnet8").build(input_shape=(16, 16, 3), classes={"class": 10, "kind": 2})
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    # Of the ten classes, all scores but one are 0 everywhere.
    kernel, bias = model.get_layer("predictions_class").get_weights()
    kernel[:, :9] = 0
    model.get_layer("predictions_class").set_weights([kernel, bias])
    assert not grad_cam.explain(model, images, [8], "class").any()
    assert grad_cam.explain(model, images, [9], "class").any()
    predictions = cifar10_test.Predictions(
        model,
        [Path("a.png")],
        images[:1],
        {"class": np.eye(10)[[9]], "kind": np.eye(2)[[0]]},
        {"class": list("abcdefghij"), "kind": ["x", "y"]},
        None,
        tmp_path / "predictions-2.csv",
    )
    folder = grad_cam.write_explanations(predictions)
    assert folder == tmp_path / "explanations-2"
    assert (folder / "class" / "001-a.png").is_file() and (folder / "kind" / "001-a.png").is_file()


# The images


def test_classes_are_in_numeric_order_and_have_names(image_folder, tmp_path):
    found = data.load_images(settings(image_folder, tmp_path))
    assert found.class_folders == ("1", "2", "10")
    assert found.class_names == ("pink primrose", "2", "globe thistle")
    assert np.bincount(found.training.labels).tolist() == [8, 7, 6]
    assert np.bincount(found.validation.labels).tolist() == [2, 3, 2] and found.test is None
    assert all(f"/train/{found.class_folders[label]}/" in file
               for file, label in zip(found.training.files, found.training.labels, strict=True))  # fmt: skip
    first_two = data.load_images(settings(image_folder, tmp_path, classes=2))
    assert first_two.class_folders == ("1", "2") and len(first_two.training) == 15
    with pytest.raises(UsageError, match="at most the 3 classes"):
        data.load_images(settings(image_folder, tmp_path, classes=4))


def test_one_folder_is_split_by_seed(tmp_path):
    folder = draw_images(tmp_path / "all", {"rose": 10, "daisy": 20})
    changes = {"validation_fraction": 0.2, "test_fraction": 0.1}
    found = data.load_images(settings(folder, tmp_path, **changes))
    parts = [found.training, found.validation, found.test]
    assert found.class_names == ("daisy", "rose")
    assert [np.bincount(part.labels).tolist() for part in parts] == [[14, 7], [4, 2], [2, 1]]
    assert len({file for part in parts for file in part.files}) == 30
    again = data.load_images(settings(folder, tmp_path, **changes))
    assert again.validation.files == found.validation.files
    other = data.load_images(settings(folder, tmp_path, **changes, split_seed=1))
    assert other.validation.files != found.validation.files
    with pytest.raises(UsageError, match=r"class 'daisy' has 20 image\(s\), of which 20 would be held out"):
        data.load_images(settings(folder, tmp_path, validation_fraction=0.9))


def test_broken_images_are_named(tmp_path, capsys):
    folder = draw_images(tmp_path / "all", {"a": 5, "b": 5})
    whole = (folder / "a" / "image_00.jpg").read_bytes()
    (folder / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "empty.png").write_bytes(b"")
    (folder / "b" / "longer.jpg").write_bytes(whole + b"what a camera appends")
    (folder / "b" / "notes.txt").write_text("no image")
    with pytest.raises(UsageError, match=r"2 image\(s\) .*cut\.jpg.*empty\.png.*--on_bad_image=skip"):
        data.load_images(settings(folder, tmp_path))
    errors._said.clear()
    found = data.load_images(settings(folder, tmp_path, on_bad_image="skip"))
    assert capsys.readouterr().out.count("skipped: ") == 2
    assert len(found.skipped) == 2 and len(found.training) + len(found.validation) + len(found.test) == 11


def split_names(found):
    return [" ".join(file[-8:-4] for file in part.files) for part in (found.validation, found.test)]


def test_a_run_of_before_there_was_one_rounding_keeps_its_parts(tmp_path):
    folder = tmp_path / "all"
    for name in "abcd":
        (folder / name).mkdir(parents=True)
        for number in range(15):
            cv2.imwrite(str(folder / name / f"{number:02d}.png"), np.full((8, 8, 3), 10 * number, np.uint8))
    config, run = settings(folder, tmp_path, find_leaks="off"), RunFolder(tmp_path / "x")
    # A tenth of 60 images is 6, as on the CIFAR side; each class rounded by itself gave 8.
    new = ["a/02 a/11 b/02 b/11 c/12 d/06", "a/03 a/10 b/05 b/14 c/02 d/12"]
    old = ["a/02 a/11 b/02 b/11 c/02 c/12 d/06 d/12", "a/03 a/10 b/05 b/14 c/07 c/08 d/04 d/07"]
    assert split_names(data.load_images(config, run)) == new
    run.path.mkdir()
    run.data.write_text('{"class_names": ["a", "b", "c", "d"], "images": {"training": 44, "validation": 8, "test": 8}}')
    trainer = make_trainer(config, run=run, load_weights=False)
    assert split_names(trainer.data) == old and trainer.data.split_rounding == "each_class"
    begun_again = make_trainer(config, run=run)
    assert split_names(begun_again.data) == new and begun_again.data.split_rounding == "all_classes"
    run.data.write_text('{"split_rounding": "all_classes"}')
    assert split_names(data.load_images(config, run)) == new
    # Of a folder train/ alone, earlier versions held no test images out.
    folder.rename(tmp_path / "train")
    (tmp_path / "whole").mkdir()
    (tmp_path / "train").rename(tmp_path / "whole" / "train")
    config = settings(tmp_path / "whole", tmp_path, find_leaks="off")
    run.data.unlink()
    assert split_names(data.load_images(config, run)) == new
    run.data.write_text('{"images": {"training": 54, "validation": 6, "test": 0}, "split_rounding": "all_classes"}')
    found = data.load_images(config, run)
    assert found.test is None and (len(found.training), len(found.validation)) == (54, 6)
    run.data.write_text('{"split_rounding": "else"}')
    with pytest.raises(UsageError, match="must have a split_rounding of all_classes or each_class, received another"):
        data.load_images(config, run)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_cut_off_is_refused(tmp_path, progressive):
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    path = tmp_path / "image.jpg"
    PIL.Image.fromarray(image).save(path, progressive=progressive)
    whole = path.read_bytes()
    assert read_image(path, (32, 32, 3)).shape == (32, 32, 3)
    for missing in (1, 2, 3, 10, 100, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:-missing])
        with pytest.raises(UsageError, match="is cut off"):
            read_image(path, (32, 32, 3))


def test_a_class_whose_training_images_are_all_broken_is_named(tmp_path):
    for part in ("train", "valid"):
        draw_images(tmp_path / "all" / part, {"a": 3, "b": 3, "c": 3})
    for image in (tmp_path / "all" / "train" / "b").iterdir():
        image.write_bytes(b"broken")
    with pytest.raises(UsageError, match="that can be read, received none for b; mend"):
        data.load_images(settings(tmp_path / "all", tmp_path, on_bad_image="skip"))


def test_leaks_are_found_by_content(tmp_path):
    folder = tmp_path / "leaky"
    draw_images(folder / "train", {"a": 4, "b": 4})
    draw_images(folder / "valid", {"a": 2, "b": 2})
    assert data.load_images(settings(folder, tmp_path)).leaks == ()
    shutil.copy(folder / "train" / "a" / "image_01.jpg", folder / "valid" / "b" / "another name.jpg")
    found = data.load_images(settings(folder, tmp_path))
    assert found.leak_count == 1 and [file.rsplit("/", 1)[1] for file in found.leaks[0]] == [
        "image_01.jpg",
        "another name.jpg",
    ]
    shutil.copy(folder / "train" / "a" / "image_01.jpg", folder / "train" / "a" / "twice.jpg")
    for copy in range(15):
        shutil.copy(folder / "train" / "a" / "image_01.jpg", folder / "valid" / "b" / f"copy {copy}.jpg")
    found = data.load_images(settings(folder, tmp_path))
    assert found.leak_count == 2 * 16 and len(set(found.leaks)) == 20
    assert all("/train/" in one and "/valid/" in other for one, other in found.leaks)


def test_images_that_do_not_fit_into_memory_are_read_again(image_folder, tmp_path, monkeypatch):
    kept = data.load_images(settings(image_folder, tmp_path)).training
    monkeypatch.setattr(image_part, "_LARGEST_IN_MEMORY", 0)
    again = data.load_images(settings(image_folder, tmp_path)).training
    assert again.images is None and kept.images is not None
    for one, two in zip(again.load([3, 1]), kept.load([3, 1]), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ([], "nothing, for .* is empty"),
        (["only/a.jpg"], "the one class 'only'"),
        (["a.jpg", "b.jpg"], "images that lie in .* itself; put those of each class into a folder of their own"),
        (["train/a.jpg"], "images that lie in .*train itself"),
        (["one/a.txt", "two/a.txt"], "folders without images, such as one"),
        (["notes.txt"], "other files, such as notes.txt"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, files, found):
    folder = tmp_path / "folder"
    folder.mkdir()
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    with pytest.raises(UsageError, match=f"folders of two classes or more, with images in them, received {found}"):
        data.load_images(settings(folder, tmp_path))


def test_a_class_without_training_images_is_named(tmp_path):
    draw_images(tmp_path / "all" / "train", {"a": 3, "b": 3})
    draw_images(tmp_path / "all" / "valid", {"a": 1, "c": 1})
    with pytest.raises(UsageError, match="received none for c"):
        data.load_images(settings(tmp_path / "all", tmp_path))


# Augmentation


def smooth_image():
    rows, columns = np.mgrid[:48, :48]
    return np.stack([rows * 5, columns * 5, (rows + columns) * 2.5], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("transform", [
    augmentation.Transform(30, 0, 1, 1, False), augmentation.Transform(0, 20, 1, 1, False), augmentation.Transform(0, 0, 0.8, 1.2, False),
    augmentation.Transform(-17, 5, 1.1, 0.85, True),
])  # fmt: skip
def test_one_affine_map_does_what_image_data_generator_does(transform):
    from tensorflow.keras.preprocessing.image import ImageDataGenerator

    parameters = {"theta": transform.rotation, "shear": transform.shear, "zx": transform.zoom_x, "zy": transform.zoom_y,
                  "flip_horizontal": transform.flip}  # fmt: skip
    image = smooth_image()
    expected = ImageDataGenerator(data_format="channels_last").apply_transform(image.astype(np.float32), parameters)
    received = augmentation.apply_transform(image, transform)
    assert np.abs(received - expected).max() <= 2  # of 255: OpenCV rounds positions to 1/32 pixel


def test_draws_fill_their_ranges(image_folder, tmp_path):
    config = settings(image_folder, tmp_path)
    drawn = np.array([dataclasses.astuple(augmentation.draw_transform(0, variant, config)) for variant in range(2000)])
    for column, (low, high) in enumerate(((-30, 30), (-0.2, 0.2), (0.8, 1.2), (0.8, 1.2))):
        assert low <= drawn[:, column].min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < drawn[:, column].max() <= high
    assert 0.45 < drawn[:, 4].mean() < 0.55


@pytest.mark.parametrize("pipeline", ["tfdata", "generator"])
def test_a_batch_is_a_pure_function_of_seed_and_step(image_folder, tmp_path, pipeline):
    config = settings(image_folder, tmp_path, pipeline=pipeline)
    training = data.load_images(config).training
    made = [batch for batch, _ in batches.training_batches(training, config, 6)]
    assert len(made) == 6 and made[0].shape == (8, 32, 32, 3) and made[0].dtype == np.uint8
    later = next(iter(batches.training_batches(training, config, 6, first_step=4)))[0]
    np.testing.assert_array_equal(made[4], later)
    assert not np.array_equal(made[0], made[3])
    pieces = [batch for batch, _ in batches.training_batches(training, config, 1, replicas=2)]
    np.testing.assert_array_equal(np.concatenate(pieces), made[0])


def test_variants_come_in_turn_and_every_image_once_an_epoch(image_folder, tmp_path):
    config = settings(image_folder, tmp_path, variants=2, train_batch_size=7)
    plans = [batches.plan_batch(step, np.zeros(21, np.int32), config) for step in range(9)]
    for epoch in range(3):
        indices, variants = (np.concatenate(values) for values in zip(*plans[3 * epoch : 3 * epoch + 3], strict=True))
        assert sorted(indices) == list(range(21)) and set(variants) == {epoch % 2}
    plain = settings(image_folder, tmp_path, augment=False)
    training = data.load_images(plain).training
    np.testing.assert_array_equal(augmentation.make_variant(training, 3, 5, plain), training.read(3))


# Training


@pytest.fixture(scope="module")
def finished(image_folder, tmp_path_factory):
    """A finished run of the command line."""
    folder = tmp_path_factory.mktemp("runs")
    flags = ["--weights=none", "--head=pool", "--variants=2", "--image_size=32", "--epochs=2", "--init_lr=0.01"]
    assert flowers.train.main([f"--data_dir={image_folder}", f"--runs_dir={folder}", "--version=done", *flags]) == 0
    return RunFolder(folder / "done")


def test_a_run_folder_holds_everything(finished):
    config = finished.read_config(FlowerParameters)
    config = dataclasses.replace(config, runs_dir=str(finished.path.parent), version="done", split_seed=3)
    with pytest.raises(UsageError, match="was trained with --split_seed=0, received --split_seed=3"):
        flowers.evaluate.evaluate(config)
    with pytest.raises(UsageError, match="received --split_seed=3"):
        flowers.export.export(config, ["keras"])
    check_run_folder(finished, "accuracy_and_loss")
    result = json.loads(finished.result.read_text())
    assert result["validation"]["images"] == 7 and "test" not in result and result["predictions"] == "validation"
    low, high = result["validation"]["accuracy_interval"]
    assert 0 <= low <= result["validation"]["accuracy"] <= high <= 100
    history = pd.read_csv(finished.error_csv)
    assert history["step"].tolist() == [0, 1, 2]
    assert result["best_step"] == history["step"][history["validation_loss"][1:].idxmin()]
    page = finished.page.read_text(encoding="utf-8")
    assert "python -m flowers.train" in page and 'id="gallery"' in page and len(page.encode()) < 3_000_000
    facts = json.loads(finished.data.read_text())
    assert facts["class_folders"] == ["1", "2", "10"] and facts["split_rounding"] == "all_classes"


def test_evaluate_publish_and_predict(finished, image_folder, tmp_path, capsys, monkeypatch):
    flags = [f"--runs_dir={finished.path.parent}", "--version=done"]
    before = finished.result.read_bytes()
    results = ["--publish", f"--results_dir={tmp_path}"]
    assert flowers.evaluate.main([*flags, *results]) == 0 and finished.result.read_bytes() == before
    row, balanced = json.loads((tmp_path / "flowers.json").read_text())
    assert balanced["metric"] == "validation_balanced_accuracy"
    assert row["metric"] == "validation_accuracy" and row["published"] is None and "95 % interval" in row["note"]
    assert row["value"] == round(json.loads(before)["validation"]["accuracy"], 6)
    page = (tmp_path / "done" / "README.md").read_text()
    assert "| validation f1 |" in page and "(accuracy_and_loss.png)" in page
    assert "[page](done/README.md)" in (tmp_path / "README.md").read_text()
    assert flowers.evaluate.main([*flags, *results, "--test_ckpt_path=x"]) == 2
    assert flowers.predict.main([str(image_folder / "valid" / "10"), *flags, "--explain"]) == 0
    assert len(list((finished.path / "explanations").glob("*.png"))) == 2
    table = pd.read_csv(finished.path / "predictions.csv", dtype={"class_1": str})
    assert len(table) == 2 and set(table["class_1"]) <= {"pink primrose", "2", "globe thistle"}
    assert "95 % interval" in capsys.readouterr().out
    probabilities = np.load(finished.predictions)
    model = load_model(str(finished.best))
    paths = sorted((image_folder / "valid" / "10").iterdir())
    images = np.stack([read_image(path, (32, 32, 3)) for path in paths])
    np.testing.assert_allclose(cifar10_test.test(model, images), probabilities[-2:], atol=1e-5)
    # A model of the text's quirks is asked about images squeezed as in its training.
    asked = []
    monkeypatch.setattr(Predictor, "predict", lambda _, images, *__: asked.append(images) or probabilities[-2:])
    model_flags = [f"--runs_dir={tmp_path}", f"--test_ckpt_path={finished.best}", "--faithful"]
    assert flowers.predict.main([str(image_folder / "valid" / "10"), *model_flags]) == 0
    np.testing.assert_array_equal(asked[0], [read_image(path, (32, 32, 3), resize="nearest") for path in paths])


def test_a_model_is_not_tested_on_other_classes_of_the_same_number(finished, tmp_path, capsys):
    for part in ("train", "valid"):
        draw_images(tmp_path / "other" / part, {"cat": 2, "dog": 2, "mouse": 2})
    before = finished.result.read_bytes()
    flags = [f"--runs_dir={finished.path.parent}", f"--data_dir={tmp_path / 'other'}"]
    for model in ("--version=done", f"--test_ckpt_path={finished.path}"):
        assert flowers.evaluate.main([*flags, model]) == 2 and finished.result.read_bytes() == before
        error = capsys.readouterr().err
        assert "tells pink primrose, 2, globe thistle, ... apart" in error and "has cat, dog, mouse;" in error


def test_a_model_given_by_its_file_is_tested_on_the_parts_of_its_run(finished, tmp_path, capsys):
    folder = draw_images(tmp_path / "all", {"pink primrose": 15, "2": 15, "globe thistle": 15})
    names = ["2", "globe thistle", "pink primrose"]
    facts = json.loads(finished.data.read_text()) | {
        "class_names": names,
        "class_folders": names,
        "images": {"all": 45},
    }
    del facts["fingerprint"]
    save_model(load_model(str(finished.best)), tmp_path / "best.keras")  # without the names of its classes
    flags = [f"--runs_dir={tmp_path}", f"--data_dir={folder}", f"--test_ckpt_path={tmp_path / 'best.keras'}"]
    # A tenth of 45 is 4; runs that began before this rule held out 2 of each class.
    for marker, count in (("all_classes", 4), (None, 6)):
        facts["split_rounding"] = marker
        (tmp_path / "data.json").write_text(
            json.dumps({key: value for key, value in facts.items() if value is not None})
        )
        assert flowers.evaluate.main(flags) == 0
        assert f"on {count} validation images" in capsys.readouterr().out


def test_a_run_is_tested_on_the_parts_it_was_trained_with(finished, image_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flowers.evaluate, "_draw", lambda *_: None)  # which `finished` tests
    before = finished.result.read_bytes()
    flags = [f"--runs_dir={finished.path.parent}", "--version=done"]
    for change in ("split_seed=1", "validation_fraction=0.3", "test_fraction=0.3", "classes=2", "dataset=synthetic"):
        assert flowers.evaluate.main([*flags, f"--{change}"]) == 2
        error = capsys.readouterr().err
        assert "was trained with" in error and f"received --{change}; leave that out" in error
    assert flowers.predict.main([str(image_folder), *flags, "--faithful"]) == 2
    assert finished.result.read_bytes() == before
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    assert flowers.evaluate.main([*flags, f"--data_dir={moved}"]) == 0
    assert json.loads(finished.result.read_text())["validation"] == json.loads(before)["validation"]
    assert not (finished.path / "evaluations").exists()
    next((moved / "train" / "2").iterdir()).unlink()
    before = finished.result.read_bytes()
    capsys.readouterr()
    assert flowers.evaluate.main([*flags, f"--data_dir={moved}"]) == 0 and finished.result.read_bytes() == before
    assert "on 27 test images of moved" in capsys.readouterr().out
    assert (finished.path / "evaluations" / "moved" / "result.json").is_file()


@pytest.mark.parametrize(
    ("command", "more"), [(flowers.evaluate, {"--split_seed", "--classes"}), (flowers.predict, set())]
)
def test_help_shows_only_what_a_command_reads(capsys, command, more):
    with pytest.raises(SystemExit):
        command.main(["--help-all"])
    shown = set(capsys.readouterr().out.split())
    assert {"--version", "--runs_dir", "--test_ckpt_path"} | more <= shown
    assert not {"--epochs", "--init_lr", "--weights", "--image_size", "--rotation"} & shown


def test_flags_are_judged_together_with_what_the_run_has_stored(tmp_path):
    config = FlowerParameters(augment=False, epochs=40, runs_dir=str(tmp_path), version="x")
    RunFolder(tmp_path / "x").begin(config, resume=False, overwrite=False)
    place = {"runs_dir": str(tmp_path), "version": "x"}
    given = {"cache_features": "on", "unfreeze_at_epoch": 30}  # each fits that run, and not the defaults
    options = {"goes_on": True, "begins": True}
    assert flowers.evaluate.stored_settings(place | given, **options) == dataclasses.replace(config, **given)
    with pytest.raises(UsageError, match="needs a frozen backbone"):
        flowers.evaluate.stored_settings(place | given | {"base": "trained"}, **options)
    with pytest.raises(UsageError, match="needs images that do not change"):
        flowers.evaluate.stored_settings(place | {"version": "y"} | given, goes_on=True, begins=True)


def test_published_trials():
    of_text = FlowerParameters(dataset="cifar10", model="resnet152v2", image_size=32)
    assert [trial.numbers["test"] for trial in published_trials(of_text, ["cat"] * 10, 10000)] == [
        (76.80, 0.7163),
        (78.95, 0.6532),
    ]
    folders = [str(number) for number in range(1, 11)]
    (flower,) = published_trials(FlowerParameters(data_dir="x"), folders, 43)
    assert flower.numbers == {"validation": (pytest.approx(100 * 38 / 43, abs=0.01), None)}
    assert published_trials(FlowerParameters(data_dir="x"), folders, 44) == ()
    assert published_trials(FlowerParameters(data_dir="x"), list("abcdefghij"), 43) == ()  # anybody's ten classes


@pytest.mark.slow
def test_a_run_gives_its_backbone_to_another(finished, image_folder, tmp_path):
    trainer = make_trainer(settings(image_folder, tmp_path, weights=str(finished.path), classes=2))
    source = heads.find_backbone(load_model(str(finished.best)))
    for expected, received in zip(source.get_weights(), trainer.task.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, received)
    other = settings(image_folder, tmp_path, weights=str(finished.path), model="resnet152v2")
    with pytest.raises(UsageError, match="does not fit resnet152v2"):
        make_trainer(other)


def make_trainer(config, data=None, run=None, load_weights=True):
    task = functools.partial(transfer.Transfer, load_weights=load_weights)
    return cifar10_train.Train(config, run, data, task=task)


def losses(trainer, steps):
    return [trainer._take_step(*batch) for batch in itertools.islice(trainer.task.training_batches(), steps)]


@pytest.mark.parametrize("towers", [1, 2])
def test_cached_features_give_the_losses_of_the_whole_model(image_folder, tmp_path, monkeypatch, towers):
    monkeypatch.setattr(devices, "count_inference_towers", lambda: towers)
    both = []
    for cache in ("on", "off"):
        trainer = make_trainer(settings(image_folder, tmp_path, variants=2, cache_features=cache, head="flatten"))
        assert trainer.task.caches_features == (cache == "on")
        both.append((losses(trainer, 4), list(trainer.stage.measure(0)[0].values())))
    np.testing.assert_allclose(both[0][0], both[1][0], rtol=1e-4)
    np.testing.assert_allclose(both[0][1], both[1][1], rtol=1e-3)


def test_features_are_cached_where_the_images_do_not_change(image_folder, tmp_path, monkeypatch):
    found = data.load_images(settings(image_folder, tmp_path))

    def caches(**changes):
        return make_trainer(settings(image_folder, tmp_path, **changes), data=found).task.caches_features

    assert caches(augment=False) and not caches()
    monkeypatch.setattr(features, "LARGEST_FEATURES", 100)
    assert not caches(augment=False)
    with pytest.raises(UsageError, match=r"would take .* GiB .*--head=pool"):
        caches(augment=False, cache_features="on")


def test_the_work_of_a_training_counts_what_was_computed(image_folder, tmp_path, monkeypatch):
    found = data.load_images(settings(image_folder, tmp_path))
    model = heads.build_transfer("resnet50", 3, input_shape=(32, 32, 3), head="pool")
    head = sum(np.prod(layer.kernel.shape) for layer in model.layers if isinstance(layer, keras.layers.Dense))
    convolutions = [16**2 * 27 * 8, *(side**2 * 72 * 8 for side in (8, 4, 2, 1))]
    backbone, images, steps = sum(convolutions), 21, 12  # four epochs of three batches of eight

    def work(**changes):
        return transfer_pflop(settings(image_folder, tmp_path, epochs=4, **changes), model, steps, found) * 1e15 / 2

    assert round(work(base="trained")) == 3 * (backbone + head) * 8 * steps
    assert round(work()) == (backbone + 3 * head) * 8 * steps  # each batch has other images
    assert round(work(variants=2)) == backbone * 2 * images + 3 * head * 8 * steps
    tuned = 3 * (head + convolutions[-1]) + sum(convolutions[:-1])
    assert round(work(augment=False, unfreeze_at_epoch=3)) == backbone * images + 3 * head * 8 * 9 + tuned * 8 * 3
    monkeypatch.setattr(features, "LARGEST_FEATURES", 100)
    assert round(work(augment=False)) == (backbone + 3 * head) * 8 * steps


def test_a_resumed_run_takes_its_frozen_backbone_from_its_folder(image_folder, tmp_path):
    config, run = settings(image_folder, tmp_path), RunFolder(tmp_path / "x")
    first = make_trainer(config, run=run)
    for variable in first.task.backbone.weights:
        variable.assign(variable + 0.5)
    first.task.keep_files()
    write_json(run.data, first.task.describe_data())
    resumed = make_trainer(config, data=first.data, run=run, load_weights=False)
    resumed.task.begin(resumed.model, resumed=True)
    for expected, received in zip(first.task.backbone.get_weights(), resumed.task.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, received)


def test_earlier_stages_of_a_backbone_learn_more_slowly(image_folder, tmp_path):
    task = make_trainer(settings(image_folder, tmp_path, base="trained", layer_decay=0.5)).task
    rates = dict(zip([one.path for one in task.transfer.trainable_variables], task.rates(task.transfer), strict=True))
    for stage in range(1, 6):
        for part in ("conv/kernel", "bn/gamma"):
            assert rates[f"conv{stage}_block1_1_{part}"] == 0.5 ** (6 - stage)
    assert {rate for path, rate in rates.items() if not path.startswith("conv")} == {1.0}


@pytest.mark.slow
def test_a_run_stopped_between_reports_ends_as_one_never_stopped(image_folder, tmp_path):
    config = settings(image_folder, tmp_path, variants=2, epochs=2, train_batch_size=4, deterministic=True, towers=2)

    def train(version, **how):
        return transfer.train(dataclasses.replace(config, version=version), **how)

    _, resumed = assert_resumes_exactly(train, 8)
    fewer = dataclasses.replace(config, version=resumed.path.name, classes=2)
    with pytest.raises(UsageError, match="expected --classes=0, received 2"):
        transfer.train(fewer, resume=True)


def test_the_last_stages_of_a_backbone_are_unfrozen(small):
    backbone = heads.find_backbone(small)
    for stages, first in ((1, "conv5"), (3, "conv3"), (5, "conv1")):
        heads.unfreeze_stages(backbone, stages)
        trained = {variable.path.split("/")[0][:5] for variable in backbone.trainable_variables}
        assert min(trained) == first and len(trained) == stages
    backbone.trainable = False


@pytest.fixture(scope="module")
def two_stages(image_folder, tmp_path_factory):
    """A run of two epochs on the head and two with the last stage, never stopped, and its backbone before it."""
    folder = tmp_path_factory.mktemp("stages")
    changes = {"unfreeze_at_epoch": 2, "epochs": 4, "patience": 1, "fine_tune_lr": 1e-3, "lr_schedule": "cosine"}
    config = settings(
        image_folder, folder, **changes, variants=2, deterministic=True, version="whole", weight_decay=0.01
    )
    trainer = make_trainer(config)
    start = trainer.task.backbone.get_weights()
    assert trainer.task.caches_features
    trainer.train()
    return trainer, start


@pytest.mark.slow
def test_fine_tuning_trains_the_last_stage_only_and_keeps_statistics(two_stages):
    trainer, start = two_stages
    assert trainer.task.unfrozen and not trainer.task.caches_features and trainer.model is trainer.task.transfer
    assert trainer.step >= 3 * trainer.report_freq  # patience 1 cannot end the first stage
    for before, variable in zip(start, trainer.task.backbone.weights, strict=True):
        changed = not np.array_equal(before, variable)
        trains = variable.path.startswith("conv5") and variable.name in ("kernel", "bias")
        assert changed == trains, variable.path
    rates = pd.read_csv(trainer.run.error_csv)["learning_rate"].tolist()
    first, second = trainer.task.stage_ends[0], trainer.train_steps - trainer.task.stage_ends[0]
    expected = [0.01 * (1 + np.cos(np.pi * (trainer.report_freq - 1) / first)) / 2]
    expected += [0.01 * (1 + np.cos(np.pi * (first - 1) / first)) / 2]
    expected += [1e-3 * (1 + np.cos(np.pi * (trainer.report_freq - 1) / second)) / 2]
    np.testing.assert_allclose(rates[1:4], expected)
    assert trainer.test(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 6, 7, 8])
def test_a_run_stopped_around_the_switch_ends_as_one_never_stopped(two_stages, step):
    whole, _ = two_stages
    assert whole.task.stage_ends[0] == 6

    def train(version, **how):
        return transfer.train(dataclasses.replace(whole.config, version=version), **how)

    assert_resumes_exactly(train, step, whole.run)


@pytest.mark.slow
def test_weight_decay_pulls_kernels(image_folder, tmp_path):
    """The first step of plain SGD with and without decay d differs by rate * d * kernel, and in kernels only."""
    found = data.load_images(settings(image_folder, tmp_path))
    trainers = []
    for decay in (0.0, 0.1):
        changes = {"optimizer": "momentum", "weight_decay": decay, "augment": False, "init_lr": 0.1}
        trainers.append(make_trainer(settings(image_folder, tmp_path, **changes), data=found))
        start = [variable.numpy() for variable in trainers[-1].model.trainable_variables]
        losses(trainers[-1], 1)
    for before, plain, decayed in zip(start, *(trainer.model.trainable_variables for trainer in trainers), strict=True):
        expected = -0.1 * 0.1 * before if plain.name == "kernel" else 0 * before
        np.testing.assert_allclose(decayed.numpy() - plain.numpy(), expected, atol=1e-6, err_msg=plain.path)


@pytest.mark.slow
def test_devices_drop_different_values_and_a_resumed_run_is_the_same(image_folder, tmp_path):
    """Two logical CPU devices share each batch."""
    code = """
import dataclasses, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, "tests")
from conftest import assert_resumes_exactly
from test_flowers import make_trainer, settings
from flowers import transfer

config = settings(sys.argv[1], sys.argv[2], augment=False, deterministic=True, strategy="mirrored", version="whole")
whole = make_trainer(config)
assert whole.task.caches_features and whole.machine.strategy.num_replicas_in_sync == 2
whole.train()
assert_resumes_exactly(lambda version, **how: transfer.train(dataclasses.replace(config, version=version), **how), 4, whole.run)

ones = tf.ones((4, *whole.model.input_shape[1:]))
outputs = whole.machine.strategy.run(tf.function(lambda: whole.model(ones, training=True)))
outputs = [np.array(output) for output in whole.machine.strategy.experimental_local_results(outputs)]
assert len(outputs) == 2 and not np.allclose(*outputs)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(image_folder), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, env=user_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


# Large folders, other data sets, the quirks of the text


@pytest.mark.slow
@pytest.mark.parametrize(("size", "told"), [(40, True), (90, False)])
def test_small_images_are_told_which_network_is_for_them(tmp_path, size, told, capsys):
    folder = draw_images(tmp_path / "all", {"a": 5, "b": 5}, size)
    flags = ["--weights=none", "--head=pool", "--variants=1", "--image_size=32", "--epochs=1"]
    assert flowers.train.main([f"--data_dir={folder}", f"--runs_dir={tmp_path / 'runs'}", *flags]) == 0
    note = "note: the images have about 40 pixels a side: --model=resnet20 begins with weights for such images"
    assert (note in capsys.readouterr().out) == told


def test_images_found_broken_while_training_are_named_and_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(image_part, "_MOST_IN_MEMORY", 0)
    folder = draw_images(tmp_path / "all", {"a": 5, "b": 5})
    config = settings(folder, tmp_path, on_bad_image="skip")
    training = data.load_images(config).training
    index = int(np.flatnonzero(training.labels == 0)[-1])
    (folder / "a" / training.files[index].rsplit("/", 1)[1]).write_bytes(b"broken")
    other = int(np.flatnonzero(training.labels == 0)[0])
    np.testing.assert_array_equal(training.read(index), training.read(other))
    images, labels = training.load(range(len(training)))
    assert len(images) == len(labels) == len(training) - 1 and list(training.broken) == [index]
    assert capsys.readouterr().out.count("skipped: ") == 1
    refusing = dataclasses.replace(training, skips=False, broken={})
    with pytest.raises(UsageError, match="is no image of a kind that is read"):
        refusing.read(index)


def test_validation_images_that_all_break_while_training_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(image_part, "_MOST_IN_MEMORY", 0)
    folder = draw_images(tmp_path / "all", {"a": 5, "b": 5})
    config = settings(folder, tmp_path, on_bad_image="skip")
    task = transfer.Transfer(config, RunFolder(tmp_path / "run"))
    task.caches_features = False  # which build() decides
    for file in task.validation.files:
        (folder / file).write_bytes(b"broken")
    with pytest.raises(UsageError, match="expected validation images that can be read"):
        list(task.validation_batches(0))


def test_leaks_are_not_sought_among_too_many_files(tmp_path, monkeypatch):
    folder = draw_images(tmp_path / "all" / "train", {"a": 4, "b": 4}).parent
    draw_images(folder / "valid", {"a": 1, "b": 1})
    shutil.copy(folder / "train" / "a" / "image_00.jpg", folder / "valid" / "b" / "again.jpg")
    monkeypatch.setattr(leaks, "_MOST_COMPARED", 1)
    counts = {"auto": None, "on": None, "off": None}
    for wanted in counts:
        counts[wanted] = data.load_images(settings(folder, tmp_path, find_leaks=wanted)).leak_count
    assert counts["auto"] is counts["off"] is None and counts["on"] >= 1


def test_cifar_is_read_and_split_as_by_the_other_command(cifar_folder, tmp_path):
    changes = {"dataset": "cifar10", "validation_fraction": 0.2, "test_fraction": 0.5}
    config = settings(cifar_folder, tmp_path, **changes)
    found = data.load_images(config)
    assert [len(part) for part in (found.training, found.validation, found.test)] == [240, 60, 60]
    assert found.class_names[0] == "airplane" and found.training.read(3).shape == (32, 32, 3)
    larger = data.load_images(dataclasses.replace(config, image_size=48, classes=2))
    assert larger.validation.read(0).shape == (48, 48, 3) and set(larger.training.labels) == {0, 1}
    assert config.dataset_name == "cifar10" and "--data_dir" not in config.command
    with pytest.raises(UsageError, match="--classes must be at most the 10 classes of cifar10, received 11"):
        data.load_images(dataclasses.replace(config, classes=11))


def test_images_of_cifar_shrink_as_those_of_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    PIL.Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    for size in (16, 48):
        part = image_part.ImagePart(("a",), np.zeros(1, np.int32), (size, size, 3), pixels)
        np.testing.assert_array_equal(part.read(0), read_image(tmp_path / "a.png", part.shape))


def test_the_quirks_of_the_text(image_folder, tmp_path):
    config = settings(image_folder, tmp_path, faithful=True, variants=1)
    found = data.load_images(config)
    assert found.class_folders == ("1", "10", "2")
    trainer = make_trainer(config, data=found)
    assert not trainer.task.caches_features
    pixels = np.full((1, 32, 32, 3), (1.0, 2.0, 3.0), np.float32)
    np.testing.assert_array_equal(trainer.task.transfer.get_layer("preprocessing")(pixels), pixels)
    first = np.concatenate([images for images, _ in trainer.task.validation_batches(0)])
    plain, _ = found.validation.load(range(len(found.validation)))
    second = np.concatenate([images for images, _ in trainer.task.validation_batches(trainer.report_freq)])
    assert first.shape == plain.shape and not np.array_equal(first, plain) and not np.array_equal(first, second)


def test_the_text_squeezes_images_by_their_nearest_pixels(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (40, 80, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "wide.png"), image[..., ::-1])
    expected = keras.utils.img_to_array(keras.utils.load_img(tmp_path / "wide.png", target_size=(32, 48)))
    np.testing.assert_array_equal(read_image(tmp_path / "wide.png", (32, 48, 3), resize="nearest"), expected)


@pytest.mark.slow
def test_a_image_that_vanishes_while_training_is_named(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(image_part, "_LARGEST_IN_MEMORY", 0)
    folder = tmp_path / "copy"
    shutil.copytree(image_folder, folder)
    trainer = make_trainer(settings(folder, tmp_path))
    (folder / "train" / "2" / "image_03.jpg").unlink()
    with pytest.raises(UsageError, match=r"image_03\.jpg., which does not exist"):
        trainer.train()


@pytest.mark.slow
def test_training_stops_when_the_validation_loss_no_longer_falls(image_folder, tmp_path):
    config = settings(image_folder, tmp_path, augment=False, epochs=30, patience=2, init_lr=0.3, deterministic=True)
    trainer = make_trainer(config)
    trainer.train()
    steps = [row["step"] for row in trainer.history]
    best = min(trainer.history[1:], key=lambda row: row["validation_loss"])
    assert trainer.step < trainer.train_steps and best["step"] == steps[-3]
    again = make_trainer(config, load_weights=False)
    again.train(resume=True)
    assert again.step == trainer.step

    def train(version, **how):
        return transfer.train(dataclasses.replace(config, version=version), **how)

    # Stopped before the last report, at it, and an epoch before: patience goes on where it was.
    for step in (trainer.step - trainer.report_freq, trainer.step - 1, trainer.step):
        _, resumed = assert_resumes_exactly(train, step, trainer.run)
        assert resumed.best.is_file() and resumed.final.is_file()


@pytest.mark.slow
def test_a_trained_backbone_changes_and_a_frozen_one_does_not(image_folder, tmp_path):
    for base in ("trained", "frozen"):
        trainer = make_trainer(settings(image_folder, tmp_path, base=base, cache_features="off"))
        before = trainer.task.backbone.get_weights()
        losses(trainer, 1)
        changed = [not np.array_equal(a, b) for a, b in zip(before, trainer.task.backbone.get_weights(), strict=True)]
        assert any(changed) == (base == "trained")


# The command line


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--dataset=folder"], "--data_dir must be a folder"),
        (["--data_dir=/no/such/folder"], "received '/no/such/folder'"),
        (["--epochs=0"], "--epochs must be at least 1"),
        (["--classes=1"], "--classes must be at least 2, or 0 for all, received 1"),
        (["--image_size=16"], "--image_size must be at least 32"),
        (["--data_dir=x", "--cache_features=on"], "needs images that do not change"),
        (["--cache_features=on", "--backbone=trained"], "needs a frozen backbone"),
        (["--resume", "--overwrite"], "exclude each other"),
        (["--version=a/b"], "plain folder name"),
        (["--lr_schedule=step"], "invalid choice: 'step'"),
        (["--unfreeze_at_epoch=5", "--base=trained"], "needs a backbone that is frozen until then"),
        (["--unfreeze_at_epoch=20"], "must be below --epochs=20"),
        (["--faithful", "--model=resnet152v2"], "has the quirks of the text on resnet50"),
        (
            ["--data_dir=x", "--fine_tune_lr=1e-5"],
            "--fine_tune_lr needs --unfreeze_at_epoch, such as 10, received --fine_tune_lr=1e-05 without",
        ),
        (["--data_dir=x", "--fine_tune_stages=2"], "--fine_tune_stages needs --unfreeze_at_epoch"),
        (["--data_dir=x", "--augment=false", "--rotation=9"], "--rotation needs --augment=true"),
        (["--data_dir=x", "--augment=false", "--pipeline=generator"], "--pipeline needs --augment=true"),
        (["--data_dir=x", "--weight_decay_on=all"], "--weight_decay_on needs --weight_decay above 0"),
        (["--data_dir=x", "--final_lr=0.1"], "--final_lr needs --lr_schedule=linear, cosine or plateau"),
        (["--data_dir=x", "--warmup_lr=0.1"], "--warmup_lr needs --warmup_steps above 0"),
        (
            ["--data_dir=x", "--folds=2", "--test_fraction=0.2"],
            "--test_fraction needs --dataset=folder without --folds",
        ),
        (["--split_seed=1"], "--split_seed needs images that are to be split, other than --dataset=oxford102"),
        (["--validation_fraction=0.2"], "--validation_fraction needs images that are to be split"),
        (["--test_fraction=0.2"], "--test_fraction needs --dataset=folder"),
        (["--dataset=cifar10", "--find_leaks=on"], "--find_leaks needs image files"),
        (["--dataset=cifar10", "--test_fraction=0.2"], "--test_fraction needs --dataset=folder"),
        (["--dataset=cifar10", "--on_bad_image=skip"], "--on_bad_image needs image files"),
        (["--strategy=multi_worker", "--data_dir=x"], "needs the environment variable TF_CONFIG"),
    ],
)
def test_mistakes_give_one_line_and_2(tmp_path, monkeypatch, capsys, flags, expected):
    monkeypatch.chdir(tmp_path)
    assert flowers.train.main(flags) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.strip().splitlines()) == 1 and error.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["test_fraction=0.2", "validation_fraction=0.2", "split_seed=1"])
def test_images_in_parts_are_not_split(image_folder, tmp_path, capsys, flag):
    assert flowers.train.main([f"--data_dir={image_folder}", f"--runs_dir={tmp_path}", f"--{flag}"]) == 2
    error = capsys.readouterr().err
    assert (
        f"--{flag.partition('=')[0]} is for images without a validation part" in error
        and "with the parts training, validation" in error
    )
    assert len(error.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        (flowers.evaluate, ["--experiment=mine"], "--experiment=mine is about --publish"),
        (flowers.evaluate, ["--results_dir=mine"], "--results_dir=mine is about --publish"),
        (flowers.predict, ["a.png", "--explain_limit=3"], "--explain_limit=3 is about --explain"),
        (cifar10_main, ["--mode=predict", "--explain_limit=3"], "--explain_limit=3 is about --explain"),
    ],
)
def test_flags_that_need_another_one_name_it(capsys, command, flags, expected):
    assert command.main([*flags, "--version=x"]) == 2
    assert expected in capsys.readouterr().err


def test_weights_that_cannot_be_used_leave_no_run(image_folder, tmp_path, capsys):
    flags = [f"--data_dir={image_folder}", f"--runs_dir={tmp_path / 'runs'}", "--image_size=32", "--weights=nowhere.h5"]
    assert flowers.train.main(flags) == 2
    assert "nowhere.h5" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_a_model_that_is_given_by_its_file_may_have_fewer_pixels_than_the_network_of_the_text():
    assert FlowerParameters(test_ckpt_path="small.keras", image_size=8).image_size == 8
    with pytest.raises(UsageError, match="--image_size must be at least 32 for --model=resnet50, received 8"):
        FlowerParameters(image_size=8)


def test_interval_of_the_published_accuracy():
    low, high = confidence_interval(38, 43)
    assert low == pytest.approx(75.5, abs=0.06) and high == pytest.approx(94.9, abs=0.06)
    low, high = confidence_interval(43, 43)
    assert 91 < low < 92 and high == 100
    assert "scipy>=" in (ROOT / "setup.cfg").read_text()


@pytest.mark.slow
def test_a_large_tree_starts_soon(tmp_path):
    """20,000 tiny files in 1,000 classes are listed, checked and split in less than 15 seconds."""
    image = cv2.imencode(".jpg", np.full((8, 8, 3), 90, np.uint8))[1].tobytes()
    for label in range(1000):
        folder = tmp_path / "all" / f"class_{label}"
        folder.mkdir(parents=True)
        for number in range(20):
            (folder / f"{number}.jpg").write_bytes(image)
    started = time.monotonic()
    found = data.load_images(settings(tmp_path / "all", tmp_path))
    assert time.monotonic() - started < 15
    assert len(found.training) + len(found.validation) + len(found.test) == 20000
