"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28 x 28, white (255) on black (0).

Two forms are read, and checked before they are believed:

    IDX        train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-..., t10k-labels-..., gzipped or not
               (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist: magic number, sizes, then one byte a value)
    mnist.npz  the arrays x_train, y_train, x_test, y_test, as Keras publishes them

Splitting, normalisation and batches are those of `cifar10_input`.
"""

import gzip
import io
import math
import zipfile
from pathlib import Path

import numpy as np

from resnet_study.data.download import download, keras_cache, naming_cache
from resnet_study.data.image_data import ImageData, Split, check_labels, read_file
from resnet_study.errors import UsageError, one_line

CLASSES = tuple("0123456789")

_STEMS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_FOLDERS = ("", "mnist", "MNIST", "raw", "mnist/raw", "MNIST/raw")  # the last is torchvision's
_NPZ = "mnist.npz"
_URL = f"https://storage.googleapis.com/tensorflow/tf-keras-datasets/{_NPZ}"
_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
_LARGEST = 64 << 20  # bytes unpacked; the largest published file has 47 MB
_SHAPE = (28, 28)


def load_mnist(data_dir: str = "") -> ImageData:
    """Finds, verifies and reads MNIST.

    Args:
        data_dir: a `mnist.npz`; or a folder that holds it or the IDX files, also in `mnist/`, `raw/` or `MNIST/raw/`;
            "" = Keras' cache, then download into it.

    Returns:
        ImageData, images uint8 [n, 28, 28, 1], as the files have them: strokes are bright.

    Raises:
        UsageError: not found, or a file is damaged; the message names the file and the ways out.

    Example:
        from resnet_study.data.mnist import load_mnist

        data = load_mnist()  # downloads 11 MB the first time
        print(data.train.images.shape)  # (60000, 28, 28, 1)
    """
    if not data_dir:
        cached = keras_cache() / _NPZ
        place = cached if cached.is_file() else download(_URL, _SHA256)
        with naming_cache(place):
            return _read_npz(place)
    place = Path(data_dir).expanduser()
    if place.is_file():
        return _read_npz(place)
    for folder in (place / name for name in _FOLDERS):
        files = [_find_idx(folder, stem) for stem in _STEMS]
        if any(files):
            return _read_idx(files, folder)
        if (folder / _NPZ).is_file():
            return _read_npz(folder / _NPZ)
    raise UsageError(
        f"--data_dir must hold {_STEMS[0]} (perhaps .gz) and its three companions, or {_NPZ}; none found in {data_dir}; give "
        "another folder, leave it out to download, or use --dataset=digits"
    )


def _find_idx(folder: Path, stem: str) -> Path | None:
    """The file of a published name, gzipped (which has a checksum) or not, also as others have renamed or nested it."""
    names = (f"{stem}.gz", stem, f"{stem}/{stem}")
    candidates = [folder / name for text in names for name in (text, text.replace("-idx", ".idx"))]
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(files: list[Path | None], folder: Path) -> ImageData:
    missing = [stem for stem, file in zip(_STEMS, files, strict=True) if not file]
    if missing:
        raise UsageError(
            f"expected {', '.join(missing)} (perhaps .gz) in {folder}, received "
            f"{', '.join(file.name for file in files if file)}; give another --data_dir or leave it out to download"
        )
    arrays = [_parse_idx(_unpack(file), 3 if "images" in stem else 1, file) for stem, file in zip(_STEMS, files, strict=True)]  # fmt: skip
    return _make_data(arrays, files, folder)


def _unpack(file: Path) -> bytes:
    """The content of an IDX file, unpacked where it is gzipped, whatever its name says."""
    content = read_file(file, _LARGEST)
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            content = packed.read(_LARGEST + 1)
    # A damaged archive can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise UsageError(f"{file} is damaged ({one_line(error)}); download it again") from error
    if len(content) > _LARGEST:
        raise UsageError(f"{file} unpacks to more than {_LARGEST:,} bytes, expected at most 47,040,016; download it again")  # fmt: skip
    return content


def _parse_idx(content: bytes, dimensions: int, file: Path) -> np.ndarray:
    """The array uint8 of an IDX file. Its header is believed only where the length of the file agrees."""
    magic, start = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    sizes = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if not content.startswith(magic) or len(content) < start:
        raise UsageError(f"{file} must begin with {magic.hex(' ')} and {dimensions} size(s), received {content[:start].hex(' ') or 'nothing'}; "
                         "download it again")  # fmt: skip
    if len(content) != start + math.prod(sizes) or not math.prod(sizes):
        raise UsageError(
            f"{file} must have {start + math.prod(sizes):,} bytes for the {' x '.join(map(str, sizes))} values its header tells of, "
            f"received {len(content):,}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _read_npz(path: Path) -> ImageData:
    content = io.BytesIO(read_file(path, _LARGEST))
    try:
        with zipfile.ZipFile(content) as archive:
            arrays = [_parse_npy(archive, f"{name}.npy") for name in _ARRAYS]
    # A damaged archive can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise UsageError(
            f"{path} is damaged or no {_NPZ} ({one_line(error)}); delete it, or give another --data_dir"
        ) from error
    return _make_data(arrays, [f"{path}/{name}" for name in _ARRAYS], path)


def _parse_npy(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of whole numbers. `np.load` would reserve memory for whatever shape the header names."""
    if archive.getinfo(name).file_size > _LARGEST:
        raise ValueError(f"{name} unpacks to more than {_LARGEST:,} bytes")
    content = io.BytesIO(archive.read(name))
    version = np.lib.format.read_magic(content)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran_order, dtype = read_header[version](content)
    rest = content.getbuffer()[content.tell() :]
    if dtype.kind not in "iu" or fortran_order or len(rest) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} must hold whole numbers, as many as its header tells of, received something else")
    return np.frombuffer(rest, dtype).reshape(shape)


def _make_data(arrays, sources, found: Path) -> ImageData:
    """Checks that images and labels fit together. `sources` name the four arrays in messages."""
    for images, labels, source, label_source in zip(arrays[::2], arrays[1::2], sources[::2], sources[1::2], strict=True):  # fmt: skip
        if images.dtype != np.uint8 or images.shape[1:] != _SHAPE or labels.ndim != 1:
            raise UsageError(
                f"{source} must hold uint8 images of 28 x 28 and {label_source} one label each, received {images.dtype} of shape "
                f"{images.shape} and labels of shape {labels.shape}; download it again"
            )
        if len(images) != len(labels):
            raise UsageError(
                f"{source} must hold as many images as {label_source} labels, received {len(images):,} and {len(labels):,}; "
                "download both again"
            )
        check_labels(labels, len(CLASSES), str(label_source))
    train_images, train_labels, test_images, test_labels = arrays
    return ImageData(
        Split(train_images[..., None], train_labels.astype(np.int32)),
        Split(test_images[..., None], test_labels.astype(np.int32)),
        CLASSES,
        str(found),
    )
