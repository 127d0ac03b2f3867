"""From a trained network to files that compute without this library: written aside, checked by their own runtimes, then moved into place.

The folder of each file holds the file, `labels.txt`, `class_names.json` and `model.json`:

    source, source_sha256   the file it was made of, or "cifar10" for the shipped weights; model: name of the network
    format, quantization    see `formats`
    file, bytes, sha256     the file and its size; of a SavedModel the folder, and the sha256 of each file in it
    input, outputs          type, shape and channels (RGB or grey) of the pixels 0..255; {name of the output: number of classes}
    class_names             {name of the head: names}; a single head is called ""
    calibration             of int8: the images that the ranges of the activations were found on
    parity                  images: on how many it was compared with its source, and which; same_class: on what share of them both
                            name the same class; largest_difference: of the probabilities; runtime: what computed it
    error, source_error     in % on these images, where their classes are known; of several heads that of the first
"""

import contextlib
import dataclasses
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from resnet_study.class_names import CLASS_NAMES, THRESHOLD, ClassNames
from resnet_study.data import streams
from resnet_study.errors import UsageError, advise
from resnet_study.evaluation import find_file
from resnet_study.exporting.exported_model import ExportedModel, check_installed
from resnet_study.exporting.formats import ENDINGS, Writer, check_quantization
from resnet_study.exporting.plain_keras import make_plain
from resnet_study.files import ASIDE, aside_of, hash_file, is_being_written, move, read_json, write_json
from resnet_study.predict_files import list_images
from resnet_study.predictor import Predictor
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import by_head, find_heads
from resnet_study.strings import shorten

_LARGEST_DIFFERENCE = 1e-4  # of probabilities, where nothing is rounded
_SAME_CLASS = {"float16": 0.99, "dynamic": 0.95, "int8": 0.95}  # smallest share
# Of more, the rarest values widen the ranges: with all layers in 8 bits, 500 changed 1.6 % of the answers of a pre-activation ResNet-20, 100 1.2 %.
CALIBRATION_IMAGES = 100


@dataclasses.dataclass(frozen=True)
class RealImages:
    """Images that files are checked and calibrated with.

    Attributes:
        images: uint8 [n, height, width, channels], on which each file is compared with its source.
        labels: of the first head, int [n], of several labels 0 and 1, int [n, classes]; None = not known.
        found: what they are, such as "1,000 test images of cifar10".
        training: function without arguments that gives the same three of training images, for calibration.
    """

    images: np.ndarray
    labels: np.ndarray | None
    found: str
    training: Callable[[], tuple[np.ndarray, np.ndarray, str]]


def choose_images(count: int, most: int, seed: int) -> np.ndarray:
    """Sorted numbers of at most `most` of `count` images, the same for the same seed: files often lie class by class."""
    return np.sort(np.random.default_rng((seed, streams.CHECKED_IMAGES)).choice(count, min(count, most), replace=False))


def read_given(paths, read, shape, most: int, seed: int) -> np.ndarray:
    """Image files to check with, at most `most`, drawn by the seed; those that cannot be read are named and left out.

    Args:
        paths: image files or folders.
        read: function of (file, shape).
        shape: (height, width, channels).

    Returns:
        uint8 [n, height, width, channels].

    Raises:
        UsageError: none of them can be read.
    """
    files, images = list_images(paths).files, []
    for index in choose_images(len(files), most, seed):
        try:
            images.append(read(files[index], shape))
        except UsageError as error:
            if len(files) == 1:
                raise
            print(f"left out: {error}")
    if not images:
        raise UsageError(f"none of the {len(files):,} files of --images can be read; give others")
    return np.array(images, np.uint8)


def check_formats(formats, quantize: str) -> None:
    """Raises UsageError where a format is unknown, has no such quantization, or needs a package that is not installed."""
    for kind in formats:
        check_quantization(kind, quantize)
        check_installed(kind, writes=True)


def export(
    path: str,
    run: RunFolder,
    model: keras.Model,
    real: RealImages,
    formats,
    quantize: str = "none",
    pixels: str = "uint8",
    *,
    class_names: ClassNames,
    batch_size: int = 128,
) -> list[dict]:
    """Writes a network in some formats, each in a folder of its own, such as `exported/onnx-int8/` in the folder of the run.

    An older file of the same kind is replaced; but where a file fails its check, the older one is left and nothing is written.

    Args:
        path, run: of `evaluation.find_model`; the files have the name of the folder.
        model: what `saved_models.load_model` made of `path`.
        real: images to check the files with.
        formats: keys of `formats.QUANTIZATIONS`.
        quantize: see `formats`.
        pixels: "uint8" or "float32", what the files take.
        class_names: what the files tell of the classes, and of how images are read.
        batch_size: images that the network answers for at a time.

    Returns:
        For each format the content of its `model.json`, with "path", that of the file.

    Raises:
        UsageError: a format has no such quantization, a package is missing, the network cannot be written in stock layers, or a file
            does not answer as its source.
    """
    check_formats(formats, quantize)
    try:
        plain = make_plain(model)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} cannot be exported ({shorten(str(error))}); give another model") from error
    training = functools.cache(real.training)
    writer = Writer(
        plain,
        run.path.name if path == str(run.best) else run.path.name.removeprefix("test-"),
        class_names,
        pixels,
        lambda: training()[0],
    )
    expected = by_head(Predictor(model).predict(real.images, batch_size))
    made = []
    for kind in formats:
        place = run.path / "exported" / (kind if quantize == "none" else f"{kind}-{quantize}")
        _check_replaced(place)
        with _folder_aside(place) as aside:
            file = writer.write(kind, quantize, aside)
            facts = describe_source(path, model) | {"format": kind, "quantization": quantize} | _describe_file(file)
            channels = "grey" if model.input_shape[-1] == 1 else "RGB"
            shape = list(model.input_shape)
            facts["input"] = {"pixels": "any" if kind == "keras" else pixels, "shape": shape, "channels": channels}
            facts["outputs"] = {head or "probabilities": size for head, size in find_heads(model).items()}
            facts["class_names"] = class_names
            if quantize == "int8":
                facts["calibration"] = training()[2]
            exported = ExportedModel(str(file), kind)
            try:
                received = by_head(Predictor(exported).predict(real.images))
            finally:
                exported.close()
            if exported.class_names != class_names:
                raise UsageError(f"the {kind} file tells other classes than {path}; it was not kept")
            facts |= _compare(
                f"the file for {kind}, quantization {quantize},",
                path,
                quantize,
                real,
                expected,
                received,
                class_names.multi_label,
            )
            facts["parity"]["runtime"] = exported.runtime
            write_json(aside / "model.json", facts)
        made.append(facts | {"path": str(place / file.name)})
    return made


def describe_source(path: str, model: keras.Model) -> dict:
    """What a network was loaded from: source, source_sha256 of the file and model, see the head."""
    place = find_file(path, model)
    return {"source": path, "source_sha256": hash_file(place) if place.is_file() else None, "model": model.name}


def is_as_described(facts: dict) -> bool:
    """Whether the file of what `export` returned is still where and what it was."""
    path = Path(facts.get("path", ""))
    return path.name != "" and path.exists() and _describe_file(path)["sha256"] == facts.get("sha256")


def _describe_file(path):
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    sums = {file.relative_to(path.parent).as_posix(): hash_file(file) for file in files}
    size = sum(file.stat().st_size for file in files)
    return {"file": path.name, "bytes": size, "sha256": sums if path.is_dir() else sums[path.name]}


def _compare(named, path, quantize, real, expected, received, multi_label):
    """How well a file answers as its source. Raises UsageError where it does not."""

    def decide(answers):
        return answers >= THRESHOLD if multi_label else answers.argmax(1)[:, None]

    difference = max(float(np.abs(received[head] - expected[head]).max()) for head in expected)
    same = min(float(np.mean((decide(received[head]) == decide(expected[head])).all(1))) for head in expected)
    if quantize == "none" and not difference <= _LARGEST_DIFFERENCE:
        raise UsageError(
            f"{named} must answer as {path} within {_LARGEST_DIFFERENCE:g}, received probabilities that are {difference:.2g} apart; it was "
            "not kept"
        )
    if quantize != "none" and not same >= _SAME_CLASS[quantize]:
        raise UsageError(
            f"{named} must name the class that {path} names for {_SAME_CLASS[quantize]:.0%} of the images, received {same:.1%} of "
            f"{real.found}; it was not kept, give another --quantize"
        )
    facts = {
        "parity": {
            "images": len(real.images),
            "found": real.found,
            "same_class": same,
            "largest_difference": difference,
        }
    }
    if real.labels is not None:
        head = next(iter(expected))
        truth = real.labels.reshape(len(real.images), -1)
        for name, answers in (("error", received), ("source_error", expected)):
            facts[name] = round(100 * float(np.mean((decide(answers[head]) != truth).any(1))), 6)
    return facts


def _check_replaced(place):
    """Raises UsageError where the folder of an earlier export, which a new one replaces, holds more than that has written."""
    facts = place / "model.json"
    if not place.is_dir():
        return
    known = {"model.json", CLASS_NAMES, ".DS_Store", "Thumbs.db", "desktop.ini"}
    try:
        known.add(read_json(facts, {})["file"])
    except (UsageError, KeyError):  # it is damaged, and replaced; earlier versions wrote none
        endings = tuple(filter(None, ENDINGS.values()))
        known |= {
            entry.name for entry in place.iterdir() if entry.suffix in endings or (entry / "saved_model.pb").is_file()
        }
    names = sorted(entry.name for entry in place.iterdir())
    if foreign := [name for name in names if name not in known and not re.match(r"labels(_.*)?\.txt$|\._", name)]:
        raise UsageError(f"{place} holds {foreign[0]}, which no export has written; move it away")


def _put_back(place: Path) -> None:
    """Gives the older files their place again where an export was killed between two moves."""
    left = [old for old in place.parent.glob(f"{ASIDE}*-old-{place.name}") if not is_being_written(old)]
    if left and not place.exists():
        left[0].rename(place)


@contextlib.contextmanager
def _folder_aside(place: Path):
    """Gives a new folder beside `place`, and moves it there when all went well; else it goes, and the old one stays."""
    aside, old = aside_of(place), aside_of(place, "-old")
    try:
        _put_back(place)
        for folder in (aside, old):  # of a process of the same number that was killed
            shutil.rmtree(folder, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if place.exists():
            move(place, old)
        move(aside, place)
    except OSError as error:
        raise UsageError(f"could not write {place} ({error.strerror or error}); {advise(error)}") from error
    finally:
        if old.exists() and not place.exists():  # also where it was interrupted
            old.rename(place)
        for folder in (aside, old):
            shutil.rmtree(folder, ignore_errors=True)
