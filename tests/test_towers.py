"""The cores of a processor share each batch: what a step with towers computes, and that a run keeps their number."""

import functools
import json
import subprocess
import sys
import types

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, assert_resumes_exactly, user_environment
from tensorflow.python.eager import context

from cifar10_train import Train, train
from resnet_study import devices
from resnet_study.errors import UsageError, _said
from resnet_study.files import read_json, write_json
from resnet_study.run_folder import RunFolder
from resnet_study.training.step import CompiledSteps, UpdateRule

tiny = functools.partial(conftest.tiny, train_steps=4, report_freq=2, synthetic_images=80, train_batch_size=8)


def one_step(model, towers, images, labels):
    """Trains one step of plain SGD at rate 1 on the mean cross-entropy; returns the sums."""
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)

    def measure(logits, labels):
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return losses, {"loss": tf.reduce_sum(losses)}

    steps = CompiledSteps(
        model=model,
        optimizer=optimizer,
        averages=[],
        measure=measure,
        normalization=tf.identity,
        strategy=tf.distribute.get_strategy(),
        towers=towers,
        update=UpdateRule(batch_size=len(images), weight_decay=0.0, weight_decay_on="kernels"),
        train_steps=1,
    )
    return {name: float(value) for name, value in steps.train(images, labels, tf.constant(0, tf.int64)).items()}


def some_images(count):
    rng = np.random.default_rng(0)
    return tf.constant(rng.normal(size=(count, 4, 4, 3)), tf.float32), tf.constant(rng.integers(2, size=count))


@pytest.mark.parametrize(("count", "towers"), [(8, 2), (7, 3), (3, 3)])
def test_towers_without_batch_norm_train_as_one(count, towers):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    images, labels = some_images(count)
    alone, shared = one_step(model, 1, images, labels), one_step(twin, towers, images, labels)
    assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    for mine, other in zip(model.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-6)


def test_moving_statistics_are_the_mean_of_the_towers():
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization(), keras.layers.Flatten()])
    model.add(keras.layers.Dense(2))
    images, labels = some_images(8)
    one_step(model, 2, images, labels)
    shards = images.numpy().reshape(2, 4 * 4 * 4, 3)
    norm = model.layers[0]
    np.testing.assert_allclose(norm.moving_mean, 0.01 * shards.mean(axis=1).mean(axis=0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(norm.moving_variance, 0.99 + 0.01 * shards.var(axis=1).mean(axis=0), rtol=1e-4)


def test_each_tower_draws_dropout_of_its_own():
    keras.utils.set_random_seed(1)
    seen = []

    class Watch(keras.layers.Layer):
        def call(self, inputs):
            tf.py_function(lambda values: seen.append(values.numpy()), [inputs], [])
            return inputs

    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Dropout(0.5), Watch(), keras.layers.Flatten()])
    model.add(keras.layers.Dense(2))
    seed = model.layers[0].seed_generator.state
    before = seed.numpy()
    one_step(model, 2, tf.ones((8, 4, 4, 3)), tf.zeros(8, tf.int32))
    first, second = (values != 0 for values in seen)
    assert (first != second).any()
    # One step further, as without towers.
    twin = keras.models.clone_model(model)
    twin.layers[0].seed_generator.state.assign(before)
    one_step(twin, 1, tf.ones((8, 4, 4, 3)), tf.zeros(8, tf.int32))
    np.testing.assert_array_equal(seed.numpy(), twin.layers[0].seed_generator.state.numpy())
    assert (seed.numpy() != before).any()


def test_validation_in_towers_counts_every_image_once(tmp_path):
    trainers = [Train(tiny(tmp_path, version=f"t{towers}", towers=towers)) for towers in (1, 3)]
    trainers[1].model.set_weights(trainers[0].model.get_weights())
    for count in (2, 7):  # fewer than towers, and not a multiple of them
        images, labels = (
            part[:count] for part in (trainers[0].task.validation.images, trainers[0].task.validation.labels)
        )
        alone, shared = (trainer.stage.steps.validate(images, labels) for trainer in trainers)
        assert float(shared["wrong"]) == float(alone["wrong"])
        assert float(shared["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-4)


TWO_DEVICES = """
import json, sys
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
from resnet_study.training.step import CompiledSteps, UpdateRule

def losses(strategy, towers):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        layers = keras.layers
        model = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(),
                                  layers.Conv2D(8, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(4)])
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(model.trainable_variables)
    def measure(logits, labels):
        found = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        return found, {"loss": tf.reduce_sum(found)}
    update = UpdateRule(batch_size=16, weight_decay=1e-3, weight_decay_on="kernels")
    steps = CompiledSteps(model=model, optimizer=optimizer, averages=[], measure=measure, normalization=tf.identity,
                          strategy=strategy, towers=towers, update=update, train_steps=10)
    found = []
    for step in range(10):
        rng = np.random.default_rng(step)
        batch = rng.normal(size=(16, 8, 8, 3)).astype("float32"), rng.integers(4, size=16)
        pieces = iter(tf.data.Dataset.from_tensor_slices(batch).batch(16 // strategy.num_replicas_in_sync))
        shared = strategy.experimental_distribute_values_from_function(lambda context: next(pieces))
        images, labels = ((tf.nest.map_structure(lambda part: part, shared)) if strategy.num_replicas_in_sync > 1 else shared)
        found.append(float(steps.train(images, labels, tf.constant(step, tf.int64))["loss"]) / 16)
    found += [float(np.sum(np.abs(weight))) for weight in model.trainable_weights]
    return found

mirrored = losses(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), 1)
print(json.dumps([mirrored, losses(tf.distribute.get_strategy(), 2), losses(tf.distribute.get_strategy(), 1)]))
"""


def test_the_gradients_of_towers_with_their_own_batch_norm_are_added():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4, 4, 3)),
            layers.Conv2D(5, 3),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    start, (images, labels), parts = [v.numpy() for v in model.trainable_variables], some_images(8), []
    for half in (slice(4), slice(4, 8)):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels[half], model(images[half], training=True))
            loss = tf.reduce_sum(losses) / 8
        parts.append(tape.gradient(loss, model.trainable_variables))
    one_step(model, 2, images, labels)
    for old, new, one, two in zip(start, model.trainable_variables, *parts, strict=True):
        np.testing.assert_allclose(new, old - one - two, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_towers_compute_what_replicas_with_their_own_batch_norm_compute():
    result = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES],
        cwd=ROOT,
        env=user_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    mirrored, towers, one = json.loads(result.stdout.splitlines()[-1])
    np.testing.assert_allclose(towers, mirrored, rtol=1e-4, atol=1e-4)
    assert np.abs(np.array(one) - mirrored)[:10].max() > 1e-3  # statistics of the whole batch are another thing


def test_a_run_in_towers_goes_on_bit_by_bit(cifar_folder, tmp_path):
    two_heads = {"dataset": "cifar10", "data_dir": str(cifar_folder), "heads": "class,kind", "towers": 2}

    def train_it(version, **how):
        return train(tiny(tmp_path, version=version, **two_heads), **how)

    whole, _ = assert_resumes_exactly(train_it, 3)
    assert "validation_error_kind" in whole.read_history()


def test_a_run_keeps_its_towers_wherever_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "count_cores", lambda: 2)
    config = tiny(tmp_path, model="lenet5", train_batch_size=64, train_steps=1, report_freq=1)
    run = train(config)
    assert run.stored_towers() == 2
    monkeypatch.setattr(devices, "count_cores", lambda: 1)
    assert Train(config, RunFolder(run.path)).machine.towers == 2
    # A version without towers noted none.
    write_json(run.environment, [{"step": 0}])
    assert Train(config, RunFolder(run.path)).machine.towers == 1
    run.environment.unlink()
    assert RunFolder(run.path).stored_towers() == 1
    assert train(config, overwrite=True).stored_towers() == 1  # what starts anew chooses anew
    write_json(run.environment, [*read_json(run.environment, [dict]), {"towers": "two"}])
    with pytest.raises(UsageError, match="number of towers"):
        RunFolder(run.path).stored_towers()


@pytest.mark.parametrize(
    ("model", "towers", "optimizer", "parts"),
    [
        ("resnet8", 2, "momentum", 2),
        ("lenet5", 2, "momentum", 1),
        ("lenet5", 2, "nesterov", 1),
        ("lenet5", 2, "adam", 1),
        ("resnet8", 4, "momentum", 1),
        ("resnet8", 1, "momentum", 2),
    ],
)
def test_no_sum_of_a_step_depends_on_what_is_ready_first(tmp_path, model, towers, optimizer, parts):
    """TensorFlow's `AddN` begins with whichever input is free: with three or more of them, the last bits differ from time to time."""
    stage = Train(
        tiny(
            tmp_path,
            model=model,
            train_batch_size=32,
            towers=towers,
            optimizer=optimizer,
            accumulate=parts,
            weight_decay=0.01,
        )
    ).stage
    images, labels = next(iter(stage.batches(0)))
    context.enable_graph_collection()
    stage.train(images, labels, 0)
    graphs = context.export_run_metadata().partition_graphs
    context.disable_graph_collection()
    functions = [function for graph in graphs for function in graph.library.function]
    nodes = [node for graph in graphs for node in graph.node] + [
        node for function in functions for node in function.node_def
    ]
    sums = [node for node in nodes if node.op in ("AddN", "_MklAddN")]
    assert sums and max(node.attr["N"].i for node in sums) == 2


@pytest.mark.parametrize(("cores", "batch_size", "expected"), [(2, 128, 2), (8, 128, 4), (2, 63, 1), (1, 512, 1)])
def test_one_tower_for_each_core_where_shards_are_large_enough(monkeypatch, cores, batch_size, expected):
    monkeypatch.setattr(devices, "count_cores", lambda: cores)
    assert devices.choose_towers(0, tf.distribute.get_strategy(), batch_size) == expected


def test_a_gpu_has_one_tower(monkeypatch):
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU:0"] if kind == "GPU" else [])
    assert devices.choose_towers(0, tf.distribute.get_strategy(), 1024) == 1


def test_a_process_that_has_computed_says_that_its_threads_stay(monkeypatch, capsys):
    """As in a notebook: TensorFlow takes no other threads then."""
    tf.zeros(1) + 1
    monkeypatch.setattr(devices, "count_cores", lambda: 7)  # no process has 4 threads for each of 7 operations
    _said.clear()
    assert devices.choose_towers(2, tf.distribute.get_strategy(), 64) == 2
    assert "its threads stay as they are; towers are faster with 4 for each operation" in capsys.readouterr().out


def test_too_many_towers_are_refused():
    with pytest.raises(UsageError, match="--towers must be at most the 4 images"):
        devices.choose_towers(5, tf.distribute.get_strategy(), 4)
    several = types.SimpleNamespace(num_replicas_in_sync=2)
    with pytest.raises(UsageError, match="expected one device for a run that was begun with 2 towers, received 2"):
        devices.choose_towers(0, several, 64, stored=2)
