"""Classes of unequal size: weights of the loss, metrics that do not hide it, and warnings."""

import dataclasses
import json
import math

import numpy as np
import pytest
import sklearn.metrics
import tensorflow as tf
from conftest import tiny

import cifar10_train
from cifar10_input import plan_indices
from hyper_parameters import from_preset
from resnet_study.data.balance import balanced_order, class_weights, describe_balance
from resnet_study.data.toy_data import SYNTHETIC_CLASSES
from resnet_study.errors import UsageError
from resnet_study.metrics import measure
from resnet_study.reports.console import print_result
from resnet_study.training.step import measure_classes

LABELS = np.repeat(np.int32([0, 1, 2]), [60, 30, 6])
NAMES = ["cat", "dog", "owl"]


def test_balanced_weights_let_every_class_count_alike(tmp_path):
    weights = class_weights("balanced", LABELS, NAMES, ())
    np.testing.assert_allclose(weights * np.bincount(LABELS), 32, rtol=1e-6)
    assert weights[LABELS].mean() == pytest.approx(1) and class_weights("", LABELS, NAMES, ()) is None
    logits = tf.constant(np.random.default_rng(0).normal(size=(96, 3)), tf.float32)
    plain, sums = measure_classes(logits, tf.constant(LABELS, tf.int32), 0.1)
    weighted, same = measure_classes(logits, tf.constant(LABELS, tf.int32), 0.1, weights)
    np.testing.assert_allclose(weighted, plain * weights[LABELS], rtol=1e-6)
    assert {name: float(value) for name, value in sums.items()} == {name: float(value) for name, value in same.items()}
    (tmp_path / "w.json").write_text('{"cat": 1, "2": 2.5, "owl": 4}')
    assert class_weights(str(tmp_path / "w.json"), LABELS, NAMES, ("1", "2", "3")).tolist() == [1, 2.5, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "it is no dictionary"), ('{"cat": 1}', "it has none for dog"), ("{", "Expecting"),
     ('{"cat": 1, "dog": 0, "owl": 1}', "not positive"), ('{"cat": 1, "dog": "x", "owl": 1}', "could not convert")],
)  # fmt: skip
def test_files_of_weights_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(UsageError, match=f"w.json must hold .* received .*{message}"):
        class_weights(str(tmp_path / "w.json"), LABELS, NAMES, ())
    with pytest.raises(UsageError, match="which does not exist"):
        class_weights("blanced", LABELS, NAMES, ())


def test_few_and_uneven_classes_are_told():
    few, uneven = describe_balance(LABELS, NAMES, False)
    assert "1 class(es) have fewer than 20 training images: owl (6);" in few
    assert "cat has 60 training images, owl has 6; --class_weight=balanced" in uneven
    assert describe_balance(LABELS, NAMES, True) == [few]
    assert describe_balance(np.repeat([0, 1, 2], [60, 30, 20]), NAMES, False) == []


def test_results_tell_what_accuracy_hides(capsys):
    """A model that always says cat, on three classes of which one has no image."""
    labels = np.repeat([0, 1], [9, 1])
    metrics = measure(np.tile([0.8, 0.1, 0.1], (10, 1)), labels, NAMES)
    assert metrics["accuracy"] == 90 and metrics["balanced_accuracy"] == 50
    assert metrics["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, np.zeros(10), average="macro"))
    print_result({"model": "m", "dataset": "d", "test": metrics})
    told = capsys.readouterr().out
    assert "classes of 1 to 9 images: balanced accuracy 50.00 %, macro F1 0.474" in told
    assert "always saying cat would have an accuracy of 90.00 %; nothing useful was learnt" in told


def test_a_run_with_weights(tmp_path, capsys):
    given = {
        "model": "lenet5",
        "synthetic_images": 200,
        "train_steps": 2,
        "tensorboard": False,
        "runs_dir": str(tmp_path),
    }
    cifar10_train.train(from_preset("smoke", class_weight="balanced", version="x", **given))
    assert "class(es) have fewer than 20 training images" in capsys.readouterr().out
    with pytest.raises(UsageError, match="--class_weight must be balanced or a JSON file"):
        cifar10_train.train(from_preset("smoke", class_weight="nowhere.json", version="y", **given))
    assert not (tmp_path / "y").exists()
    weights = tmp_path / "w.json"
    weights.write_text(json.dumps(dict.fromkeys(SYNTHETIC_CLASSES, 2.0)))
    # Who overwrites a run must not train by the weights that it had.
    config = from_preset("smoke", class_weight=str(weights), version="w", **given)
    cifar10_train.train(config)
    with pytest.raises(UsageError, match=r"has taken class weights or --jpeg_size from the run in .*w, which"):
        cifar10_train.Train(config).train(overwrite=True)
    cifar10_train.train(from_preset("smoke", balanced_sampling=True, version="z", **given))
    with pytest.raises(UsageError, match="received it and --class_weight=balanced"):
        from_preset("smoke", balanced_sampling=True, class_weight="balanced")


def test_balanced_sampling_draws_every_class_equally_often_and_every_image_in_time():
    config = from_preset("smoke", balanced_sampling=True, train_batch_size=8)
    drawn, rounds = (
        np.concatenate(values)
        for values in zip(*(plan_indices(step, LABELS, config) for step in range(96)), strict=True)
    )
    epochs = LABELS[drawn].reshape(8, len(LABELS))
    shares = [np.bincount(epoch, minlength=3) for epoch in epochs]
    assert np.abs(np.array(shares) - len(LABELS) / 3).max() <= 1
    assert len(np.unique(drawn)) == len(LABELS)
    # No image comes twice in the same round, so that its augmentation differs each time.
    assert len(set(zip(drawn.tolist(), rounds.tolist(), strict=True))) == len(drawn)
    again, _ = plan_indices(5, LABELS, config)
    np.testing.assert_array_equal(again, drawn[40:48])
    first, _ = balanced_order(0, 0, LABELS.tobytes())
    assert sorted(first[LABELS[first] == 0]) == sorted(set(first[LABELS[first] == 0]))  # none of a large class twice


def test_a_lower_accuracy_than_of_one_answer_is_no_sign_of_nothing_learnt(capsys):
    labels = np.repeat([0, 1, 2], [30, 2, 1])
    answers = np.array([0] * 27 + [1, 2, 2] + [0, 1] + [2])
    print_result({"model": "m", "dataset": "d", "test": measure(np.eye(3)[answers] * 0.8 + 0.1, labels, NAMES)})
    assert "of 90.91 %; look at the balanced accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("sizes", [(75, 25), (100, 100, 100, 20)])
def test_a_large_class_sees_all_variants_too(sizes):
    """Each image counts its own draws, so that no variant of a large class is left out because a small one has more of them."""
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    seen = [[] for _ in labels]
    for epoch in range(6):
        for image, number in zip(*balanced_order(0, epoch, labels.tobytes()), strict=True):
            seen[image].append(int(number))
    share = math.ceil(len(labels) / len(sizes))
    for label, numbers in zip(labels, seen, strict=True):
        assert len(set(numbers)) == len(numbers) and max(numbers) < 6 * math.ceil(share / sizes[label])


def test_weights_of_a_file_stay_with_the_run(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps({name: 1 + number for number, name in enumerate(SYNTHETIC_CLASSES)}))
    config = tiny(
        tmp_path,
        model="lenet5",
        class_weight=str(tmp_path / "w.json"),
        lr_schedule="constant",
        warmup_steps=0,
        label_smoothing=0.2,
    )
    run = cifar10_train.train(dataclasses.replace(config, train_steps=3))
    (tmp_path / "w.json").unlink()
    cifar10_train.train(config, resume=True)
    assert json.loads(run.data.read_text())["class_weights"] == list(range(1, 11))
    logits = np.random.default_rng(0).normal(size=(10, 10)).astype(np.float32)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    losses, _ = cifar10_train.Train(config, run).task.measure(logits, np.arange(10, dtype=np.int32))
    expected = np.arange(1, 11) * (-0.8 * np.diag(logs) - 0.2 * logs.mean(axis=1))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
