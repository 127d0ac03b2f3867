import dataclasses
import functools
import pickle
import re

import numpy as np
import pytest
import tensorflow as tf

import cifar10_input
from cifar10_input import Split, crop_and_flip, load_data, make_normalization, plan_batch, split_data, training_batches
from hyper_parameters import from_preset
from resnet_study.data import cifar_files, download
from resnet_study.data.cifar_files import CIFAR10_CLASSES
from resnet_study.errors import UsageError


def load_from(path, dataset="cifar10"):
    return load_data(from_preset("fast", dataset=dataset, data_dir=str(path)))


def test_planes_become_height_width_rgb(cifar_folder, cifar_rows):
    data = load_from(cifar_folder)
    rows, labels = cifar_rows["data_batch_2"]
    image = data.train.images[60 + 7]
    assert data.train.images.dtype == np.uint8 and data.train.images.shape == (300, 32, 32, 3)
    for channel in range(3):
        plane = rows[7, 1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
        np.testing.assert_array_equal(image[..., channel], plane)
    assert data.train.labels[60:120].tolist() == labels and len(data.test) == 60
    assert data.class_names == CIFAR10_CLASSES


def test_folder_its_parent_and_the_archive_give_the_same(cifar_folder, cifar_archive):
    expected = load_from(cifar_folder)
    for place in (cifar_folder.parent, cifar_archive):
        data = load_from(place)
        np.testing.assert_array_equal(data.train.images, expected.train.images)
        np.testing.assert_array_equal(data.test.labels, expected.test.labels)


def test_binary_version_gives_the_same(tmp_path, cifar_folder, cifar_rows):
    for name, (rows, labels) in cifar_rows.items():
        records = np.concatenate([np.uint8(labels)[:, None], rows], axis=1)
        (tmp_path / f"{name}.bin").write_bytes(records.tobytes())
    data = load_from(tmp_path)
    np.testing.assert_array_equal(data.train.images, load_from(cifar_folder).train.images)
    np.testing.assert_array_equal(data.train.labels, load_from(cifar_folder).train.labels)


def python2_pickle(rows, labels):
    """The bytes of the published files: Python 2, protocol 2, byte strings, numpy.core."""
    text = lambda b: (b"U" + bytes([len(b)]) if len(b) < 256 else b"T" + len(b).to_bytes(4, "little")) + b  # noqa: E731
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K"
        + bytes([len(rows)])
        + b"M\x00\x0ct"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(rows.tobytes())
        + b"tb"
    )
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + listed + b"u."


def test_python_2_pickles_are_read(tmp_path, cifar_folder, cifar_rows):
    for name, (rows, labels) in cifar_rows.items():
        (tmp_path / name).write_bytes(python2_pickle(rows, labels))
    np.testing.assert_array_equal(load_from(tmp_path).train.images, load_from(cifar_folder).train.images)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_are_read(tmp_path, cifar_rows, protocol):
    for name, (rows, labels) in cifar_rows.items():
        (tmp_path / name).write_bytes(pickle.dumps({"data": rows, "labels": labels}, protocol=protocol))
    assert len(load_from(tmp_path).train) == 300


@pytest.mark.parametrize(("dataset", "classes", "label"), [("cifar100", 100, 42), ("cifar100_coarse", 20, 7)])
@pytest.mark.parametrize("binary", [False, True])
def test_cifar100_fine_and_coarse(tmp_path, dataset, classes, label, binary):
    rows = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8)
    for name in ("train", "test"):
        if binary:
            (tmp_path / f"{name}.bin").write_bytes(
                np.concatenate([np.full((20, 1), 7), np.full((20, 1), 42), rows], 1).astype(np.uint8).tobytes()
            )
        else:
            content = {b"data": rows, b"fine_labels": [42] * 20, b"coarse_labels": [7] * 20}
            (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    data = load_from(tmp_path, dataset)
    assert len(data.class_names) == classes and set(data.train.labels) == {label}
    np.testing.assert_array_equal(data.test.images[3, :, :, 1].ravel(), rows[3, 1024:2048])


def test_truncated_archive_and_wrong_file(tmp_path, cifar_archive):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(cifar_archive.read_bytes()[:100_000])
    with pytest.raises(UsageError, match=r"cifar-10-python\.tar\.gz is damaged"):
        load_from(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(UsageError, match="damaged or no tar archive"):
        load_from(path)


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, cifar_archive):
    monkeypatch.setattr(cifar_files, "_LARGEST_ARCHIVE", 100_000)
    with pytest.raises(UsageError, match="unpacks to more than"):
        load_from(cifar_archive)


def test_missing_data_names_the_ways_out(tmp_path):
    with pytest.raises(UsageError, match=r"--data_dir must hold cifar-10-batches-py/.*--dataset=digits"):
        load_from(tmp_path)


def test_keras_cache_is_used_before_the_network(tmp_path, monkeypatch, cifar_folder):
    target = tmp_path / "datasets" / "cifar-10-batches-py-target" / "cifar-10-batches-py"
    target.parent.mkdir(parents=True)
    target.symlink_to(cifar_folder)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.utils.get_file", lambda *_, **__: pytest.fail("asked the network"))
    assert len(load_data(from_preset("fast")).train) == 300


def test_what_is_damaged_in_keras_cache_is_to_be_deleted(tmp_path, monkeypatch, cifar_folder):
    cache = tmp_path / "datasets"
    half = cache / "cifar-10-batches-py"
    half.mkdir(parents=True)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(cifar_files, "download", lambda *_: pytest.fail("asked the network"))
    (half / "test_batch").write_bytes((cifar_folder / "test_batch").read_bytes())
    with pytest.raises(
        UsageError,
        match=rf"expected data_batch_1[^;]*; it lies in Keras' cache: delete {re.escape(str(half))} and repeat",
    ):
        load_data(from_preset("fast"))
    # A file that lies there beside is none of the data set.
    (cache / "test").write_bytes(b"of something else")
    monkeypatch.setattr(cifar_files, "download", lambda *_: cifar_folder)
    with pytest.raises(UsageError, match=re.escape(f"delete {cifar_folder} and repeat")):
        load_data(from_preset("fast", dataset="cifar100"))


def test_failed_download_names_the_ways_out_and_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "datasets").mkdir()

    def fail(name, *_, **__):
        (tmp_path / "datasets" / name).write_bytes(b"half")
        raise Exception("URL fetch failure")

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(download, "_WAITS", (0, 0))
    monkeypatch.setattr("keras.utils.get_file", fail)
    with pytest.raises(UsageError, match=r"--data_dir.*network.*--dataset=digits"):
        load_data(from_preset("fast"))
    assert [path for path in (tmp_path / "datasets").iterdir() if path.suffix != ".lock"] == []


def test_split_is_by_class_disjoint_and_fixed(cifar_folder):
    data = load_from(cifar_folder)
    config = from_preset("fast", validation_fraction=0.2)
    training, validation = split_data(data, config)
    assert np.bincount(validation.labels).tolist() == [6] * 10 and len(training) + len(validation) == 300
    assert not {image.tobytes() for image in training.images} & {image.tobytes() for image in validation.images}
    again = split_data(data, from_preset("fast", validation_fraction=0.2, seed=9))[1]
    other = split_data(data, from_preset("fast", validation_fraction=0.2, split_seed=9))[1]
    np.testing.assert_array_equal(validation.images, again.images)
    assert not np.array_equal(validation.images, other.images)
    training, validation = split_data(data, from_preset("fast", validation_fraction=0.0))
    np.testing.assert_array_equal(training.images, data.train.images)
    assert len(validation) == 0


def test_split_refuses_classes_that_are_too_small():
    data = load_data(from_preset("smoke", synthetic_images=40))
    with pytest.raises(
        UsageError, match=r"1 image\(s\), of which 1 would be held out; give more images, or leave the class out$"
    ):
        split_data(
            cifar10_input.ImageData(data.train.take(np.arange(5)), data.test, data.class_names, ""),
            from_preset("smoke"),
        )
    # As of a table whose column of labels holds something else.
    _, first = np.unique(data.train.labels, return_index=True)
    own = cifar10_input.ImageData(data.train.take(first), data.test, data.class_names, "")
    with pytest.raises(
        UsageError, match="each image has a class of its own; in a table of --labels these may be in another column"
    ):
        split_data(own, from_preset("smoke"))


def test_random_labels_change_only_the_labels():
    data = load_data(from_preset("smoke"))
    plain = split_data(data, from_preset("smoke"))
    for flag, part in (("train_random_label", 0), ("vali_random_label", 1)):
        changed = split_data(data, from_preset("smoke", **{flag: True}))
        np.testing.assert_array_equal(changed[part].images, plain[part].images)
        # One of ten is right by chance.
        assert 0.02 < (changed[part].labels == plain[part].labels).mean() < 0.25
        again, other = (split_data(data, from_preset("smoke", seed=seed, **{flag: True})) for seed in (0, 1))
        np.testing.assert_array_equal(changed[part].labels, again[part].labels)
        assert (changed[part].labels != other[part].labels).mean() > 0.7
        np.testing.assert_array_equal(changed[1 - part].labels, plain[1 - part].labels)


def test_per_image_standardisation_is_tensorflows():
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    images[4] = 7  # no deviation: the floor keeps it finite
    ours = make_normalization("image_standard", images)(images)
    np.testing.assert_allclose(ours, tf.image.per_image_standardization(tf.cast(images, tf.float32)), atol=2e-4)


@pytest.mark.parametrize("kind", ["channel_standard", "channel_mean", "pixel_mean"])
def test_constants_are_those_of_the_images(kind):
    images = np.random.default_rng(0).integers(0, 200, (2300, 8, 8, 3), np.uint8)
    images[1000:2000] //= 2  # they are counted in pieces
    result = np.asarray(make_normalization(kind, images)(images))
    axes = 0 if kind == "pixel_mean" else (0, 1, 2)
    np.testing.assert_allclose(result.mean(axis=axes), 0, atol=1e-5)
    if kind == "channel_standard":
        np.testing.assert_allclose(result.std(axis=axes), 1, atol=1e-4)
    else:
        np.testing.assert_allclose(result, (images - images.mean(axis=axes)) / 255, atol=1e-5)


def test_what_would_give_other_numbers_without_a_word_is_refused():
    images = np.zeros((128, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"kind must be one of channel_standard, .*received 'chanel_standard'"):
        make_normalization("chanel_standard", images)
    config = from_preset("smoke", mixup=0.2)
    with pytest.raises(ValueError, match="MixUp and CutMix need the number of classes, received 0"):
        training_batches(Split(images, np.zeros(128, np.int32)), make_normalization("channel_mean", images), config)


def test_every_offset_occurs_and_the_window_is_right():
    images = np.random.default_rng(0).random((1, 6, 6, 2), np.float32)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    for y in range(5):
        for x in range(5):
            for flip in (False, True):
                window = padded[:, y : y + 6, x : x + 6]
                result = crop_and_flip(images, np.int32([[y, x]]), np.array([flip]), 2, "zero")
                np.testing.assert_array_equal(result, window[:, :, ::-1] if flip else window)
    plans = [
        plan_batch(step, np.zeros(1000, np.int32), from_preset("fast", padding_size=2, train_batch_size=100))
        for step in range(20)
    ]
    drawn = {tuple(offset) for plan in plans for offset in plan.offsets}
    assert drawn == {(y, x) for y in range(5) for x in range(5)}


def test_reflection_and_inputs_unchanged():
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    before = images.copy()
    result = crop_and_flip(images, np.int32([[0, 0], [8, 8]]), np.array([False, False]), 4, "reflect")
    expected = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(result[0], expected[0, :8, :8])
    np.testing.assert_array_equal(result[1], expected[1, 8:, 8:])
    np.testing.assert_array_equal(images, before)


def test_cutout_sets_a_square_around_any_pixel_to_zero():
    images = np.random.default_rng(0).random((500, 6, 9, 3), np.float32) + 1
    config = from_preset("fast", padding_size=0, cutout=3, flip="none", train_batch_size=500)
    plan = plan_batch(0, np.zeros(500, np.int32), config)
    result = cifar10_input.augment(images, plan.offsets, plan.flips, plan.centers, plan.angles, config).numpy()
    expected, centers = images.copy(), set()
    for image, center in zip(expected, plan.centers, strict=True):
        y, x = int(center[0] * 6), int(center[1] * 9)
        image[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 0
        centers.add((y, x))
    np.testing.assert_array_equal(result, expected)
    assert centers == {(y, x) for y in range(6) for x in range(9)}
    # The crops and flips of a run are the same with and without.
    other = plan_batch(0, np.zeros(500, np.int32), dataclasses.replace(config, cutout=0))
    np.testing.assert_array_equal(plan.offsets, other.offsets)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_rotation_turns_about_the_middle_by_up_to_the_angle_either_way(mode):
    config = from_preset("fast", padding_size=0, padding_mode=mode, flip="none", rotation=180.0, train_batch_size=500)
    plan = plan_batch(0, np.zeros(500, np.int32), config)
    assert plan.angles.min() < -170 and plan.angles.max() > 170 and abs(plan.angles.mean()) < 20
    images = np.random.default_rng(0).random((4, 6, 6, 3), np.float32)
    nothing, angles = np.zeros((4, 2), np.int32), np.float32([0, 90, -90, 180])
    result = cifar10_input.augment(images, nothing, np.zeros(4, bool), nothing, angles, config)
    expected = [np.rot90(image, turns) for image, turns in zip(images, (0, 1, -1, 2), strict=True)]
    np.testing.assert_allclose(result, expected, atol=1e-4)
    # In between, a corner comes from outside: black (here zero), or what lies inside of the edge.
    white = np.ones((1, 6, 6, 3), np.float32)
    corner = cifar10_input.augment(white, nothing[:1], np.zeros(1, bool), nothing[:1], np.float32([45]), config)[
        0, 0, 0, 0
    ]
    assert corner == (0 if mode == "zero" else 1)
    # The crops and flips of a run are the same with and without.
    np.testing.assert_array_equal(
        plan.offsets, plan_batch(0, np.zeros(500, np.int32), dataclasses.replace(config, rotation=0.0)).offsets
    )


def test_a_batch_is_a_function_of_seed_and_step():
    config = from_preset("fast", train_batch_size=7, cutout=3, rotation=10.0)
    for step in (0, 5, 1000):
        first, again = (
            plan_batch(step, np.zeros(30, np.int32), config),
            plan_batch(step, np.zeros(30, np.int32), config),
        )
        other = plan_batch(step, np.zeros(30, np.int32), from_preset("fast", train_batch_size=7, seed=1))
        for name in ("indices", "offsets", "flips", "centers", "angles"):
            np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(first.indices, other.indices)


@pytest.mark.parametrize("name", ["offsets", "flips", "centers", "angles"])
def test_draws_are_others_for_each_step_and_seed(name):
    given = {"train_batch_size": 1000, "cutout": 3, "rotation": 10.0, "flip": "random"}
    first, next_step, other_seed = (
        getattr(plan_batch(step, np.zeros(2000, np.int32), from_preset("fast", seed=seed, **given)), name)
        for step, seed in ((0, 0), (1, 0), (0, 1))
    )
    for other in (next_step, other_seed):
        assert (first != other).mean() > 0.4
    if name == "flips":
        assert 0.45 < first.mean() < 0.55


def test_every_image_comes_once_an_epoch_in_a_new_order():
    config = from_preset("fast", train_batch_size=7)
    row = np.concatenate([plan_batch(step, np.zeros(30, np.int32), config).indices for step in range(30)])
    epochs = row[:210].reshape(7, 30)
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 7


def test_alternating_flips_show_each_image_both_ways():
    config = from_preset("fast", train_batch_size=10)
    flips = np.empty((2, 30), bool)
    for step in range(6):
        plan = plan_batch(step, np.zeros(30, np.int32), config)
        flips[step // 3, plan.indices] = plan.flips
    np.testing.assert_array_equal(flips[0], ~flips[1])
    assert 5 < flips[0].sum() < 25


def test_switching_augmentation_off_gives_the_images_themselves():
    split = Split(np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8), np.arange(20, dtype=np.int32))
    config = from_preset("fast", augment=False, train_batch_size=8, train_steps=3)
    normalization = make_normalization("channel_standard", split.images)
    for images, labels in training_batches(split, normalization, config):
        np.testing.assert_array_equal(images, normalization(split.images[labels.numpy()]))


def test_batches_go_on_where_they_were_left():
    data = load_data(from_preset("smoke"))
    normalization = make_normalization("image_standard", data.train.images)
    config = from_preset("smoke", train_steps=6)
    whole = list(training_batches(data.train, normalization, config))
    rest = list(training_batches(data.train, normalization, config, first_step=4))
    assert len(whole) == 6 and len(rest) == 2
    for (images, labels), (again, labels_again) in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)


def test_shards_of_two_machines_with_two_devices_each_make_up_each_batch():
    data = load_data(from_preset("smoke", synthetic_images=80))
    config = from_preset("smoke", train_steps=3, train_batch_size=8, corrupt=0.5, cutout=3, rotation=10.0)
    batches = functools.partial(training_batches, data.train, make_normalization("image_standard", data.train.images))
    whole = list(batches(config, 1))
    shards = [list(batches(config, 1, replicas=4, worker=worker, workers=2)) for worker in (0, 1)]
    assert len(whole) == 2 and [len(shard) for shard in shards] == [4, 4]
    for step, (images, labels) in enumerate(whole):
        parts = [shard for worker in shards for shard in worker[2 * step : 2 * step + 2]]
        np.testing.assert_allclose(images, np.concatenate([part for part, _ in parts]), atol=1e-5)
        np.testing.assert_array_equal(labels, np.concatenate([part for _, part in parts]))


def test_digits_and_synthetic_need_nothing():
    digits = load_data(from_preset("demo"))
    assert digits.train.images.shape == (1437, 32, 32, 3) and digits.test.images.shape == (360, 32, 32, 3)
    assert digits.train.images.max() == 255 and np.bincount(digits.test.labels).min() >= 34
    first, again = (load_data(from_preset("smoke", synthetic_images=300)) for _ in range(2))
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert len(first.train) + len(first.test) == 300 and set(first.test.labels) == set(range(10))
