"""Files from strangers and broken disks: each ends in one line that names the file, or in the right result. More than 500 cases."""

import functools
import gzip
import io
import json
import os
import pickle
import pickletools
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
import PIL.Image
import pytest
from conftest import MNIST_FILES, SPECIAL_FILES, idx_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cifar10_test
import flowers.train
from cifar10_input import load_data
from cifar10_main import main
from flowers.data import load_images
from flowers.settings import FlowerParameters
from hyper_parameters import HyperParameters, from_preset
from resnet_study import class_names, saved_models
from resnet_study.checkpoints import check_checkpoint, read_checkpoint, write_checkpoint
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError
from resnet_study.evaluation import read_result
from resnet_study.exporting import exported_model
from resnet_study.exporting.exported_model import open_model
from resnet_study.files import read_json, write_atomically, write_json
from resnet_study.reports.image_sheets import draw_grid
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model
from resnet_study.training.tensorboard_log import TensorBoardLog, event_sizes

ROWS = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)
NAMES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
GOOD = pickle.dumps({"data": ROWS, "labels": list(range(10))}, protocol=2)

resource = pytest.importorskip("resource")  # which Windows lacks


def cases(count):
    """Settings of hypothesis: as many cases, always the same ones."""
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


def survive(action, name, is_right=lambda result: True):
    """The promise, checked: one line that names the file, or a right result; little memory; returns the message, if any."""
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        result, message = action(), None
    except UsageError as error:
        message = str(error)
        assert name in message and len(message) < 2000
    else:
        assert is_right(result)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400_000  # kB
    assert time.monotonic() - started < 20
    return message


def run_main(capsys, name, *flags):
    """The same promise for a command: 0, or 2 and one line that names the file."""
    code = main([str(flag) for flag in flags])
    error = capsys.readouterr().err
    assert code in (0, 2) and "Traceback" not in error
    if code == 2:
        lines = error.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and name in lines[0]
    return code


@st.composite
def damages(draw):
    """A function from good bytes to damaged ones: cut, flipped, overwritten, doubled or with a piece left out."""
    kind, where, what = draw(st.sampled_from(["cut", "flip", "write", "double", "drop"])), draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=8))  # fmt: skip

    def damage(content):
        place = min(len(content) - 1, int(where * len(content)))
        if kind == "cut":
            return content[:place]
        if kind == "flip":
            return content[:place] + bytes([content[place] ^ (what[0] or 1)]) + content[place + 1 :]
        if kind == "write":
            return content[:place] + what + content[place + len(what) :]
        if kind == "double":
            return content[:place] + content[place // 2 :]
        return content[:place] + content[place + len(what) :]

    return damage


# CIFAR


def is_well_formed(data):
    return data.train.images.shape[1:] == (32, 32, 3) and data.train.images.dtype == np.uint8 and set(
        data.train.labels.tolist()) <= set(range(10)) and len(data.train) == len(data.train.images)  # fmt: skip


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    for name in NAMES:
        (folder / name).write_bytes(GOOD)
    return folder


def load(place, dataset="cifar10"):
    return load_data(from_preset("fast", dataset=dataset, data_dir=str(place)))


def load_batch(folder, content, name="data_batch_2"):
    (folder / name).write_bytes(content)
    try:
        return survive(lambda: load(folder), name, is_well_formed)
    finally:
        (folder / name).write_bytes(GOOD)


@cases(120)
@given(damages())
def test_damaged_batches(batches, damage):
    load_batch(batches, damage(GOOD))


@cases(60)
@given(st.lists(st.sampled_from([code.code.encode("latin1") for code in pickletools.opcodes]) | st.binary(max_size=6), max_size=60))  # fmt: skip
def test_batches_of_random_instructions(batches, pieces):
    assert load_batch(batches, b"\x80\x02" + b"".join(pieces) + b".")


class Calls:
    def __init__(self, *how):
        self.how = how

    def __reduce__(self):
        return self.how


def nested(opcode, levels):
    return b"\x80\x02]q\x00" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + opcode + b"q" + bytes([i + 1]) for i in range(levels))  # fmt: skip


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
LABELS = b"U\x06labels](" + b"K\x00" * 10 + b"e"


def lying(shape, content=b"U\x04abcd"):
    """A batch whose array claims `shape` (pickle instructions) and holds `content` (pickle instructions)."""
    return b"\x80\x02}(U\x04data" + ARRAY + b"(K\x01" + shape + DTYPE + b"\x89" + content + b"tb" + LABELS + b"u."


PICKLES = {
    "os.system": pickle.dumps(Calls(os.system, ("touch owned",))),
    "eval": pickle.dumps(Calls(eval, ("open('owned', 'w')",))),
    "exec": pickle.dumps(Calls(exec, ("open('owned', 'w')",))),
    "open": pickle.dumps(Calls(open, ("owned", "w"))),
    "mkdir in data": pickle.dumps({"data": Calls(os.mkdir, ("owned",)), "labels": []}),
    "numpy.fromfile": pickle.dumps(Calls(np.fromfile, ("/etc/passwd",))),
    "numpy.load": pickle.dumps(Calls(np.load, ("/etc/passwd",))),
    "numpy.savetxt": pickle.dumps(Calls(np.savetxt, ("owned", [1]))),
    "getattr": pickle.dumps(Calls(getattr, ("a", "upper"))),
    "copyreg": b"\x80\x02ccopyreg\n_reconstructor\n(cos\n_wrap_close\nc__builtin__\nobject\nNtR.",
    "dotted name": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__class__\x93.",
    "a class of a module of ours": b"\x80\x02cresnet_study.run_folder\nRunFolder\n(U\x01xtR.",
    "numpy of another": b"\x80\x02cnumpy.f2py\nrun_main\n(tR.",
    "old INST": b"(S'touch owned'\nios\nsystem\n.",
    "old OBJ": b"(cos\nsystem\nS'touch owned'\no.",
    "NEWOBJ": b"\x80\x02cnumpy\nndarray\n(K\x01t\x81.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id": b"\x80\x02U\x01xQ.",
    "state of a function": b"\x80\x02c_codecs\nencode\n}(U\x08__code__K\x00ub.",
    "state of a class": b"\x80\x02cnumpy\nndarray\n}(U\x08__init__K\x00ub.",
    "call of an array": b"\x80\x02" + ARRAY + b"(tR.",
    "memo of 2^31": b"\x80\x02]r\xff\xff\xff\x7f.",
    "memo of 2^32-1": b"\x80\x02]r\xff\xff\xff\xff.",
    "missing memo": b"\x80\x02j\xff\xff\xff\xff.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "bytes of 20 GB": b"\x80\x04\x8e" + struct.pack("<Q", 20 << 30) + b"x.",
    "text of 2^63": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b"x.",
    "bytearray of 20 GB": b"\x80\x05\x96" + struct.pack("<Q", 20 << 30) + b"x.",
    "string of 2 GB": b"\x80\x02T\xff\xff\xff\x7fx.",
    "negative string": b"\x80\x02T\xff\xff\xff\xffx.",
    "frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "number of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "number of 5,000 digits": b"\x80\x02\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000 + b".",
    "100,000 nested lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "100,000 nested tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "billion laughs": nested(b"\x86", 60) + b".",
    "billion laughs as a key": b"\x80\x02}" + nested(b"\x86", 60)[2:] + b"K\x01s.",
    "billion laughs as names": b"\x80\x02}U\x04data" + nested(b"\x86", 60)[2:] + b"s.",
    "billion laughs as shape": lying(nested(b"\x86", 60)[2:]),
    "billion laughs as content": lying(b"K\x0aM\x00\x0c\x86", nested(b"\x86", 60)[2:]),
    "billion laughs as type": b"\x80\x02}(U\x04data" + ARRAY + b"(K\x01K\x0aM\x00\x0c\x86cnumpy\ndtype\n(" + nested(b"\x86", 60)[2:] + b"tR\x89U\x01xtb" + LABELS + b"u.",
    "one text encoded 1,000 times": b"\x80\x02(" + b"X" + struct.pack("<I", 1_000_000) + b"a" * 1_000_000 + b"q\x00" + b"c_codecs\nencode\n(h\x00U\x06latin1tR" * 1000 + b"l.",
    "content of 10 GB from a number": lying(b"K\x0aM\x00\x0c\x86", b"\x8a\x05\x00\xe4\x0bT\x02"),
    "shape negative": lying(b"J\xff\xff\xff\xffM\x00\x0c\x86"),
    "shape huge": lying(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
    "shape of fractions": lying(b"G@$\x00\x00\x00\x00\x00\x00M\x00\x0c\x86"),
    "shape nested": lying(b"K\x0aM\x00\x0c\x86\x85"),
    "shape none": lying(b"N"),
    "shape right, content short": lying(b"K\x0aM\x00\x0c\x86"),
    "state too short": b"\x80\x02}(U\x04data" + ARRAY + b"K\x01\x85bU\x06labels]u.",
    "float pixels": pickle.dumps({"data": np.zeros((10, 3072)), "labels": [0] * 10}, protocol=2),
    "pixels of objects": pickle.dumps({"data": np.full((10, 3072), None), "labels": [0] * 10}, protocol=2),
    "big-endian pixels": pickle.dumps({"data": np.zeros((10, 3072), ">u2"), "labels": [0] * 10}, protocol=2),
    "no dictionary": pickle.dumps([1], protocol=2),
    "set of labels": pickle.dumps({"data": ROWS, "labels": set(range(10))}, protocol=2),
    "labels too large": pickle.dumps({"data": ROWS, "labels": [10**30] * 10}, protocol=2),
    "label 10": pickle.dumps({"data": ROWS, "labels": [10] * 10}, protocol=2),
    "label -1": pickle.dumps({"data": ROWS, "labels": [-1] * 10}, protocol=2),
    "label 0.5": pickle.dumps({"data": ROWS, "labels": [0.5] * 10}, protocol=2),
    "label of text": pickle.dumps({"data": ROWS, "labels": ["cat"] * 10}, protocol=2),
    "label of a list": pickle.dumps({"data": ROWS, "labels": [[]] * 10}, protocol=2),
    "rows too short": pickle.dumps({"data": ROWS[:, :3000], "labels": [0] * 10}, protocol=2),
    "no rows": pickle.dumps({"data": ROWS[:0], "labels": []}, protocol=2),
    "no labels": pickle.dumps({"data": ROWS}, protocol=2),
    "two rows, one label": pickle.dumps({"data": ROWS, "labels": [1]}, protocol=2),
    "empty": b"",
    "zeros": bytes(1000),
    "only a stop": b".",
    "text": b"<html>404</html>",
    "keys of bytes that are no text": b"\x80\x02}U\x02\xff\xfeK\x01s.",
}  # fmt: skip


@pytest.mark.parametrize("kind", PICKLES)
def test_hostile_pickles(batches, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    assert load_batch(batches, PICKLES[kind])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"x", bytes(3072), bytes(3074), b"\x0a" + bytes(3072), b"\xff" * 3073, bytes(3073 * 3 - 1)])  # fmt: skip
def test_binary_batches_of_wrong_size_or_label(tmp_path, content):
    for name in NAMES:
        (tmp_path / f"{name}.bin").write_bytes(b"".join(bytes([label]) + ROWS[label].tobytes() for label in range(10)))
    assert len(load(tmp_path).train) == 50
    (tmp_path / "data_batch_4.bin").write_bytes(content)
    assert survive(lambda: load(tmp_path), "data_batch_4.bin")


@pytest.mark.parametrize("labels", [[100] * 10, [-1] * 10, [0] * 9, None, "x", [[0]] * 10])
@pytest.mark.parametrize("dataset", ["cifar100", "cifar100_coarse"])
def test_cifar100_labels(tmp_path, dataset, labels):
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(
            pickle.dumps({"data": ROWS, "fine_labels": labels, "coarse_labels": labels}, protocol=2)
        )
    assert survive(lambda: load(tmp_path, dataset), "train")


@pytest.mark.parametrize("names", [b"", pickle.dumps({"label_names": 3}), pickle.dumps({"label_names": [[]] * 10}), pickle.dumps({"label_names": ["a"]}), PICKLES["billion laughs"],
                                   b"\x80\x02}U\x0blabel_names" + nested(b"\x86", 60)[2:] + b"s."])  # fmt: skip
def test_class_names(batches, names):
    try:
        (batches / "batches.meta").write_bytes(names)
        assert survive(lambda: load(batches), "batches.meta")
    finally:
        (batches / "batches.meta").unlink()


@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_places_that_are_no_files(batches, tmp_path, mnist_arrays, kind):
    """Pipes and devices are not waited for, links into nowhere are missing files."""
    shutil.copytree(batches, tmp_path, dirs_exist_ok=True)
    write_mnist(tmp_path, mnist_arrays)
    for dataset, name in (("cifar10", "data_batch_3"), ("mnist", MNIST_FILES[2])):
        (tmp_path / name).unlink()
        SPECIAL_FILES[kind](tmp_path / name)
        message = survive(lambda dataset=dataset: load(tmp_path, dataset), name)
        assert message and (kind != "sparse" or "bytes" in message)


def make_tar(*members, pack=gzip.compress):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, changes in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in changes.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return pack(buffer.getvalue())


BATCHES = [(f"cifar-10-batches-py/{name}", GOOD, {}) for name in NAMES]


def load_archive(tmp_path, content):
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(content)
    message = survive(lambda: load(path), path.name, is_well_formed)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    return message


@pytest.fixture(scope="module")
def archive_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("archives")


@cases(60)
@given(damages())
def test_damaged_gzipped_archives(archive_folder, damage):
    path = archive_folder / "cifar-10-python.tar.gz"
    good = make_tar(*BATCHES)
    path.write_bytes(damage(good))

    def is_unchanged(data):  # gzip's checksum lets nothing else through
        return (data.train.images[:10].reshape(10, -1) == ROWS.reshape(10, 3, 1024).transpose(0, 2, 1).reshape(10, -1)).all()  # fmt: skip

    survive(lambda: load(path), path.name, is_unchanged)


@cases(60)
@given(damages())
def test_damaged_plain_archives(archive_folder, damage):
    path = archive_folder / "cifar-10-python.tar"
    path.write_bytes(damage(make_tar(*BATCHES, pack=bytes)))
    survive(lambda: load(path), "cifar-10-python.tar", is_well_formed)


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", b"x", {}),
        ("/tmp/evil-absolute", b"x", {}),
        ("a\nb", b"x", {}),
        ("a" * 5000, b"x", {}),
        ("\udcff", b"x", {}),
        ("cifar-10-batches-py/data_batch_1", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("cifar-10-batches-py/data_batch_1", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}),
        ("cifar-10-batches-py/data_batch_1", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}),
        ("cifar-10-batches-py/data_batch_1", b"", {"type": tarfile.BLKTYPE}),
        ("cifar-10-batches-py/data_batch_1", b"", {"type": tarfile.FIFOTYPE}),
        ("cifar-10-batches-py/data_batch_1", b"", {"type": tarfile.DIRTYPE}),
    ],
)
def test_odd_members_are_neither_followed_nor_written(tmp_path, monkeypatch, member):
    monkeypatch.chdir(tmp_path)
    assert load_archive(tmp_path, make_tar(member, *BATCHES)) is None
    assert not Path("/tmp/evil-absolute").exists() and not (tmp_path.parent / "evil").exists()


def header(name, size, kind=b"0"):
    """A tar header that claims a size."""
    number = b"%011o\0" % size if 0 <= size < 8**11 else b"\xff" * 4 + struct.pack(">q", size) if size < 0 else b"\x80\0\0\0" + struct.pack(">Q", size)  # fmt: skip
    block = (
        name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + number + b"00000000000\0" + b" " * 8 + kind
    )
    block = block.ljust(257, b"\0") + b"ustar\x0000"
    block = block.ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


ZEROS = gzip.compress(bytes(64 << 20), 9)  # 64 MB in 64 kB; gzip files may be joined


@pytest.mark.parametrize("start", [b"", header("x", 2 << 30), header("data_batch_1", 2 << 30), header("data_batch_1", 250 << 20), header("L", 2 << 30, b"L"),
                                   header("L", 200 << 20, b"L"), header("x", 2 << 30, b"x"), header("x", 2 << 30, b"g"), header("x", 2 << 30, b"Z")])  # fmt: skip
def test_archives_that_unpack_to_two_gigabytes(tmp_path, start):
    assert load_archive(tmp_path, gzip.compress(start) + ZEROS * 32)


@pytest.mark.parametrize("size", [-1, -512, -(2**62), 2**40, 2**62, 2**63])
@pytest.mark.parametrize("kind", [b"0", b"L", b"K", b"x", b"g", b"S", b"2"])
def test_headers_that_lie_about_the_size(tmp_path, size, kind):
    assert load_archive(tmp_path, gzip.compress(header("data_batch_1", size, kind) + bytes(2048)))


def test_sparse_members_are_not_unpacked(tmp_path):
    sparse = bytearray(header("data_batch_1", 512, b"S"))
    sparse[386:410] = b"%011o\0" % 0 + b"%011o\0" % 512
    sparse[483:495] = b"%011o\0" % (1 << 30)
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    assert load_archive(tmp_path, gzip.compress(bytes(sparse) + bytes(4096)))


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"PK\x03\x04", zlib.compress(GOOD), GOOD, b"\x1f\x8b\x08" + bytes(100), make_tar(*BATCHES[:3]), make_tar()], ids=range(8))  # fmt: skip
def test_files_that_are_no_archive(tmp_path, content):
    assert load_archive(tmp_path, content)


# MNIST


def write_mnist(folder, arrays, changes=(), pack=bytes):
    """IDX files; `changes` {index: content} replaces some of them."""
    contents = [pack(idx_bytes(array)) for array in arrays]
    for index, content in dict(changes).items():
        contents[index] = content
    for name, content in zip(MNIST_FILES, contents, strict=True):
        (folder / name).write_bytes(content)


def is_mnist(arrays):
    def is_right(data):
        received = [data.train.images[..., 0], data.train.labels, data.test.images[..., 0], data.test.labels]
        return all(np.array_equal(*pair) for pair in zip(received, arrays, strict=True))

    return is_right


def is_grey(data):
    return data.train.images.shape[1:] == (28, 28, 1) and set(data.train.labels.tolist()) <= set(range(10))


@cases(120)
@given(damages(), st.integers(0, 3), st.booleans())
def test_damaged_idx_files(archive_folder, mnist_arrays, damage, index, packed):
    pack = gzip.compress if packed else bytes
    write_mnist(archive_folder, mnist_arrays, {index: damage(pack(idx_bytes(mnist_arrays[index])))}, pack)
    # gzip's checksum lets only the right content through; without one, changed pixels cannot be noticed.
    is_right = is_mnist(mnist_arrays) if packed else is_grey
    survive(lambda: load(archive_folder, "mnist"), MNIST_FILES[index], is_right)


@cases(120)
@given(damages(), st.booleans())
def test_damaged_npz_files(archive_folder, mnist_arrays, damage, packed):
    path = archive_folder / "damaged.npz"
    path.write_bytes(damage(npz(mnist_arrays, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)))
    survive(lambda: load(path, "mnist"), path.name, is_mnist(mnist_arrays))


def idx(*sizes, magic=None, content=b""):
    return (magic or bytes((0, 0, 8, len(sizes)))) + b"".join(struct.pack(">I", size) for size in sizes) + content


PIXELS = bytes(120 * 784)
LYING_PICTURES = {
    "empty": b"",
    "only a magic number": idx(magic=b"\0\0\x08\x03"),
    "half a header": idx(120, magic=b"\0\0\x08\x03"),
    "no values": idx(120, 28, 28),
    "one byte short": idx(120, 28, 28, content=PIXELS[1:]),
    "one byte more": idx(120, 28, 28, content=PIXELS + b"x"),
    "one image more declared": idx(121, 28, 28, content=PIXELS),
    "one image less declared": idx(119, 28, 28, content=PIXELS),
    "as many as labels say, but fewer": idx(60, 28, 28, content=PIXELS[: 60 * 784]),
    "2^32 - 1 images": idx(2**32 - 1, 28, 28, content=PIXELS),
    "(2^32 - 1)^3 values": idx(2**32 - 1, 2**32 - 1, 2**32 - 1, content=PIXELS),
    "a product of 2^64": idx(2**31, 2**31, 4, content=PIXELS),
    "a product of 0": idx(0, 2**32 - 1, 2**32 - 1),
    "none": idx(0, 28, 28),
    "other sizes": idx(120, 14, 56, content=PIXELS),
    "flat images": idx(120, 784, content=PIXELS),
    "four sizes": idx(120, 28, 28, 1, content=PIXELS),
    "labels": idx(120, content=bytes(120)),
    "signed bytes": idx(120, 28, 28, magic=b"\0\0\x09\x03", content=PIXELS),
    "floats": idx(120, 28, 28, magic=b"\0\0\x0d\x03", content=PIXELS * 4),
    "little-endian": b"\x03\x08\0\0" + struct.pack("<III", 120, 28, 28) + PIXELS,
    "text": b"<html>404</html>",
    "a gzip of nothing": gzip.compress(b""),
    "a gzip of a gzip": gzip.compress(gzip.compress(idx(120, 28, 28, content=PIXELS))),
    "a gzip cut off": gzip.compress(idx(120, 28, 28, content=PIXELS))[:-9],
    "a gzip without its checksum": gzip.compress(idx(120, 28, 28, content=PIXELS))[:-8],
    "a gzip with rubbish behind": gzip.compress(idx(120, 28, 28, content=PIXELS)) + b"rubbish",
    "a gzip of two gigabytes": gzip.compress(idx(2**31 // 784, 28, 28)) + ZEROS * 32,
    "a gzip header": b"\x1f\x8b",
    "a zip": b"PK\x03\x04" + bytes(100),
}
LYING_LABELS = {
    "label 10": idx(120, content=bytes(119) + b"\x0a"),
    "label 255": idx(120, content=b"\xff" * 120),
    "fewer": idx(119, content=bytes(119)),
    "more": idx(121, content=bytes(121)),
    "none": idx(0),
    "2^32 - 1": idx(2**32 - 1, content=bytes(120)),
    "images": idx(120, 28, 28, content=PIXELS),
    "column": idx(120, 1, magic=b"\0\0\x08\x02", content=bytes(120)),
}


@pytest.mark.parametrize(("index", "kind"), [(0, kind) for kind in LYING_PICTURES] + [(1, kind) for kind in LYING_LABELS])  # fmt: skip
def test_idx_headers_that_lie(tmp_path, mnist_arrays, index, kind):
    content = (LYING_PICTURES, LYING_LABELS)[index][kind]
    write_mnist(tmp_path, mnist_arrays, {index: content})
    assert survive(lambda: load(tmp_path, "mnist"), MNIST_FILES[index])


def npy(array=None, shape=None, kind="|u1", order="False", content=None, version=1):
    """A `.npy` file; what is given takes the place of what `array` would have."""
    if shape is None and array is not None:
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()
    text = f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return (
        b"\x93NUMPY"
        + bytes((version, 0))
        + struct.pack("<H" if version == 1 else "<I", len(text))
        + text
        + (content or b"")
    )


def npz(arrays, method=zipfile.ZIP_STORED, changes=()):
    contents = {
        name: npy(array) for name, array in zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in (contents | dict(changes)).items():
            if content is not None:
                file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def pickled(value):
    return npy(shape="(120,)", kind="|O", content=pickle.dumps(value))


LYING_ARRAYS = {
    "missing": None,
    "empty": b"",
    "pickled": pickled(Calls(os.system, ("touch owned",))),
    "pickled array": npy(np.full((120, 28, 28), None)),
    "shape of 10^12": npy(shape="(1000000000000, 28, 28)", content=PIXELS),
    "shape of 2^64": npy(shape="(4294967296, 4294967296, 28)", content=PIXELS),
    "negative shape": npy(shape="(-1, 28, 28)", content=PIXELS),
    "shape of 0 and 2^62": npy(shape="(0, 4611686018427387904, 28)"),
    "shape of text": npy(shape="'abc'", content=PIXELS),
    "shape that calls": npy(shape="__import__('os').mkdir('owned')", content=PIXELS),
    "nested shape": npy(shape="(" * 3000 + ")" * 3000, content=PIXELS),
    "header of 100 kB": npy(shape="(120, 28, 28)" + " " * 50_000, content=PIXELS),
    "header beyond the end": b"\x93NUMPY\x02\0\xff\xff\xff\x7f{}",
    "version 9": npy(shape="(120, 28, 28)", content=PIXELS, version=9),
    "column-major": npy(shape="(120, 28, 28)", order="True", content=PIXELS),
    "floats": npy(np.zeros((120, 28, 28), np.float32)),
    "16 bits": npy(np.zeros((120, 28, 28), np.uint16)),
    "structures": npy(np.zeros((120, 28, 28), [("a", "u1")])),
    "other sizes": npy(np.zeros((120, 32, 32), np.uint8)),
    "too few": npy(np.zeros((119, 28, 28), np.uint8)),
    "one byte short": npy(shape="(120, 28, 28)", content=PIXELS[1:]),
    "one byte more": npy(shape="(120, 28, 28)", content=PIXELS + b"x"),
}


@pytest.mark.parametrize("kind", LYING_ARRAYS)
def test_arrays_that_lie(tmp_path, monkeypatch, mnist_arrays, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist.npz").write_bytes(npz(mnist_arrays, changes={"x_train": LYING_ARRAYS[kind]}))
    assert survive(lambda: load(tmp_path, "mnist"), "mnist.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.npz"]


@pytest.mark.parametrize("labels", [[10] * 120, [-1] * 120, [0.5] * 120, ["a"] * 120, [2**60] * 120, [0] * 121, [[0]] * 120])  # fmt: skip
def test_arrays_of_wrong_labels(tmp_path, mnist_arrays, labels):
    (tmp_path / "mnist.npz").write_bytes(npz(mnist_arrays, changes={"y_train": npy(np.array(labels))}))
    assert survive(lambda: load(tmp_path, "mnist"), "mnist.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_arrays_that_unpack_to_too_much(tmp_path, mnist_arrays, method):
    path = tmp_path / "mnist.npz"
    path.write_bytes(npz(mnist_arrays, method, {"x_train": npy(shape="(120, 28, 28)") + bytes(100 << 20)}))
    assert "unpacks to more" in survive(lambda: load(path, "mnist"), "mnist.npz")
    lying = path.read_bytes()
    size = struct.pack("<I", len(npy(shape="(120, 28, 28)")) + (100 << 20))
    assert lying.count(size) == 2  # in both headers: they may also say less than what comes
    path.write_bytes(lying.replace(size, struct.pack("<I", 1000)))
    assert survive(lambda: load(path, "mnist"), "mnist.npz")


# Images


def image_bytes(kind, size=(20, 30), mode="RGB", **options):
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def is_image(image):
    return image.shape == (32, 32, 3) and image.dtype == np.uint8


@cases(200)
@given(damages(), st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000"]))
def test_damaged_images(archive_folder, damage, kind):
    path = archive_folder / f"x.{kind.lower()}"
    path.write_bytes(damage(image_bytes(kind)))
    survive(lambda: read_image(path, (32, 32, 3)), path.name, is_image)


def declared(width, height):
    """A PNG that declares a size and holds nothing."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")  # fmt: skip


REFUSED = {
    "30,000 x 30,000": declared(30_000, 30_000),
    "2^31": declared(2**31 - 1, 2**31 - 1),
    "0 x 0": declared(0, 0),
    "huge bitmap": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1000, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "huge ppm": b"P6 30000 30000 255\n",
    "text": b"not an image",
    "empty": b"",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_images(tmp_path, capsys, kind):
    (tmp_path / "strange.png").write_bytes(REFUSED[kind])
    flags = ("--mode=predict", f"--runs_dir={tmp_path}/runs", f"--test_ckpt_path={small_model()}", "--images", tmp_path)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert run_main(capsys, "strange.png", *flags) == 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 400_000


def several(kind):
    frames = [PIL.Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (10, 200)]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    return buffer.getvalue()


def test_unusual_images_are_read_right(tmp_path):
    def read(name, content):
        (tmp_path / name).write_bytes(content)
        return read_image(tmp_path / name, (32, 32, 3))

    for kind in ("PNG", "WEBP", "TIFF", "GIF"):  # animated: the first image
        assert abs(read(f"animated.{kind}", several(kind)).astype(int) - 10).max() <= 1
    red = PIL.Image.new("RGB", (40, 40), (200, 30, 30))
    buffer = io.BytesIO()
    red.convert("CMYK").save(buffer, "JPEG", quality=95)
    assert abs(read("cmyk.jpg", buffer.getvalue()).astype(int) - (200, 30, 30)).max() < 25
    deep = PIL.Image.fromarray(np.full((5, 5), 0x8040, np.uint16))
    buffer = io.BytesIO()
    deep.save(buffer, "PNG")
    assert (read("16 bit.png", buffer.getvalue()) == 0x80).all()
    one = io.BytesIO()
    PIL.Image.new("RGB", (1, 1), (1, 2, 3)).save(one, "PNG")
    for name in ("1x1.png", "misnamed.jpg", "ünï-çødé 猫.png", "line\nbreak.png", "a" * 240 + ".png"):
        assert (read(name, one.getvalue()) == (1, 2, 3)).all()
    assert is_image(read("bits.png", image_bytes("PNG", mode="1"))) and is_image(read("p.png", image_bytes("PNG", mode="P")))  # fmt: skip
    assert is_image(read("la.png", image_bytes("PNG", mode="LA"))) and is_image(read("l.jpg", image_bytes("JPEG", mode="L")))  # fmt: skip


@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_images_that_are_no_files(tmp_path, capsys, kind):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "good.png").write_bytes(image_bytes("PNG"))
    place = folder / "strange.png"
    SPECIAL_FILES[kind](place)
    flags = ("--mode=predict", f"--runs_dir={tmp_path}/runs", f"--test_ckpt_path={small_model()}", "--images")
    assert run_main(capsys, "strange.png", *flags, place) == 2
    assert not (tmp_path / "runs").exists()
    assert main([*map(str, flags), str(folder)]) == 0  # what was not named itself is left out
    printed = capsys.readouterr()
    assert "left out: " in printed.err and "strange.png" in printed.err
    assert "good.png" in printed.out and "strange.png" not in printed.out


# Class folders


def class_folders(folder):
    """Two classes of four images."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            (folder / name / f"{number}.png").write_bytes(image_bytes("PNG"))
    return folder


def load_classes(folder, **changes):
    return load_images(FlowerParameters(data_dir=str(folder), image_size=32, test_fraction=0.0, **changes))


def is_loaded(classes, images):
    def is_right(found):
        return found.class_folders == classes and len(found.training) + len(found.validation) == images and all(
            is_image(found.training.read(index)) for index in range(len(found.training)))  # fmt: skip

    return is_right


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def cmyk():
    buffer = io.BytesIO()
    PIL.Image.new("CMYK", (40, 40), (10, 200, 30, 0)).save(buffer, "JPEG")
    return buffer.getvalue()


UNUSUAL = {
    "1x1.png": lambda: png(PIL.Image.new("RGB", (1, 1))),
    "cmyk.jpg": cmyk,
    "16 bit.png": lambda: png(PIL.Image.fromarray(np.full((5, 5), 0x8040, np.uint16))),
    "animated.png": lambda: several("WEBP"),
    "misnamed.jpg": lambda: image_bytes("PNG"),
    "ünï-çødé 猫.png": lambda: image_bytes("PNG"),
    "line\nbreak.png": lambda: image_bytes("PNG"),
    "no text \udcff.png": lambda: image_bytes("PNG"),
    "a" * 240 + ".png": lambda: image_bytes("PNG"),
    "-rf *; $(touch owned).PNG": lambda: image_bytes("PNG"),
}
UNREADABLE = {
    "empty": b"", "text": b"not an image", "svg": REFUSED["svg"], "declared": declared(30_000, 30_000),
    "cut": image_bytes("PNG")[:-100], "cut jpeg": image_bytes("JPEG", (200, 200))[:-300], "zip": b"PK\x03\x04" + bytes(50),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_images_among_classes(tmp_path, name):
    (class_folders(tmp_path / "data") / "b" / name).write_bytes(UNUSUAL[name]())
    assert survive(lambda: load_classes(tmp_path / "data"), "", is_loaded(("a", "b"), 9)) is None


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_images_among_classes(tmp_path, kind):
    folder = class_folders(tmp_path / "data")
    (folder / "b" / "strange.png").write_bytes(UNREADABLE[kind])
    assert survive(lambda: load_classes(folder), "strange.png")
    assert survive(lambda: load_classes(folder, on_bad_image="skip"), "", is_loaded(("a", "b"), 8)) is None


@pytest.mark.parametrize("kind", [*SPECIAL_FILES, "link to the parent"])
def test_things_among_the_images_that_are_none(tmp_path, kind):
    folder = class_folders(tmp_path / "data")
    SPECIAL_FILES.get(kind, lambda place: place.symlink_to(".."))(folder / "b" / "strange.jpg")
    assert survive(lambda: load_classes(folder), "strange.jpg")


@pytest.mark.parametrize("name", ["ünï-çødé 猫", "line\nbreak", "no text \udcff", "$x$", "c" * 250])
def test_odd_names_of_classes(tmp_path, name):
    folder = class_folders(tmp_path / "data")
    shutil.move(folder / "b", folder / name)
    assert survive(lambda: load_classes(folder), "", is_loaded(tuple(sorted(("a", name))), 8)) is None
    names = load_classes(folder).class_names
    run = RunFolder(tmp_path / "run")
    write_json(run.data, {"class_names": names})
    assert tuple(run.read_class_names()) == names
    figure = draw_grid([[np.zeros((8, 8, 3), np.uint8)]] * 2, names, "title")
    figure.savefig(io.BytesIO(), format="png")
    write_atomically(run.path / "table.csv", f"{names}\n" + "".join(names))


@pytest.mark.parametrize(
    "error", [zlib.error("invalid block"), NotImplementedError("that method"), RuntimeError("encrypted")]
)
def test_damaged_names_of_classes_are_one_line(tmp_path, monkeypatch, error):
    def read(path):
        raise error

    monkeypatch.setattr(class_names, "read_packed_names", read)
    with pytest.raises(UsageError, match=r"x\.keras is damaged \(.*\); give another file"):
        class_names.read_class_names(tmp_path / "x.keras", {"": 10})


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="all names are text there")
def test_tensorboard_writes_into_a_folder_whose_name_is_no_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    TensorBoardLog(folder, None, None)
    assert event_sizes(folder)


def test_odd_folders(tmp_path):
    def fresh(name):
        return class_folders(tmp_path / name)

    both = is_loaded(("a", "b"), 8)
    empty = fresh("empty")
    (empty / "nothing").mkdir()
    (empty / ".hidden").mkdir()
    (empty / "notes.txt").write_text("no class")
    assert survive(lambda: load_classes(empty), "", both) is None
    nested = fresh("nested")
    (nested / "c" / "deeper").mkdir(parents=True)
    assert survive(lambda: load_classes(nested), "", both) is None
    outer = tmp_path / "outer"
    fresh("outer/inner")
    assert survive(lambda: load_classes(outer), "", both) is None
    up = fresh("up")
    (up / "around").symlink_to("..")
    assert survive(lambda: load_classes(up), "up/around")
    loop = fresh("loop")
    (loop / "c").symlink_to("c")
    assert survive(lambda: load_classes(loop), "loop")
    twice = fresh("twice")
    (twice / "c").symlink_to("b")
    assert survive(lambda: load_classes(twice), "", is_loaded(("a", "b", "c"), 12)) is None
    for part in ("train", "valid"):
        parts = tmp_path / f"file {part}"
        fresh(f"file {part}/train"), fresh(f"file {part}/valid")
        shutil.rmtree(parts / part)
        (parts / part).write_text("a file where a folder is expected")
        message = survive(lambda parts=parts: load_classes(parts), "", is_loaded(("a", "b"), 8))
        assert message is None or parts.name in message
    lonely = tmp_path / "lonely"
    lonely.write_text("a file")
    for place in (lonely, tmp_path / "nowhere", ""):
        assert survive(lambda place=place: load_classes(place), "--data_dir")


def test_folders_that_may_not_be_read(tmp_path, monkeypatch):
    """As root everything may be read, so the refusal is made."""
    folder = class_folders(tmp_path / "data")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "Permission denied" in survive(lambda: load_classes(folder), "data/b")


def test_class_folders_of_the_command_line(tmp_path, capsys):
    folder = class_folders(tmp_path / "data")
    (folder / "b" / "line\nbreak \udcff.png").write_bytes(b"")
    code = flowers.train.main([f"--data_dir={folder}", f"--runs_dir={tmp_path}/runs", "--weights=none"])
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1 and error.startswith("error: 1 image(s)") and "break" in error
    assert not (tmp_path / "runs").exists()


# Weights


@functools.cache
def small_model():
    """A tiny saved model, made once."""
    path = Path(tempfile.mkdtemp()) / "small.keras"
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x)).save(path)
    return path


@cases(60)
@given(damages())
def test_damaged_keras_files(archive_folder, damage):
    path = archive_folder / "model.keras"
    path.write_bytes(damage(small_model().read_bytes()))
    survive(lambda: load_model(str(path)), path.name, lambda model: model.output_shape == (None, 10))


@cases(100)
@given(damages())
def test_damaged_checkpoints(archive_folder, damage):
    path = archive_folder / "step-00000001.npz"
    row = dict.fromkeys(("step", "epoch", "train_error", "train_error_smoothed", "train_loss", "validation_loss",
                         "validation_error", "learning_rate", "examples_per_sec", "seconds"), 1.0)  # fmt: skip
    facts = {"step": 1, "history": [row], "interval": {"images": 0, "wrong": 0, "loss": 0, "seconds": 0}, "seconds": 1.5, "net": {}}  # fmt: skip
    array = np.arange(50, dtype=np.float32)
    write_checkpoint(path, {"net/a": array}, facts)
    path.write_bytes(damage(path.read_bytes()))
    survive(
        lambda: read_checkpoint(path), path.name, lambda read: (read[0]["net/a"] == array).all() and read[1] == facts
    )
    survive(lambda: check_checkpoint(path), path.name, lambda checked: checked == facts)


def rewritten(tmp_path, change, name="config.json"):
    """`small_model` with the JSON of one member changed."""
    path = tmp_path / "strange.keras"
    with zipfile.ZipFile(small_model()) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            new.writestr(member, change(content.decode()) if member == name else content)
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"GlobalAveragePooling2D"', '"Lambda"'),
        ('"module": "keras.layers", "class_name": "Dense"', '"module": "os", "class_name": "system"'),
        ('"module": "keras.layers", "class_name": "Dense"', '"module": "resnet_study.run_folder", "class_name": "RunFolder"'),
        ('"module": "keras.layers", "class_name": "Dense"', '"module": "keras.utils", "class_name": "get_file"'),
        ('"module": "keras.layers", "class_name": "Dense"', '"module": "keras.src.utils.file_utils", "class_name": "get_file"'),
        ('"units": 10', '"units": -1'),
        ('"units": 10', '"units": "many"'),
        ('"units": 10', '"units": 11'),
        ("null, 32, 32, 3", "null, null, null, 3"),
        ("null, 32, 32, 3", "null, 32, 32, 7"),
        ("null, 32, 32, 3", "null, 100000, 100000, 3"),
        ('"softmax"', '"no_such_function"'),
        ("{", "[" * 100_000),
    ],
)  # fmt: skip
def test_keras_files_from_strangers(tmp_path, monkeypatch, old, new):
    monkeypatch.chdir(tmp_path)
    path = rewritten(tmp_path, lambda text: text.replace(old, new))
    assert path.read_bytes() != small_model().read_bytes()
    assert survive(lambda: load_model(str(path)), path.name)
    assert list(tmp_path.iterdir()) == [path]


def test_a_lambda_is_refused(tmp_path):
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Lambda(lambda x: x)(inputs)
    keras.Model(inputs, keras.layers.Dense(10)(keras.layers.Flatten()(x))).save(tmp_path / "lambda.keras")
    assert "lambda" in survive(lambda: load_model(str(tmp_path / "lambda.keras")), "lambda.keras").lower()


def test_archives_that_fill_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_models, "_LARGEST_MODEL", 100 << 20)
    for name in ("bomb.keras", "step-00000001.npz"):
        with (
            zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as file,
            file.open("config.json", "w") as member,
        ):
            block = bytes(16 << 20)
            for _ in range(10):
                member.write(block)
        assert "unpacks" in survive(lambda name=name: load_model(str(tmp_path / name)), name)


@pytest.mark.parametrize("name", ["model.weights.h5", "model.h5", "model.pkl", "model.pt", "model"])
def test_other_formats_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "expected a .keras file" in survive(lambda: load_model(str(tmp_path / name)), name)


def test_pixels_and_weights_that_are_no_numbers(tmp_path):
    model = load_model(str(small_model()))
    for bad in (np.nan, np.inf, -np.inf):
        images = np.zeros((2, 32, 32, 3), np.float32)
        images[1, 3, 4, 2] = bad
        assert survive(lambda images=images: cifar10_test.test(model, images), "images")
    for images in (["a"], [None], [[1], [1, 2]], np.zeros((1, 32, 32, 3), complex), np.zeros((1, 32, 32, 3), object)):
        assert survive(lambda images=images: cifar10_test.test(model, images), "images")
    model.layers[-1].kernel.assign(np.full((3, 10), np.nan))
    assert survive(lambda: cifar10_test.test(model, np.zeros((1, 32, 32, 3))), model.name)


# Run folders


@cases(150)
@given(damages(), st.sampled_from(["config", "data", "environment", "result", "error_csv", "predictions"]))
def test_damaged_files_of_a_run(trained_run, damage, kind):
    path = getattr(trained_run, kind)
    good = path.read_bytes()
    read = {
        "config": lambda: trained_run.read_config(HyperParameters),
        "data": trained_run.read_class_names,
        "environment": lambda: read_json(path, [dict]),
        "result": lambda: read_result(trained_run),
        "error_csv": trained_run.read_history,
        "predictions": lambda: trained_run.read_predictions((40, 10)),
    }
    try:
        path.write_bytes(damage(good))
        survive(read[kind], path.name)
    finally:
        path.write_bytes(good)


WRONG = [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"seed": 1e999}', b"step\n1\n"]


@pytest.mark.parametrize("content", WRONG)
@pytest.mark.parametrize("kind", ["config", "data", "result", "error_csv", "environment", "predictions"])
def test_commands_on_damaged_runs(trained_run, tmp_path, capsys, kind, content):
    run = RunFolder(tmp_path / "done")
    shutil.copytree(trained_run.path, run.path)
    path = getattr(run, kind)
    path.write_bytes(content)
    outside = set(tmp_path.iterdir())
    flags = (f"--runs_dir={tmp_path}", "--version=done")
    # Settings that are missing have their defaults, and a run of other settings lacks other things.
    named = path.name if (kind, content) != ("config", b"{}") else ""
    code = run_main(capsys, named, "--mode=publish", *flags, f"--results_dir={tmp_path / 'done' / 'results'}")
    assert code == 2 or kind in ("data", "predictions") or (kind, content) == ("config", b"{}")
    if content == b"null":  # the slow commands, once for each file that they read
        (tmp_path / "x.png").write_bytes(image_bytes("PNG"))
        outside.add(tmp_path / "x.png")
        if kind in ("config", "data"):
            assert run_main(capsys, path.name, "--mode=predict", *flags, "--images", tmp_path / "x.png") == 2
        if kind in ("config", "data", "error_csv"):
            assert run_main(capsys, path.name, "--mode=test", *flags) == 2
        if kind in ("config", "environment"):
            assert run_main(capsys, path.name, "--mode=train", "--resume", *flags) == 2
    assert set(tmp_path.iterdir()) == outside


def test_settings_from_strangers_do_not_say_where_to_write(undrawn, trained_run, tmp_path, capsys):
    run = RunFolder(tmp_path / "runs" / "done")
    shutil.copytree(trained_run.path, run.path)
    settings = json.loads(run.config.read_text()) | {"runs_dir": str(tmp_path / "elsewhere"), "version": "other"}
    run.config.write_text(json.dumps(settings))
    assert run_main(capsys, "", "--mode=test", f"--runs_dir={tmp_path}/runs", "--version=done") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--data_dir=~nobody-here/x", "--data_dir must be a path"),
        ("--data_dir=" + "a" * 5000, "File name too long"),
        ("--data_dir=a\0b", "--data_dir must be text without NUL characters"),
        ("--version=" + "v" * 300, "--version must have at most 255 bytes, received 300"),
        ("--version=..", "--version must be a plain folder name"),
        ("--class_weight=~nobody-here/w.json", "--class_weight must be a path"),
        ("--runs_dir=/dev/null/x", "/dev/null must be a folder to write to"),
        ("--train_steps=" + "9" * 4000, "--train_steps must be below"),
        ("--seed=-1", "--seed must be at least 0, received -1"),
    ],
)
def test_odd_flags(tmp_path, monkeypatch, capsys, flag, words):
    monkeypatch.chdir(tmp_path)
    dataset = "cifar10" if "data_dir" in flag else "synthetic"
    assert run_main(capsys, words, "--mode=train", f"--dataset={dataset}", flag) == 2
    assert list(tmp_path.iterdir()) == []


# Files of other programs


def write_onnx(path, inputs, outputs):
    """An ONNX file that means the pixels, of these shapes."""
    import onnx
    from onnx import TensorProto, helper

    given = [helper.make_tensor_value_info("image", TensorProto.FLOAT, inputs)]
    made = [helper.make_tensor_value_info("answer", TensorProto.FLOAT, outputs)]
    node = helper.make_node("ReduceMean", ["image"], ["answer"], axes=[1, 2], keepdims=int(len(outputs) == len(inputs)))
    model = helper.make_model(helper.make_graph([node], "g", given, made), opset_imports=[helper.make_opsetid("", 15)])
    model.ir_version = 8
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(["b", "h", "w", 3], ["b", 3]), (["b", 3, 32, 32], ["b", 32]), (["b", 32, 32, 3], ["b", 1, 1, 3]), (["b", 5000, 5000, 3], ["b", 3])],
)  # fmt: skip
def test_onnx_files_of_wrong_shapes(tmp_path, inputs, outputs):
    write_onnx(tmp_path / "strange.onnx", inputs, outputs)
    assert "must" in survive(lambda: open_model(str(tmp_path / "strange.onnx")), "strange.onnx")


def test_model_files_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(exported_model, "_LARGEST", 10)
    for name in ("model.onnx", "model.tflite"):
        (tmp_path / name).write_bytes(bytes(11))
        assert "too large" in survive(lambda name=name: open_model(str(tmp_path / name)), name)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["WriteFile", "DebugIdentity", "DatasetFromGraph"])
def test_a_saved_model_that_writes_files_is_refused(tmp_path, operation):
    import tensorflow as tf

    module, victim = tf.Module(), tmp_path / "victim"

    @tf.function(input_signature=[tf.TensorSpec((None, 32, 32, 3), tf.uint8, name="image")])
    def serve(image):
        probabilities = tf.reduce_mean(tf.cast(image, tf.float32), (1, 2))
        if operation == "WriteFile":
            tf.io.write_file(str(victim), "x")
        elif operation == "DebugIdentity":
            place = {"tensor_name": "image", "debug_urls": [f"file://{victim}"]}
            probabilities = tf.raw_ops.DebugIdentity(input=probabilities, **place)
        else:
            there = tf.raw_ops.DatasetFromGraph(graph_def="")
            with tf.control_dependencies([there]):
                probabilities = tf.identity(probabilities)
        return {"probabilities": probabilities}

    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"serving_default": serve})
    assert operation in survive(lambda: open_model(str(tmp_path / "model")), "model")
    assert not victim.exists()
