"""MNIST: IDX files in every usual nesting, Keras' mnist.npz, the official split."""

import gzip
import hashlib
import io

import numpy as np
import pytest
from conftest import MNIST_FILES, idx_bytes

import cifar10_input
from cifar10_input import load_data, split_data
from hyper_parameters import from_preset
from resnet_study.data import download, mnist
from resnet_study.data.image_data import ImageData, Split
from resnet_study.errors import UsageError


def load(place):
    return load_data(from_preset("mnist", data_dir=str(place)))


def npz_bytes(arrays, save=np.savez_compressed):
    buffer = io.BytesIO()
    save(buffer, **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    return buffer.getvalue()


def same(data, arrays):
    for split, images, labels in ((data.train, *arrays[:2]), (data.test, *arrays[2:])):
        np.testing.assert_array_equal(split.images, images[..., None])
        np.testing.assert_array_equal(split.labels, labels)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
    return True


def test_images_labels_and_names(mnist_folder, mnist_arrays):
    data = load(mnist_folder)
    assert same(data, mnist_arrays) and data.class_names == tuple("0123456789")
    assert data.train.images.shape == (120, 28, 28, 1) and data.test.images.shape == (30, 28, 28, 1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("nesting", ["", "mnist", "MNIST", "raw", "MNIST/raw"])
def test_every_usual_nesting(tmp_path, mnist_arrays, nesting, packed):
    folder = tmp_path / nesting
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(MNIST_FILES, mnist_arrays, strict=True):
        content = idx_bytes(array)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    assert same(load(tmp_path), mnist_arrays) and same(load(folder), mnist_arrays)


def test_other_names_for_the_same_files(tmp_path, mnist_arrays):
    """With a dot, in a folder of the file's own name, packed without saying so; the packed one of two is taken."""
    first, second, third, fourth = (idx_bytes(array) for array in mnist_arrays)
    (tmp_path / "train-images.idx3-ubyte").write_bytes(first)
    (tmp_path / "train-labels-idx1-ubyte").mkdir()
    (tmp_path / "train-labels-idx1-ubyte" / "train-labels-idx1-ubyte").write_bytes(second)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(gzip.compress(third))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"not asked for")
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(fourth))
    assert same(load(tmp_path), mnist_arrays)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_as_a_file_and_in_a_folder(tmp_path, mnist_arrays, save):
    (tmp_path / "mnist.npz").write_bytes(npz_bytes(mnist_arrays, save))
    assert same(load(tmp_path / "mnist.npz"), mnist_arrays) and same(load(tmp_path), mnist_arrays)
    (tmp_path / "mnist.npz").rename(tmp_path / "mine.npz")
    assert same(load(tmp_path / "mine.npz"), mnist_arrays)
    (tmp_path / "mine.npz").write_bytes(npz_bytes([array.astype(np.int64) if array.ndim == 1 else array for array in mnist_arrays], save))  # fmt: skip
    assert same(load(tmp_path / "mine.npz"), mnist_arrays)


def test_keras_cache_is_used_before_the_network(tmp_path, monkeypatch, mnist_arrays):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mnist.npz").write_bytes(npz_bytes(mnist_arrays))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.utils.get_file", lambda *_, **__: pytest.fail("asked the network"))
    assert same(load_data(from_preset("mnist")), mnist_arrays)
    (tmp_path / "datasets" / "mnist.npz").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"delete .*mnist\.npz and repeat the command"):
        load_data(from_preset("mnist"))


def test_downloads_are_checked_and_kept(tmp_path, monkeypatch, mnist_arrays):
    good = npz_bytes(mnist_arrays)
    (tmp_path / "site").mkdir()
    site = tmp_path / "site" / "mnist.npz"
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(download, "_WAITS", (0, 0))
    monkeypatch.setattr(mnist, "_URL", site.as_uri())
    monkeypatch.setattr(mnist, "_SHA256", hashlib.sha256(good).hexdigest())
    for content in (None, b"", good[:1000], good[:-1] + b"x"):
        if content is not None:
            site.write_bytes(content)
        with pytest.raises(UsageError, match=r"mnist\.npz is neither in Keras' cache nor could it be downloaded"):
            load_data(from_preset("mnist"))
        assert [path.suffix for path in (tmp_path / "datasets").iterdir()] == [".lock"]
    site.write_bytes(good)
    assert same(load_data(from_preset("mnist")), mnist_arrays)
    site.unlink()
    assert same(load_data(from_preset("mnist")), mnist_arrays)


def test_the_published_file_is_kerass():
    assert mnist._URL == "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
    assert mnist._SHA256 == "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"


def test_missing_data_names_the_ways_out(tmp_path, mnist_folder):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=r"--data_dir must hold train-images.*mnist\.npz.*--dataset=digits"):
            load(place)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(mnist_folder.joinpath("train-images-idx3-ubyte").read_bytes())
    with pytest.raises(UsageError, match=r"expected train-labels-idx1-ubyte, t10k-images.* received train-images"):
        load(tmp_path)


def test_the_split_of_the_presets_is_55000_and_5000():
    """The class counts of the published training part, without its images."""
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    labels = np.repeat(np.arange(10, dtype=np.int32), counts)
    train = Split(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    data = ImageData(train, train, tuple("0123456789"), "")
    for preset in ("mnist", "mnist_resnet9", "mnist_lenet", "mnist_alexnet"):
        training, validation = split_data(data, from_preset(preset))
        assert (len(training), len(validation)) == (55_000, 5_000)
        assert abs(np.bincount(validation.labels) - np.array(counts) / 12).max() < 1
    even = Split(train.images[:500], np.repeat(np.arange(10, dtype=np.int32), 50))
    validation = split_data(ImageData(even, even, data.class_names, ""), from_preset("fast"))[1]
    assert np.bincount(validation.labels).tolist() == [5] * 10


def test_the_presets_neither_mirror_digits_nor_brighten_their_margin(mnist_folder):
    data = load(mnist_folder)
    dark = Split(np.zeros_like(data.train.images), data.train.labels)
    dark.images[:, 8:20, 8:20] = 255
    dark.images[:, 8:20, 8:14] = 100  # left and right can be told apart
    for preset in ("mnist", "mnist_resnet9", "mnist_lenet", "mnist_alexnet"):
        config = from_preset(preset, train_steps=20, train_batch_size=32, rotation=0.0)
        normalization = cifar10_input.make_normalization(config.normalization, dark.images)
        black, grey, white = normalization(np.uint8([0, 100, 255]).reshape(3, 1, 1, 1)).numpy().ravel()
        places = set()
        for images, _ in cifar10_input.training_batches(dark, normalization, config):
            images = images.numpy()
            assert set(np.unique(images)) == {black, grey, white}
            for image in images:
                left, right = (np.flatnonzero((image == value).any(axis=(0, 2))) for value in (grey, white))
                assert left.max() < right.min()
                places.add(int(left.min()))
        assert places == {6, 7, 8, 9, 10}
