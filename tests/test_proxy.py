"""Training on the hardest images of each batch: which they are, what the network learns from them, a run that goes on."""

import functools
import itertools

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import assert_resumes_exactly, last_arrays

from cifar10_test import evaluate
from cifar10_train import Train, train
from hyper_parameters import from_preset
from resnet_study.errors import UsageError
from resnet_study.networks import registry
from resnet_study.networks.multiply_adds import multiply_adds
from resnet_study.training.proxy import build_proxy, training_pflop

tiny = functools.partial(
    conftest.tiny, train_steps=10, report_freq=5, synthetic_images=80, train_batch_size=8, hard_share=0.5
)


def new_stage(tmp_path, **changes):
    """The stage of a run that has begun, and its first batch."""
    training = Train(tiny(tmp_path, **changes))
    training.task.begin(training.model, resumed=False)
    return training, *next(iter(training.task.training_batches()))


def test_the_images_with_the_largest_losses_are_chosen(tmp_path):
    training, images, labels = new_stage(tmp_path)
    proxy = training.stage._proxy
    before = {name: variable.numpy() for name, variable in proxy.variables.items()}
    chosen, of_these = tf.function(proxy.choose)(images, labels)
    for name, variable in proxy.variables.items():
        np.testing.assert_array_equal(variable.numpy(), before[name], err_msg=name)
    logits = proxy.model(images, training=True)
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True).numpy()
    hardest = np.sort(np.argsort(losses)[-4:])
    np.testing.assert_array_equal(chosen, images.numpy()[hardest])
    np.testing.assert_array_equal(of_these, labels.numpy()[hardest])


@pytest.mark.parametrize("towers", [1, 2])
def test_a_step_is_that_of_the_chosen_images_at_their_share_of_the_rate(tmp_path, towers):
    changes = {"model": "lenet5", "optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0, "towers": towers}
    training, images, labels = new_stage(tmp_path, **changes, init_lr=0.2, warmup_steps=0, lr_schedule="constant")
    chosen = training.stage._proxy.choose(images, labels)
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


def test_the_proxy_is_trained_in_every_fourth_step(tmp_path):
    training, images, labels = new_stage(tmp_path)
    weights = [training.stage._proxy.model.get_weights()]
    for step in range(6):
        training.stage.train(images, labels, step)
        weights.append(training.stage._proxy.model.get_weights())
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
    train(config)
    result, _ = evaluate(config)
    assert result["pflop"] == pytest.approx(training_pflop(config, model, 5), rel=1e-3)


def test_what_cannot_be_chosen_from_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="networks with one head"):
        from_preset("smoke", dataset="cifar10", heads="class,kind", hard_share=0.5)
    with pytest.raises(UsageError, match="hard_share must be at least"):
        from_preset("smoke", hard_share=0.0)
    with pytest.raises(UsageError, match="at least one image"):
        from_preset("smoke", hard_share=0.01)
