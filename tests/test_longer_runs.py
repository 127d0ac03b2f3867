"""More steps for a run that ended, plateaus, patience, parts of batches, float16, mixed images: each resumes bit by bit."""

import dataclasses
import itertools
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import stop_after

from cifar10_input import Split, load_data, plan_batch, training_batches
from cifar10_train import Interrupted, Train, train
from flowers.settings import FlowerParameters
from hyper_parameters import HyperParameters, from_preset
from resnet_study.checkpoints import read_checkpoint
from resnet_study.data.corruptions import worsen_batch
from resnet_study.data.mixing import Mixer, check_mixing
from resnet_study.errors import UsageError
from resnet_study.networks.layers import PixelNormalization
from resnet_study.presets import PRESETS
from resnet_study.run_folder import RunFolder
from resnet_study.training import run_log
from resnet_study.training.averages import update_averages
from resnet_study.training.callbacks import Plateau
from resnet_study.training.learning_rate import learning_rate_at, stage_rate
from resnet_study.training.optimizers import find_decayed, make_optimizer
from resnet_study.training.run_log import forecast, note_long_warmup
from resnet_study.training.step import CompiledSteps, UpdateRule, measure_classes
from resnet_study.training.tasks import Classification

SETTINGS = {
    "version": "x", "model": "lenet5", "precision": "float32", "train_steps": 4, "report_freq": 2,
    "synthetic_images": 80, "train_batch_size": 8, "tensorboard": False,
}  # fmt: skip


def tiny(folder, **changes):
    return from_preset("smoke", runs_dir=str(folder), **{**SETTINGS, **changes})


def stored(run):
    return {name: array.tobytes() for name, array in read_checkpoint(run.latest_checkpoint())[0].items()}


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def test_a_finished_run_goes_on_as_if_it_had_been_longer_from_the_first(tmp_path, monkeypatch):
    constant = {"lr_schedule": "constant", "init_lr": 0.01, "warmup_steps": 0}
    whole = train(tiny(tmp_path / "whole", **constant))
    train(tiny(tmp_path / "parts", **constant, train_steps=2))
    with monkeypatch.context() as patch:
        patch.setattr("resnet_study.training.memory.free_memory", lambda: 0)
        train(tiny(tmp_path / "whole", **constant), resume=True)  # nothing is left to train
        with pytest.raises(
            UsageError, match=r"0\.0 are free; free some, or go on on another machine; in a new run, give a"
        ):
            train(tiny(tmp_path / "parts", **constant), resume=True)
    longer = train(tiny(tmp_path / "parts", **constant), resume=True)
    assert stored(longer) == stored(whole)
    assert json.loads(longer.config.read_text())["train_steps"] == 4
    with pytest.raises(UsageError, match="expected --train_steps=4, received 2"):
        train(tiny(tmp_path / "parts", **constant, train_steps=2), resume=True)


def test_a_schedule_that_has_ended_begins_anew_when_that_is_asked_for(tmp_path):
    cosine = {"lr_schedule": "cosine", "init_lr": 0.02, "warmup_steps": 0, "report_freq": 1}
    train(tiny(tmp_path, **cosine, train_steps=2))
    with pytest.raises(UsageError, match="the cosine schedule has ended after 2; add --extend=2"):
        train(tiny(tmp_path, **cosine), resume=True)
    run = train(tiny(tmp_path, **cosine, extend=2), resume=True)
    rates = list(run.read_history()["learning_rate"])[1:]
    assert rates == pytest.approx([0.02, 0.01, 0.02, 0.01])
    assert json.loads(run.config.read_text())["extend"] == 2
    assert run.read_config(HyperParameters).extended_at(run.read_history()) == 2
    assert (
        FlowerParameters(data_dir="folder", extend=1).extended_at(run.read_history()) == run.read_history()["step"][1]
    )
    assert (
        FlowerParameters(data_dir="folder", extend=9).extended_at(run.read_history()) == 0
    )  # patience ended it before
    with pytest.raises(UsageError, match="--extend must be below --train_steps=4"):
        tiny(tmp_path, extend=4)


def test_the_averages_of_lookahead_grow_anew_where_the_schedule_does():
    update = UpdateRule(
        batch_size=1, weight_decay=0.0, weight_decay_on="kernels", weight_averaging=0.8, lookahead_steps=4, extend=6
    )
    decays = {}
    for count in range(1, 11):
        weight, average = keras.Variable(1.0), tf.Variable(0.0)
        update_averages([average], [weight], update, tf.constant(count), 10)
        if average.numpy():
            decays[count] = 1 - float(average)
            assert weight.numpy() == average.numpy()
    # Each part ends with an average, and within it the share of the earlier one grows with the third power.
    assert decays == pytest.approx({4: 0.8 * (4 / 6) ** 3, 6: 0.8, 8: 0.8 * (2 / 4) ** 3, 10: 0.8})


def test_the_moving_average_forgets_the_random_start():
    update = UpdateRule(batch_size=1, weight_decay=0.0, weight_decay_on="kernels", weight_averaging=0.5)
    for count, decay in ((1, 2 / 11), (4, 5 / 14), (8, 0.5), (100, 0.5)):
        weight, average = keras.Variable(1.0), tf.Variable(0.0)
        update_averages([average], [weight], update, tf.constant(count), 100)
        assert 1 - float(average) == pytest.approx(decay), count
        assert weight.numpy() == 1


def test_a_plateau_lowers_the_rate_wherever_the_run_was_resumed():
    values = [5.0, 4.0, 4.0, 4.5, 3.0, 3.0, 3.0, 3.0]
    reports = [(number, {"e": value}) for number, value in enumerate(values)]
    whole, counts = Plateau("e", 2), []
    for report in reports:
        whole.on_epoch_end(*report)
        counts.append(whole.lowered)
    assert counts == [0, 0, 0, 1, 1, 1, 2, 2]
    for known in range(len(reports)):
        again = Plateau("e", 2)
        again.go_on(reports[: known + 1])
        assert again.lowered == counts[known]
    config = tiny("x", lr_schedule="plateau", init_lr=0.1, final_lr=0.005, warmup_steps=0)
    assert [learning_rate_at(9, config, lowered=count) for count in range(3)] == pytest.approx([0.1, 0.01, 0.005])


def test_patience_ends_a_run_of_a_small_network(tmp_path):
    run = train(tiny(tmp_path, train_steps=40, report_freq=1, patience=1, init_lr=0.0, warmup_steps=0))
    assert run.read_history()["step"].tolist() == [0, 1, 2]  # the untrained network does not count
    with pytest.raises(UsageError, match="validation_fraction=0"):
        tiny(tmp_path, patience=1, validation_fraction=0.0)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model": "resnet8", "mixup": 0.2, "cutmix": 1.0, "rand_augment": 0.3}, marks=pytest.mark.slow),
        pytest.param(
            {"model": "resnet8", "mixup": 0.2, "corrupt": 0.5, "accumulate": 2, "towers": 2, "lr_schedule": "plateau"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_with_them_goes_on_bit_by_bit(tmp_path, changes):
    whole = train(tiny(tmp_path / "whole", **changes))
    train(tiny(tmp_path / "parts", **changes), callbacks=[Stop()])
    assert stored(train(tiny(tmp_path / "parts", **changes), resume=True)) == stored(whole)


@pytest.mark.parametrize("mix", ["even", "compressed"])
def test_images_are_made_worse_by_the_augmentation_alone(tmp_path, mix):
    with pytest.raises(UsageError, match="--corrupt is a part of the augmentation"):
        tiny(tmp_path, corrupt=0.5, augment=False)
    part = Split(np.random.default_rng(0).integers(60, 190, (16, 8, 8, 3), np.uint8), np.zeros(16, np.int32))
    config = tiny(tmp_path, corrupt=0.5, corrupt_mix=mix, padding_size=0, flip="none", train_batch_size=16)
    images, _ = next(iter(training_batches(part, PixelNormalization(0.0, 1.0), config)))
    drawn = part.images[plan_batch(0, part.labels, config).indices]
    np.testing.assert_array_equal(images, worsen_batch(drawn, 0.5, (config.seed, 8, 0), mix=mix))
    assert (images.numpy() != drawn).any()
    other = worsen_batch(drawn, 0.5, (config.seed, 8, 0), mix={"even": "compressed", "compressed": "even"}[mix])
    assert (images.numpy() != other).any()


def steps_of(policy, parts, config):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2, dtype=policy)])
    optimizer = make_optimizer(config, model.trainable_variables, 1, policy)
    update = UpdateRule(batch_size=8, weight_decay=0.1, weight_decay_on="kernels", parts=parts)
    steps = CompiledSteps(
        model=model, optimizer=optimizer, averages=[], measure=lambda *given: measure_classes(*given, 0.0), update=update,
        normalization=tf.identity, strategy=tf.distribute.get_strategy(), towers=1, train_steps=1,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    images, labels = (
        tf.constant(rng.normal(size=(8, 4, 4, 3)), tf.float32),
        tf.constant(rng.integers(2, size=8), tf.int32),
    )
    sums = steps.train(images, labels, tf.constant(0, tf.int64))
    return float(sums["loss"]), model.get_weights(), optimizer


def test_parts_and_scaled_losses_train_as_one_batch_in_float32(tmp_path):
    config = tiny(tmp_path, init_lr=0.1)
    loss, weights, _ = steps_of("float32", 1, config)
    for policy, parts, tolerance in (("float32", 4, 1e-5), ("mixed_float16", 1, 5e-3), ("mixed_float16", 2, 5e-3)):
        other_loss, others, optimizer = steps_of(policy, parts, config)
        assert other_loss == pytest.approx(loss, rel=tolerance)
        for mine, other in zip(weights, others, strict=True):
            np.testing.assert_allclose(mine, other, atol=tolerance)
        names = [variable.name for variable in optimizer.variables]
        assert ("dynamic_scale" in names) == (policy == "mixed_float16")  # so the checkpoint holds it


@pytest.mark.parametrize(("kinds", "expected"), [("kernels", 3), ("weights", 5), ("all", 7)])
def test_kernels_of_separable_convolutions_decay_too(kinds, expected):
    network = [keras.layers.SeparableConv2D(2, 3), keras.layers.BatchNormalization(), keras.layers.Conv2D(2, 1)]
    variables = keras.Sequential([keras.Input((4, 4, 3)), *network]).trainable_variables
    update = UpdateRule(batch_size=1, weight_decay=0.1, weight_decay_on=kinds)
    assert len(find_decayed(update, variables)) == expected
    assert not find_decayed(dataclasses.replace(update, weight_decay=0.0), variables)


def test_lookahead_ends_where_the_training_ends_though_a_step_overflowed(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype="mixed_float16")])
    optimizer = make_optimizer(tiny(tmp_path), model.trainable_variables, 1, "mixed_float16")
    averages = [tf.Variable(tf.fill(weight.shape, 7.0)) for weight in model.weights]
    update = UpdateRule(
        batch_size=2, weight_decay=0.0, weight_decay_on="kernels", weight_averaging=0.5, lookahead_steps=5
    )
    steps = CompiledSteps(
        model=model, optimizer=optimizer, averages=averages, measure=lambda *given: measure_classes(*given, 0.0), update=update,
        normalization=tf.identity, strategy=tf.distribute.get_strategy(), towers=1, train_steps=2,
    )  # fmt: skip
    labels = tf.constant([0, 1])
    before = model.get_weights()
    steps.train(tf.fill((2, 4), 60_000.0), labels, tf.constant(0, tf.int64))
    assert int(optimizer.iterations) == 0  # the gradients were no numbers
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    steps.train(tf.ones((2, 4)), labels, tf.constant(1, tf.int64))
    assert (averages[0].numpy() != 7).all()
    np.testing.assert_array_equal(averages[0], model.get_weights()[0])


def test_mixed_batches_are_a_function_of_seed_and_shard(tmp_path):
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)), tf.uint8)
    labels = tf.constant([0, 1, 2, 0, 1, 2])
    for changes in ({"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}):
        mixers = [Mixer(tiny(tmp_path, seed=seed, **changes), (8, 8, 3), 3) for seed in (1, 1, 2)]
        mixed = [
            [np.asarray(mixer.mix(images, labels, tf.constant(shard, tf.int64))[0]) for shard in (0, 1)]
            for mixer in mixers
        ]
        np.testing.assert_array_equal(mixed[0], mixed[1])
        assert (mixed[0][0] != mixed[0][1]).any() and (mixed[0][0] != mixed[2][0]).any()
        shares = np.asarray(mixers[0].mix(images, labels, tf.constant(0, tf.int64))[1])
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    with pytest.raises(UsageError, match="colour images"):
        check_mixing(tiny(tmp_path, rand_augment=0.3), (8, 8, 1))


@pytest.mark.parametrize("changes", [{"mixup": 0.8}, {"cutmix": 0.8}, {"mixup": 0.8, "cutmix": 0.8}])
def test_labels_are_mixed_as_their_images_are(tmp_path, changes):
    """The mean colour of an image is the shares of its classes, which are a colour each."""
    labels = np.arange(32) % 3
    images = np.broadcast_to(np.eye(3, dtype=np.float32)[labels][:, None, None], (32, 64, 64, 3))
    mixer, has_squares = Mixer(tiny(tmp_path, seed=1, **changes), (64, 64, 3), 3), set()
    for shard in (3, 4):
        mixed, shares = (np.asarray(part) for part in mixer.mix(images, labels, tf.constant(shard, tf.int64)))
        np.testing.assert_allclose(mixed.mean(axis=(1, 2)), shares, atol=0.035)  # a pixel at each edge of a square
        assert (shares.max(axis=1) < 0.9).mean() > 0.2
        has_squares.add(bool(mixed.std(axis=(1, 2)).max() > 0.1))
    assert has_squares == {kind == "cutmix" for kind in changes}


def test_rand_augment_is_a_function_of_seed_and_shard(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)

    def augment(seed, shard):
        mixer = Mixer(tiny(tmp_path, seed=seed, rand_augment=0.3), (8, 8, 3), 3)
        return np.asarray(mixer.rand_augment(images, tf.constant(shard, tf.int64)))

    first = augment(1, 0)
    np.testing.assert_array_equal(first, augment(1, 0))
    for other in (augment(2, 0), augment(1, 1), images):
        assert np.abs(first - other).mean() > 1
    assert first.shape == images.shape and first.min() >= 0 and 100 < first.max() <= 255


def test_shares_of_classes_are_measured_as_labels_are():
    logits, labels = tf.random.stateless_normal((5, 3), (1, 2)), tf.constant([0, 2, 1, 1, 0])
    for weights in (None, np.float32([1, 2, 3])):
        (one, sums), (other, others) = (
            measure_classes(logits, given, 0.1, weights) for given in (labels, tf.one_hot(labels, 3))
        )
        np.testing.assert_allclose(one, other, rtol=1e-5)
        assert float(sums["wrong"]) == float(others["wrong"])


def test_time_and_memory_are_told():
    assert forecast(0.1, 6000, 3.0, 10).startswith("about 10 min, ")
    assert forecast(0.1, 600000, 3.0, 10).startswith("about 16.7 h, ")
    assert forecast(0.1, 100, 3.0, 20).startswith(
        "about 10 s to 70 s, "
    )  # how long a report takes without compiling, is not known yet


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam"])
def test_variables_learn_at_rates_of_their_own(optimizer):
    variables = [keras.Variable(np.ones(3, np.float32)) for _ in range(2)]
    made = make_optimizer(from_preset("smoke", optimizer=optimizer), variables, 1, "float32", [1.0, 0.25])
    made.learning_rate.assign(0.1)
    for _ in range(3):
        made.apply([tf.constant([1.0, 2.0, 3.0])] * 2, variables)
    first, second = (1 - variable.numpy() for variable in variables)
    np.testing.assert_allclose(second, 0.25 * first, rtol=1e-5)
    assert (first > 0).all()


def test_a_plateau_begins_anew_with_a_stage():
    plateau, counts = Plateau("e", 1, (2,)), []
    for report in enumerate([5.0, 4.0, 4.0, 6.0, 6.0]):
        plateau.on_epoch_end(report[0], {"e": report[1], "step": report[0]})
        counts.append(plateau.lowered)
    assert counts == [0, 0, 0, 0, 1]


def test_what_would_change_the_course_of_a_longer_run_is_refused(tmp_path):
    constant = {"lr_schedule": "constant", "init_lr": 0.01, "warmup_steps": 0, "sparsity": 0.5}
    train(tiny(tmp_path / "zeros", **constant, train_steps=2))
    with pytest.raises(UsageError, match="a run with --sparsity cannot be made longer"):
        train(tiny(tmp_path / "zeros", **constant), resume=True)
    linear = {"init_lr": 0.01, "warmup_steps": 0, "report_freq": 1}
    train(tiny(tmp_path, **linear, train_steps=1))
    train(tiny(tmp_path, **linear, train_steps=3, extend=1), resume=True, callbacks=[Stop()])
    with pytest.raises(UsageError, match=r"--extend=3 begins anew where .* has ended, received a run that stands at 2"):
        train(tiny(tmp_path, **linear, train_steps=5, extend=3), resume=True)
    patient = linear | {"version": "patient", "patience": 9}
    train(tiny(tmp_path, **patient, train_steps=1))
    with pytest.raises(Interrupted):
        train(tiny(tmp_path, **patient, train_steps=3, extend=1), resume=True, callbacks=[stop_after(2)])
    with pytest.raises(UsageError, match=r"--extend=3 begins anew where .* has ended, received a run that stands at 2"):
        train(tiny(tmp_path, **patient, train_steps=5, extend=3), resume=True)


def test_what_cutmix_and_padding_cannot_do_is_refused_before_a_run_begins(tmp_path):
    with pytest.raises(UsageError, match="--cutmix must be at most 1"):
        tiny(tmp_path, cutmix=2.0)
    mixer = Mixer(tiny(tmp_path, cutmix=0.5, mixup=0.2), (8, 8, 3), 10)
    assert mixer._mixers[1].get_config()["factor"] == (0.5, 0.5)  # alpha itself, not the upper end of its range
    config = tiny(tmp_path, padding_size=8)
    data = load_data(config)

    def begin(config, *place):
        parts = {}
        for name in ("train", "test"):
            split = getattr(data, name)
            parts[name] = Split(split.images[place], split.labels)
        Classification(config, RunFolder(tmp_path / "x"), dataclasses.replace(data, **parts))

    with pytest.raises(UsageError, match="--padding_size must be below the 8 pixels"):
        begin(config, slice(None), slice(8), slice(8))
    with pytest.raises(UsageError, match="--rand_augment is for colour images, received grey ones"):
        begin(tiny(tmp_path, rand_augment=0.3), slice(None), slice(None), slice(None), slice(1))


def test_a_run_that_patience_ended_is_not_made_longer(tmp_path):
    ended = {"patience": 1, "init_lr": 0.0, "warmup_lr": 0.0, "report_freq": 1}
    run = train(tiny(tmp_path, **ended))
    assert run.read_history()["step"].iloc[-1] < 4
    before = run.config.read_bytes()
    for extend in (0, 4):
        with pytest.raises(UsageError, match=r"--patience has ended .* after \d of 4, and would again"):
            train(tiny(tmp_path, **ended | {"train_steps": 6, "extend": extend}), resume=True)
    assert run.config.read_bytes() == before


def test_each_class_of_a_mixture_has_its_own_weight():
    logits, shares = tf.constant([[1.0, 0.0, -1.0]]), np.float32([[0.1, 0.9, 0.0]])
    weights = np.float32([10, 0.5, 1])
    mixed = measure_classes(logits, shares, 0.2, weights)[0]
    alone = [measure_classes(logits, np.int32([label]), 0.2, weights)[0] for label in (0, 1)]
    np.testing.assert_allclose(mixed, 0.1 * alone[0] + 0.9 * alone[1], rtol=1e-6)


def test_float16_is_for_one_device():
    with pytest.raises(UsageError, match="float16 is for one device, received 2"):
        make_optimizer(from_preset("smoke"), [], 2, "mixed_float16")


def test_a_short_training_of_a_long_warm_up_is_told():
    assert "rises through 200 of the 78 steps; give a smaller --warmup_steps, such as 7" in note_long_warmup(200, 78)
    assert note_long_warmup(400, 64_000) == ""
    assert note_long_warmup(1, 1) == ""  # none is shorter


def test_a_run_that_patience_ended_at_its_last_report_is_not_made_longer(tmp_path):
    config = tiny(tmp_path, patience=1, init_lr=0.0, lr_schedule="constant", report_freq=1, train_steps=2)
    trainer = Train(config)
    trainer.train()
    before = trainer.run.config.read_bytes()
    with pytest.raises(UsageError, match="--patience has ended"):
        Train(dataclasses.replace(config, train_steps=4)).train(resume=True)
    assert trainer.run.config.read_bytes() == before
    with pytest.raises(UsageError, match="resume and overwrite exclude each other"):
        Train(config).train(resume=True, overwrite=True)
    assert trainer.run.error_csv.is_file()


def test_one_command_repeats_a_run_that_was_made_longer(tmp_path):
    short = tiny(tmp_path, version="twice", lr_schedule="plateau", report_freq=3, train_steps=4)
    Train(short).train()
    twice = Train(dataclasses.replace(short, train_steps=8, extend=4))
    twice.train(resume=True)
    once, epochs, early = Train(dataclasses.replace(short, version="once", train_steps=8, extend=4)), [], tmp_path / "3"

    def note(epoch, logs):
        epochs.append(epoch)
        if epoch == 0:  # after step 3
            shutil.copy(once.run.latest_checkpoint(), early)

    once.train(callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=note)])
    once.run.note_start({"extend": 2})  # as if it had ended there for the first time
    with pytest.raises(UsageError, match="extended more than once, the last time after step 4: expected a checkpoint"):
        once.restore(early)
    assert epochs == [0, 1, 2, 3]  # each once, though the end of before is no multiple of report_freq
    tables = [trainer.run.read_history().drop(columns=["seconds", "examples_per_sec"]) for trainer in (once, twice)]
    assert tables[0]["step"].tolist() == [0, 3, 4, 6, 8] and tables[0].equals(tables[1])


def test_the_forecast_of_a_resumed_run_has_the_pace_of_its_reports(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(run_log.time, "perf_counter", lambda: next(clock) / 20)
    timer = run_log.Forecast(known=3600.0)
    lines = [timer.end_step(100, 10) for _ in range(25)]
    assert "1.0 h" in lines[-1] or "60 min" in lines[-1]


def test_a_schedule_whose_steps_come_after_the_end_is_told():
    for preset, flags, told in (("fast", {}, False), ("fast", {"lr_schedule": "step"}, True), ("he2015", {}, False), ("liang", {}, False)):  # fmt: skip
        assert ("never falls" in run_log.note_late_decay(from_preset(preset, **flags))) == told
    assert "never falls" in run_log.note_late_decay(from_preset("he2015", train_steps=20_000))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ""),
        ({"optimizer": "adam"}, "needs one such as --init_lr=0.001 --warmup_lr=0.0001"),
        ({"optimizer": "adam", "warmup_steps": 0}, "--init_lr=0.2 is a learning rate of SGD"),
        ({"optimizer": "adam", "init_lr": 0.001}, "begins above the highest learning rate, at --warmup_lr=0.02"),
        (
            {"init_lr": 0.01, "warmup_steps": 0, "final_lr": 0.1},
            "rises to the end, from --init_lr=0.01 to --final_lr=0.1",
        ),
        ({"optimizer": "adam", "init_lr": 0.001, "warmup_lr": 0.0001}, ""),
    ],
)
def test_learning_rates_that_contradict_each_other_are_told(settings, told):
    lines = run_log.note_rates(from_preset("fast", **settings))
    assert told in lines and bool(told) == bool(lines)


def test_fine_tuning_has_the_rate_that_was_given():
    rates = {"init_lr": 1e-3, "final_lr": 1e-5, "lr_schedule": "cosine", "unfreeze_at_epoch": 10}
    lines = run_log.note_rates(FlowerParameters(data_dir="x", fine_tune_lr=1e-6, **rates))
    assert "from --fine_tune_lr=1e-06 to --final_lr=1e-05" in lines and "--init_lr" not in lines
    config = FlowerParameters(data_dir="x", fine_tune_lr=0, **rates)
    assert stage_rate(12, config, [(0, 1e-3), (10, config.fine_tune_lr)], 20) == 0
    assert not run_log.note_rates(config)


def test_recipes_have_learning_rates_that_agree():
    assert [name for name in PRESETS if run_log.note_rates(from_preset(name))] == []
