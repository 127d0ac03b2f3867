"""Training on the hardest images of each batch: which they are, what the network learns from them, a run that goes on."""

import dataclasses
import functools
import itertools
import types

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import assert_resumes_exactly, last_arrays

from cifar10_input import load_data
from cifar10_test import evaluate
from cifar10_train import Train, train
from hyper_parameters import from_preset
from resnet_study import devices
from resnet_study.data.image_data import Split
from resnet_study.errors import UsageError
from resnet_study.networks import registry
from resnet_study.networks.multiply_adds import multiply_adds
from resnet_study.reports.results import describe_origin
from resnet_study.training.proxy import build_proxy
from resnet_study.training.work import training_pflop

tiny = functools.partial(
    conftest.tiny,
    model="lenet5",
    train_steps=10,
    report_freq=5,
    synthetic_images=80,
    train_batch_size=8,
    hard_share=0.5,
)


def new_stage(tmp_path, **changes):
    """The stage of a run that has begun, and its first batch."""
    training = Train(tiny(tmp_path, **changes))
    training.task.begin(training.model, resumed=False)
    return training, *next(iter(training.task.training_batches()))


@pytest.mark.parametrize("towers", [1, 2])
def test_the_images_with_the_largest_losses_are_chosen(tmp_path, towers):
    training, images, labels = new_stage(tmp_path, towers=towers, label_smoothing=0.2)
    proxy = training.stage.proxy
    before = {name: variable.numpy() for name, variable in proxy.variables.items()}
    chosen, of_these = tf.function(proxy.choose)(images, labels)
    for name, variable in proxy.variables.items():
        np.testing.assert_array_equal(variable.numpy(), before[name], err_msg=name)
    logits = np.concatenate([proxy.model(part, training=True) for part in np.split(images, towers)])
    targets = 0.8 * np.eye(10)[labels] + 0.02
    losses = -(targets * tf.nn.log_softmax(logits).numpy()).sum(axis=1)
    hardest = np.sort(np.argsort(losses)[-4:])
    np.testing.assert_array_equal(chosen, images.numpy()[hardest])
    np.testing.assert_array_equal(of_these, labels.numpy()[hardest])


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("towers", [1, 2])
def test_a_step_is_that_of_the_chosen_images_at_their_share_of_the_rate(tmp_path, towers):
    changes = {"optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0, "towers": towers}
    training, images, labels = new_stage(tmp_path, **changes, init_lr=0.2, warmup_steps=0, lr_schedule="constant")
    chosen = training.stage.proxy.choose(images, labels)
    apart = Train(
        tiny(
            tmp_path, **changes, hard_share=1.0, train_batch_size=4, init_lr=0.1, warmup_steps=0, lr_schedule="constant"
        )
    )
    apart.model.set_weights(training.model.get_weights())
    sums = training.stage.train(images, labels, 0)
    expected = apart.stage.train(*chosen, 0)
    assert float(sums["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
    for found, weight in zip(training.model.get_weights(), apart.model.get_weights(), strict=True):
        np.testing.assert_allclose(found, weight, rtol=1e-4, atol=1e-6)


def test_the_proxy_is_trained_on_the_hardest_images(tmp_path):
    plain = {"optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0, "towers": 1, "precision": "float32"}
    training, images, labels = new_stage(tmp_path, **plain)
    model = training.stage.proxy.model
    variables = model.trainable_variables
    assert "stem_whitening" not in {variable.path.split("/")[0] for variable in variables}
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
        objective = tf.reduce_sum(tf.sort(losses)[-4:]) / 8
    expected = [
        variable.numpy() - 0.1 * gradient.numpy()
        for variable, gradient in zip(variables, tape.gradient(objective, variables), strict=True)
    ]
    sums = training.stage.proxy.train(images, labels, 4, 0.1)
    assert float(sums["proxy_loss"]) == pytest.approx(float(tf.reduce_sum(losses)), rel=1e-4)
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-3, atol=1e-4, err_msg=variable.path)


@pytest.mark.usefixtures("eager")
def test_the_proxy_is_trained_in_every_fourth_step(tmp_path):
    training, images, labels = new_stage(tmp_path)
    weights = [training.stage.proxy.model.get_weights()]
    for step in range(6):
        training.stage.train(images, labels, step)
        weights.append(training.stage.proxy.model.get_weights())
    changed = [
        any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))
        for before, after in itertools.pairwise(weights)
    ]
    assert changed == [True, False, False, False, True, False]


@pytest.mark.parametrize("towers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_with_a_proxy_goes_on_exactly(tmp_path, towers):
    def run(version, resume=False, **how):
        return train(tiny(tmp_path, version=version, towers=towers), resume=resume, **how)

    whole, _ = assert_resumes_exactly(run, 7)
    assert any(name.startswith("proxy_optimizer/") for name in last_arrays(whole))


def test_the_work_is_that_of_the_chosen_images_and_of_the_proxy(tmp_path):
    config = from_preset("smoke", hard_share=0.25)
    model = registry.find("resnet8").build()
    work = (3 * multiply_adds(model) * 8 + 1.75 * multiply_adds(build_proxy((32, 32, 3), 10)) * 32) * 2
    assert training_pflop(config, model, 10) == pytest.approx(10 * work / 1e15)
    without = from_preset("smoke")
    assert training_pflop(without, model, 10) == pytest.approx(6 * 10 * 32 * multiply_adds(model) / 1e15)
    config = tiny(tmp_path, train_steps=5)
    run = train(config)
    result, _ = evaluate(config)
    assert result["pflop"] == pytest.approx(training_pflop(config, registry.find("lenet5").build(), 5), rel=1e-3)
    assert describe_origin(run, config)["images_seen"] == 5 * 4


@pytest.mark.usefixtures("eager")
def test_reports_tell_of_the_images_that_were_trained_on(tmp_path):
    training, images, labels = new_stage(tmp_path)
    chosen = training.stage.proxy.choose(images, labels)
    losses = keras.losses.sparse_categorical_crossentropy(
        chosen[1], training.model(chosen[0], training=True), from_logits=True
    )
    assert training._take_step(images, labels) == pytest.approx(float(tf.reduce_mean(losses)), rel=0.02)


@pytest.mark.usefixtures("eager")
def test_a_proxy_that_diverges_ends_the_training(tmp_path):
    training = Train(tiny(tmp_path))
    training.stage.proxy.model.get_layer("predictions").kernel.assign(np.full((64, 10), np.nan))
    with pytest.raises(UsageError, match="the loss must be finite"):
        training.train()


def test_what_cannot_be_chosen_from_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="networks with one head"):
        from_preset("smoke", dataset="cifar10", heads="class,kind", hard_share=0.5)
    with pytest.raises(UsageError, match="hard_share must be at least"):
        from_preset("smoke", hard_share=0.0)
    for share in (0.01, 0.99):
        with pytest.raises(UsageError, match="must leave some images"):
            from_preset("smoke", hard_share=share)
    with pytest.raises(UsageError, match="--accumulate=2 computes"):
        from_preset("smoke", hard_share=0.5, accumulate=2)
    with pytest.raises(UsageError, match="at least 16 pixels, received 12; give --hard_share=1"):
        Train(tiny(tmp_path, dataset="synthetic"), data=small_images())
    with pytest.raises(UsageError, match="for one device, received 2"):
        monkeypatch.setattr(devices, "choose_strategy", lambda name: types.SimpleNamespace(num_replicas_in_sync=2))
        Train(tiny(tmp_path))


def small_images():
    data = load_data(from_preset("smoke", synthetic_images=80))
    parts = {
        part: Split(split.images[:, :12, :12], split.labels)
        for part, split in (("train", data.train), ("test", data.test))
    }
    return dataclasses.replace(data, **parts)


def test_few_chosen_images_are_not_shared_among_towers(tmp_path):
    assert Train(tiny(tmp_path, train_batch_size=64, hard_share=0.25, version="few")).machine.towers == 1
    with pytest.raises(UsageError, match="--towers must be at most the 1 images"):
        Train(tiny(tmp_path, hard_share=0.125, towers=2, version="one"))
