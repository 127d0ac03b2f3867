"""Oxford 102 Flowers (Nilsback and Zisserman 2008) in parts that fit the flower text: fetched once, then folders like any other.

The Visual Geometry Group publishes the images as one archive, with the label of each. The parts are not those it publishes but those of a widely used copy,
whose folders the text names: 6,552 training, 818 validation and 819 test images. The text prints no counts. Their numbers stand in `oxford102.json`; what is in neither list is training.
"""

import gzip
import io
import json
import re
import shutil
import tarfile
import zlib
from pathlib import Path

import filelock
import numpy as np

from resnet_study.data.download import fetch_large, keras_cache
from resnet_study.errors import UsageError, one_line
from resnet_study.files import move, read_json

_SITE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_MD5 = {"102flowers.tgz": "52808999861908f626f3c1f4e79d11fa", "imagelabels.mat": "e0620be6f572b9609742df49c70aed4d"}
_IMAGES = 8189
_LARGEST_IMAGE = 16 << 20  # bytes
_TABLE = Path(__file__).with_name("oxford102.json")
_WAYS_OUT = (
    "connect to a network, give --data_dir=FOLDER with images of your own, or use what needs no network: --dataset=digits "
    "--model=resnet20"
)


def fetch_flowers() -> Path:
    """Downloads the data set into Keras' cache, if it is not there, and sorts the images into folders.

    Returns:
        The folder, with train/<class>/, valid/<class>/ and test/<class>/, classes "1" to "102", and `cat_to_name.json`.

    Raises:
        UsageError: it cannot be fetched or written; the message names the ways out.
    """
    cache = keras_cache()
    folder = cache / "oxford102"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache / ".oxford102.lock"):
            if not folder.is_dir():
                there = {name for name in _MD5 if (cache / name).is_file()}  # which somebody else brought
                archive, labels = (fetch_large(_SITE + name, md5, cache, _WAYS_OUT) for name, md5 in _MD5.items())
                aside = cache / ".incomplete-oxford102"
                shutil.rmtree(aside, ignore_errors=True)
                _sort_images(archive, _read_labels(labels), aside)
                move(aside, folder)
                if archive.name not in there:
                    archive.unlink()
    except OSError as error:
        raise UsageError(f"{cache} cannot be written to ({error.strerror or error}); give --data_dir=FOLDER") from error
    return folder


def _read_labels(path: Path) -> np.ndarray:
    """The label of each image, 1..102, int [images]."""
    import scipy.io

    try:
        labels = np.ravel(scipy.io.loadmat(io.BytesIO(path.read_bytes()))["labels"]).astype(int)
    except Exception as error:  # what is damaged can raise nearly anything
        raise UsageError(f"{path} is damaged ({one_line(error)}); delete it") from error
    if len(labels) != _IMAGES or labels.min() < 1 or labels.max() > 102:
        raise UsageError(f"{path} must hold {_IMAGES:,} labels 1..102, received others; delete it")
    return labels


def _sort_images(archive: Path, labels: np.ndarray, folder: Path) -> None:
    """Writes the images of the archive into folders of our own making: no path of the archive is used, only the numbers."""
    table = read_json(_TABLE, {"names": dict, "validation": [int], "test": [int]})
    part = dict.fromkeys(table["validation"], "valid") | dict.fromkeys(table["test"], "test")
    found = set()
    try:
        with gzip.open(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
            for member in tar:
                named = re.fullmatch(r"(?:\./)?jpg/image_(\d{5})\.jpg", member.name)
                number = int(named[1]) if named else 0
                if not (member.isreg() and 1 <= number <= len(labels) and member.size <= _LARGEST_IMAGE):
                    continue
                place = folder / part.get(number, "train") / str(labels[number - 1]) / f"image_{number:05d}.jpg"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(tar.extractfile(member).read())
                found.add(number)
            while unpacked.read(1 << 20):  # gzip's checksum comes last
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{archive} is damaged ({one_line(error)}); delete it") from error
    if len(found) < len(labels):
        raise UsageError(f"{archive} must hold {len(labels):,} images, received {len(found):,}; delete it")
    (folder / "cat_to_name.json").write_text(json.dumps(table["names"]), encoding="utf-8")
