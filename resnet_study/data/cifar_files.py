"""The published files of CIFAR-10 and CIFAR-100: found or fetched, verified, read.

They come in a Python and a binary version. A row holds 3,072 bytes: 1,024 red, 1,024 green, 1,024 blue, each plane row by row
(https://www.cs.toronto.edu/~kriz/cifar.html). Archives and pickles come from strangers: archives are read, never extracted, and
reading a pickle cannot call anything.
"""

import dataclasses
import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

from resnet_study.data.download import download, keras_cache, naming_cache
from resnet_study.data.image_data import ImageData, Split, check_labels, read_file
from resnet_study.errors import UsageError, one_line
from resnet_study.strings import shorten

KINDS = ("vehicle", "animal")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_IMAGE_BYTES = 3072
_LARGEST_MEMBER = 256 << 20  # bytes; the largest published file, CIFAR-100's training file, has 155 MB
_LARGEST_ARCHIVE = 512 << 20  # bytes unpacked; the published archives have 186 MB
_SITE = "https://www.cs.toronto.edu/~kriz/"


@dataclasses.dataclass(frozen=True)
class _Published:
    """The published files of one CIFAR data set."""

    folders: tuple[str, str]  # Python version, binary version
    archives: tuple[str, str]
    sha256: str  # of the Python version's archive
    train_files: tuple[tuple[str, ...], tuple[str, ...]]
    test_files: tuple[tuple[str, ...], tuple[str, ...]]
    names_files: tuple[str, str]
    label_key: str
    names_key: str
    classes: int
    label_bytes: int  # in a row of the binary version
    label_offset: int


_CIFAR10 = _Published(
    folders=("cifar-10-batches-py", "cifar-10-batches-bin"),
    archives=("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"),
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    train_files=(
        tuple(f"data_batch_{i}" for i in range(1, 6)),
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    ),
    test_files=(("test_batch",), ("test_batch.bin",)),
    names_files=("batches.meta", "batches.meta.txt"),
    label_key="labels",
    names_key="label_names",
    classes=10,
    label_bytes=1,
    label_offset=0,
)
_CIFAR100 = _Published(
    folders=("cifar-100-python", "cifar-100-binary"),
    archives=("cifar-100-python.tar.gz", "cifar-100-binary.tar.gz"),
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    train_files=(("train",), ("train.bin",)),
    test_files=(("test",), ("test.bin",)),
    names_files=("meta", "fine_label_names.txt"),
    label_key="fine_labels",
    names_key="fine_label_names",
    classes=100,
    label_bytes=2,
    label_offset=1,
)
_PUBLISHED = {
    "cifar10": _CIFAR10,
    "cifar100": _CIFAR100,
    "cifar100_coarse": dataclasses.replace(
        _CIFAR100,
        names_files=("meta", "coarse_label_names.txt"),
        label_key="coarse_labels",
        names_key="coarse_label_names",
        classes=20,
        label_offset=0,
    ),
}


def load_cifar(dataset: str, data_dir: str) -> ImageData:
    """Finds, verifies and reads a CIFAR data set.

    Args:
        dataset: "cifar10", "cifar100" (fine labels) or "cifar100_coarse".
        data_dir: folder or archive to look in; "" = Keras' cache, and if it is not there a download into it.

    Returns:
        ImageData, images uint8 [n, 32, 32, RGB].

    Raises:
        UsageError: not found, or a file is damaged; the message names the file and the ways out.

    Example:
        from resnet_study.data.cifar_files import load_cifar

        data = load_cifar("cifar10", "")  # downloads 170 MB the first time
        print(data.train.images.shape)  # (50000, 32, 32, 3)
    """
    published = _PUBLISHED[dataset]
    if not data_dir:
        place = _find_in_keras_cache(published) or download(_SITE + published.archives[0], published.sha256)
        with naming_cache(place):
            return _read(published, place)
    place = _find(published, Path(data_dir).expanduser())
    if place is None:
        raise UsageError(
            f"--data_dir must hold {published.folders[0]}/, {published.folders[1]}/ or {published.archives[0]}; none "
            f"found in {data_dir}; give another folder, leave it out to download, or use --dataset=digits; for your own images --dataset=folder"
        )
    return _read(published, place)


def _find(published: _Published, place: Path) -> Path | None:
    """The folder or archive in, at or just below `place` that holds the data set; None if there is none."""
    if place.is_file():
        return place
    for candidate in (place, *(place / name for name in published.folders + published.archives)):
        if candidate.is_file():
            return candidate
        for files in published.test_files:
            if (candidate / files[0]).is_file():
                return candidate
    return None


def _find_in_keras_cache(published: _Published) -> Path | None:
    cache = keras_cache()
    # `keras.datasets` extracts into <name>-target/<name>; older versions extracted into <name>.
    name = published.folders[0]
    places = (f"{name}-target", *published.folders, *published.archives)  # files of no folder belong to others
    return next((found for place in places if (found := _find(published, cache / place))), None)


def _read(published: _Published, place: Path) -> ImageData:
    """Reads the Python or the binary version from a folder or an archive."""
    wanted = {name for files in published.train_files + published.test_files for name in files} | {
        *published.names_files
    }
    files = _archive_members(place, wanted) if place.is_file() else _folder_files(place, wanted)
    version = 0 if published.test_files[0][0] in files else 1
    missing = [name for name in published.train_files[version] + published.test_files[version] if name not in files]
    if missing:
        raise UsageError(f"expected {', '.join(missing)} in {place}, received {', '.join(sorted(files)) or 'none of its files'}; "
                         "give another --data_dir or leave it out to download")  # fmt: skip
    parse = (_parse_pickle, _parse_binary)[version]

    def read_split(names):
        parts = [parse(files.pop(name), published, f"{place}/{name}") for name in names]
        return Split(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))

    return ImageData(
        read_split(published.train_files[version]),
        read_split(published.test_files[version]),
        _class_names(files.get(published.names_files[version]), version, published, place),
        str(place),
    )


def _folder_files(folder: Path, wanted: set[str]) -> dict[str, bytes]:
    paths = {name: folder / name for name in sorted(wanted)}
    return {name: read_file(path, _LARGEST_MEMBER) for name, path in paths.items() if path.is_file()}


class _Unpacked(io.RawIOBase):
    """A tar archive as it is unpacked; reading far more than the published archives hold is an error."""

    def __init__(self, packed):
        gzipped = packed.read(2) == b"\x1f\x8b"
        packed.seek(0)
        self._content = gzip.GzipFile(fileobj=packed) if gzipped else packed

    def read(self, size):
        if size > _LARGEST_MEMBER or self.tell() + size > _LARGEST_ARCHIVE:
            raise ValueError(f"it unpacks to more than {_LARGEST_ARCHIVE:,} bytes, expected about 186 MB")
        return self._content.read(size)

    def seek(self, offset, whence=io.SEEK_SET):
        if offset > _LARGEST_ARCHIVE:
            raise ValueError(f"it unpacks to more than {_LARGEST_ARCHIVE:,} bytes, expected about 186 MB")
        return self._content.seek(offset, whence)

    def tell(self):
        return self._content.tell()


def _archive_members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted regular files of a tar archive, plain or gzipped, read into memory; nothing is extracted."""
    files = {}
    try:
        with archive.open("rb") as packed:
            unpacked = _Unpacked(packed)
            with tarfile.open(fileobj=unpacked, mode="r:") as tar:
                for member in tar:
                    name = member.name.rsplit("/", 1)[-1]
                    if member.size < 0:
                        raise ValueError(f"it holds a file of {member.size} bytes")
                    if member.isreg() and not member.issparse() and name in wanted and name not in files:
                        files[name] = tar.extractfile(member).read()
                        if len(files[name]) != member.size:
                            raise EOFError(f"{name} is cut off")
            while unpacked.read(1 << 20):  # gzip's checksum comes last
                pass
    # A damaged archive can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise UsageError(f"{archive} is damaged or no tar archive ({one_line(error)}); download it again") from error
    return files


class _PickledArray:
    """Stands for a pickled numpy array: keeps what describes it, calls nothing."""

    def __init__(self, *_):
        self.shape, self.type, self.content = (), "", b""

    def __setstate__(self, state):
        _, self.shape, dtype, _, self.content = state
        self.type = dtype.name


class _PickledType:
    """Stands for a pickled numpy dtype."""

    def __init__(self, name, *_):
        self.name = name

    def __setstate__(self, state):
        pass


def _array_from_buffer(content, dtype, shape, _order):
    array = _PickledArray()
    array.shape, array.type, array.content = shape, dtype.name, content
    return array


class _TextDict(dict):
    """A dictionary with keys of text only: the hash of nested tuples can take for ever."""

    __slots__ = ()

    def __setitem__(self, key, value):
        if not isinstance(key, str | bytes):
            raise pickle.UnpicklingError(f"it has a key of type {type(key).__name__}")
        super().__setitem__(key, value)


class _CifarUnpickler(pickle._Unpickler):
    """Reads dictionaries, lists, whole numbers, text and descriptions of arrays; refuses everything else.

    This is the unpickler written in Python: the one written in C reserves memory for whatever number a file names.
    """

    _UNDERSTOOD = (
        "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
        "BINBYTES8 BYTEARRAY8 BINUNICODE SHORT_BINUNICODE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_TUPLE "
        "TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
    )
    dispatch = {  # noqa: RUF012 - as in the parent class
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _UNDERSTOOD.split()
    }

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._to_encode = len(content)

    def load_empty_dictionary(self):
        self.append(_TextDict())

    def load_byte_array(self):
        self.append(self.read(int.from_bytes(self.read(8), "little")))  # the original reserves memory first

    def load_build(self):
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _PickledArray | _PickledType):
            raise pickle.UnpicklingError(f"it describes a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary
    dispatch[pickle.BYTEARRAY8[0]] = load_byte_array
    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module, name):
        if module == "_codecs" and name == "encode":
            return self._encode_latin1
        stands_for = {
            "_reconstruct": _PickledArray,
            "ndarray": _PickledArray,
            "dtype": _PickledType,
            "_frombuffer": _array_from_buffer,
        }
        if module.split(".")[0] == "numpy" and name in stands_for:
            return stands_for[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def _encode_latin1(self, text, _encoding):
        self._to_encode -= len(text)  # each text once, or a small file could fill the memory with copies
        if self._to_encode < 0:
            raise pickle.UnpicklingError("it repeats its content")
        return text.encode("latin1")


def _unpickle(content: bytes, source: str) -> dict:
    """A pickled dictionary with its keys as text. Raises UsageError if it is damaged or asks for anything else."""
    try:
        value = _CifarUnpickler(content).load()
        return {key.decode() if isinstance(key, bytes) else key: item for key, item in value.items()}
    # A damaged pickle can raise nearly anything; whatever it is, the file cannot be used.
    except Exception as error:
        raise UsageError(
            f"{source} is damaged or not of the published version ({one_line(error)}); download it again"
        ) from error


def _parse_pickle(content: bytes, published: _Published, source: str) -> Split:
    batch = _unpickle(content, source)
    array, labels = batch.get("data"), batch.get(published.label_key)
    # What comes from the file is not put into messages before its type is known: it can be larger than the memory.
    if not isinstance(array, _PickledArray) or not isinstance(labels, list):
        raise UsageError(
            f"{source} must hold an array 'data' and a list '{published.label_key}', received {shorten(str(sorted(batch)))}; download it "
            "again"
        )
    count = len(labels)
    if (
        array.shape != (count, _IMAGE_BYTES)
        or array.type not in ("u1", "|u1", b"u1", b"|u1")
        or not isinstance(array.content, bytes | bytearray)
        or len(array.content) != count * _IMAGE_BYTES
    ):
        raise UsageError(
            f"{source} must hold uint8 data of shape ({count}, {_IMAGE_BYTES}) for its {count} labels, received something else; "
            "download it again"
        )
    if not all(isinstance(label, int) for label in labels):
        raise UsageError(f"{source} must hold whole numbers as labels, received others; download it again")
    return _make_split(np.frombuffer(array.content, np.uint8), np.array(labels, np.int64), published, source)


def _parse_binary(content: bytes, published: _Published, source: str) -> Split:
    row = published.label_bytes + _IMAGE_BYTES
    if not content or len(content) % row:
        raise UsageError(
            f"{source} must be made of rows of {row} bytes, received {len(content):,} bytes; download it again"
        )
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return _make_split(
        rows[:, published.label_bytes :], rows[:, published.label_offset].astype(np.int64), published, source
    )


def _make_split(planes: np.ndarray, labels: np.ndarray, published: _Published, source: str) -> Split:
    check_labels(labels, published.classes, source)
    images = np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Split(images, labels.astype(np.int32))


def _class_names(content: bytes | None, version: int, published: _Published, place: Path) -> tuple[str, ...]:
    """Names of the classes, from the data set's own list of names."""
    if content is None and published is _CIFAR10:
        return CIFAR10_CLASSES
    if content is None:
        return tuple(f"class {index}" for index in range(published.classes))
    source = f"{place}/{published.names_files[version]}"
    names = _unpickle(content, source).get(published.names_key) if version == 0 else content.split()
    if (
        not isinstance(names, list)
        or len(names) != published.classes
        or not all(isinstance(name, str | bytes) for name in names)
    ):
        raise UsageError(f"{source} must hold {published.classes} class names, received others; download it again")
    return tuple(name.decode("ascii", "replace") if isinstance(name, bytes) else str(name) for name in names)
