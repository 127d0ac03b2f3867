"""Training that reckons with 8 bits: what is rounded, what stays, and that such a run resumes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import assert_resumes_exactly, tiny

from cifar10_train import train
from hyper_parameters import HyperParameters
from resnet import build_resnet
from resnet_study.errors import UsageError
from resnet_study.saved_models import load_model
from resnet_study.training.quantization import imitate_int8

IMAGES = np.random.default_rng(0).normal(size=(8, 16, 16, 3)).astype(np.float32)


def randomize(model):
    for index, layer in enumerate(model.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            rng = np.random.default_rng(index)
            layer.set_weights([rng.uniform(0.5, 1.5, size=weight.shape) for weight in layer.weights])
    return model


@pytest.mark.parametrize("form", ["v1", "preact"])
def test_a_rounded_network_answers_nearly_as_itself_and_trains_all_its_weights(form):
    model = randomize(build_resnet(1, form, input_shape=(16, 16, 3), classifier_activation=None))
    before, wanted = model.get_weights(), model(IMAGES, training=False).numpy()
    forward = imitate_int8(model)
    with tf.GradientTape() as tape:
        rounded = forward(IMAGES, training=True)
    assert 0 < np.abs(rounded - wanted).max() < 0.1 * np.abs(wanted).max()
    assert all(np.any(gradient) for gradient in tape.gradient(rounded, model.trainable_variables))
    for old, new in zip(before, model.get_weights(), strict=True):  # batch norm is that of a test
        np.testing.assert_array_equal(old, new)


def test_kernels_are_rounded_to_8_bits_per_channel_and_maps_to_8_bits():
    image = keras.Input((8, 8, 3))
    maps = image
    for channels in (3, 2, 2):
        maps = keras.layers.Conv2D(channels, 1, use_bias=False)(maps)
    model = keras.Model(image, maps)
    # Steps of 1/127 of the largest weight of each channel are kept, whatever the other channel has.
    kernel = np.array([[127, 5, -64], [12700, -300, 100]], np.float32).T.reshape(1, 1, 3, 2)
    # The first and the last convolution pass on what they get, with a factor that 8 bits do not hold.
    model.set_weights([np.eye(3)[None, None], kernel, np.array([[[[1, 1 / 3], [0, 1]]]])])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.float32)
    pixels[0, 0, 0] = [0, 255, 0]
    np.testing.assert_allclose(imitate_int8(model)(pixels), model(pixels), rtol=1e-5)
    pixels += 0.4
    assert np.abs(imitate_int8(model)(pixels) - model(pixels)).max() > 10


def train_on(trained_run, folder, version, **options):
    start = {"is_use_ckpt": True, "ckpt_path": str(trained_run.path), "precision": "float32", "quantize_aware": True}
    return train(tiny(folder, version=version, **start), **options)


def test_such_a_run_keeps_the_statistics_of_its_source(trained_run, tmp_path):
    run = train_on(trained_run, tmp_path, "x")
    source, trained = load_model(str(trained_run.path)), load_model(str(run.final))
    pairs = list(zip(source.weights, trained.weights, strict=True))
    changed = {old.name for old, new in pairs if np.any(old.numpy() != new.numpy())}
    assert changed == {"kernel", "bias", "gamma", "beta"}


@pytest.mark.slow
def test_such_a_run_resumes_exactly(trained_run, tmp_path):
    assert_resumes_exactly(lambda version, **options: train_on(trained_run, tmp_path, version, **options), 4)


@pytest.mark.parametrize("given", [{"precision": "float32"}, {"is_use_ckpt": True, "ckpt_path": "cifar10"}])
def test_it_needs_a_trained_network_and_float32(given):
    with pytest.raises(UsageError, match="give --is_use_ckpt, --ckpt_path and --precision=float32"):
        HyperParameters(quantize_aware=True, **given)
