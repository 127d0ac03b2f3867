"""The data set of the flower text: fetched from a server of our own, with archives of the published layout."""

import hashlib
import http.server
import io
import tarfile
import threading
import time

import numpy as np
import PIL.Image
import pytest
import scipy.io

import flowers.evaluate
import flowers.train
import flowers.transfer
from flowers import data, oxford102
from flowers.settings import FlowerParameters
from resnet_study.data import download
from resnet_study.errors import UsageError
from resnet_study.run_folder import RunFolder
from resnet_study.serving.neighbours import find_training_images

LABELS = np.tile([1, 2, 10], 20).astype(np.uint8)  # of the images 1..60


def archive_bytes():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for number, label in enumerate(LABELS, start=1):
            image = io.BytesIO()
            noise = np.random.default_rng(number).integers(0, 80, (40, 40, 3)) + 15 * int(label)
            PIL.Image.fromarray(noise.astype(np.uint8)).save(image, "JPEG")
            add(tar, f"jpg/image_{number:05d}.jpg", image.getvalue())
        for name in ("../image_00001.jpg", "/tmp/image_00002.jpg", "jpg/../../image_00003.jpg", "jpg/image_00099.jpg"):
            add(tar, name, b"of a stranger")
        link = tarfile.TarInfo("jpg/image_00004.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of the two files; `cuts` says how many answers break off after so many bytes; `asked` notes each request."""
    labels = io.BytesIO()
    scipy.io.savemat(labels, {"labels": LABELS[None]})
    files = {"102flowers.tgz": archive_bytes(), "imagelabels.mat": labels.getvalue()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            content = files[self.path.rsplit("/", 1)[-1]]
            wanted = self.headers.get("Range", "")
            self.server.asked.append((self.path.rsplit("/", 1)[-1], wanted))
            start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = start + self.server.cuts.pop(0) if self.server.cuts else len(content)
            self.wfile.write(content[start:end])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.cuts, server.asked, server.files = [], [], files
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(oxford102, "_SITE", f"http://127.0.0.1:{server.server_port}/102/")
    monkeypatch.setattr(oxford102, "_MD5", {name: hashlib.md5(content).hexdigest() for name, content in files.items()})
    monkeypatch.setattr(oxford102, "_IMAGES", len(LABELS))
    monkeypatch.setattr(download, "_WAITS", (0, 0))
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_that_breaks_off_is_gone_on_with(site, tmp_path):
    site.cuts = [2000, 1000, 500]
    with pytest.raises(
        UsageError,
        match=r"102flowers\.tgz broke off .*; the same command goes on with it; or connect .*--dataset=digits",
    ):
        oxford102.fetch_flowers()
    folder = oxford102.fetch_flowers()
    assert [wanted for name, wanted in site.asked if name == "102flowers.tgz"] == [
        "",
        "bytes=2000-",
        "bytes=3000-",
        "bytes=3500-",
    ]
    images = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    assert len(images) == 60 and all(not path.is_symlink() for path in folder.rglob("*"))
    assert {image.split("/")[0] for image in images} == {
        "train",
        "valid",
        "test",
    } and "train/2/image_00002.jpg" in images
    assert not list(tmp_path.rglob("*stranger*")) and b"of a stranger" not in b"".join(
        path.read_bytes() for path in folder.rglob("*.jpg")
    )
    asked = len(site.asked)
    assert oxford102.fetch_flowers() == folder and len(site.asked) == asked
    found = data.load_images(FlowerParameters(dataset="oxford102", image_size=32, classes=2))
    assert found.class_names == ("pink primrose", "hard-leaved pocket orchid") and found.test is not None
    # What is named is read, wherever it lies, and nothing else.
    moved = folder.rename(tmp_path / "moved")
    config = FlowerParameters(dataset="oxford102", image_size=32, classes=2)
    labels, _, names = find_training_images(config, None, str(moved))
    assert names == found.class_names and len(labels) == len(found.training) and not folder.exists()


def test_the_table_has_the_parts_of_the_text():
    table = oxford102.read_json(oxford102._TABLE, {"names": dict, "validation": [int], "test": [int]})
    validation, test = set(table["validation"]), set(table["test"])
    assert (len(validation), len(test), 8189 - len(validation | test)) == (818, 819, 6552)
    assert validation | test <= set(range(1, 8190)) and sorted(map(int, table["names"])) == list(range(1, 103))


@pytest.mark.parametrize("name", ["102flowers.tgz", "imagelabels.mat"])
def test_damaged_files_are_refused(site, name):
    site.files[name] = site.files[name][:-1] + b"?"
    with pytest.raises(UsageError, match=r"must have the checksum .*; try again, or connect"):
        oxford102.fetch_flowers()


@pytest.mark.parametrize("damage", ["the packed bytes", "the checksum at the end"])
def test_an_archive_that_is_damaged_inside_is_named(tmp_path, damage):
    path = tmp_path / "102flowers.tgz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("jpg/image_00001.jpg")
        info.size = 20_000
        tar.addfile(info, io.BytesIO(np.random.default_rng(0).integers(0, 9, info.size, np.uint8).tobytes()))
    content = bytearray(path.read_bytes())
    if damage == "the checksum at the end":
        content[-8] ^= 255
    else:
        content[4_000:5_000] = b"\xff" * 1_000
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"102flowers\.tgz is damaged \(.*\); delete it"):
        oxford102._sort_images(path, np.ones(1, int), tmp_path / "sorted")


def test_without_arguments_it_is_the_experiment_of_the_text(site, tmp_path, monkeypatch, capsys):
    """All but the ImageNet weights, which need a network of their own: their lack is told before anything is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flowers.backbone_weights._WEIGHTS_SITE", "http://127.0.0.1:9/")
    assert flowers.train.main(["--classes=3"]) == 2
    told = capsys.readouterr()
    assert "images: Oxford 102 Flowers, 3 classes, in the parts of the flower text" in told.out
    assert "--weights=FILE, --weights=RUN or --weights=none" in told.err and not (tmp_path / "runs").exists()


def test_without_a_network_it_ends_soon_and_names_the_ways(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(oxford102, "_SITE", "http://192.0.2.1/")  # an address that never answers
    monkeypatch.setattr(download, "_SECONDS_TO_CONNECT", 1)
    started = time.monotonic()
    assert flowers.train.main([]) == 2
    assert time.monotonic() - started < 10
    (error,) = capsys.readouterr().err.strip().splitlines()
    for way in ("--data_dir=FOLDER", "--dataset=digits --model=resnet20"):
        assert way in error


def test_a_run_on_the_flowers_goes_on_and_is_tested_without_flags(tmp_path, monkeypatch):
    config = FlowerParameters(dataset="oxford102", classes=20, runs_dir=str(tmp_path))
    run = RunFolder(f"{tmp_path}/{config.run_name}")
    with run.locked():
        run.begin(config, resume=False, overwrite=False)
    trained = []
    monkeypatch.setattr(flowers.transfer, "train", lambda config, **_: trained.append(config))
    monkeypatch.setattr(flowers.evaluate, "report", lambda _: None)
    assert flowers.train.main(["--resume", f"--runs_dir={tmp_path}"]) == 0
    assert flowers.train.main([f"--runs_dir={tmp_path}"]) == 0
    assert [(each.dataset, each.classes) for each in trained] == [("oxford102", 20), ("oxford102", 10)]
    assert flowers.evaluate.stored_settings({"runs_dir": str(tmp_path)}).classes == 20
