"""What a model says of any number of image files: a few in memory at a time, written as it goes, and gone on with after a kill.

list_images(paths)      files, and those of folders and archives with all that is within
predict_files(...)      probabilities of each -> predictions.csv, probabilities.csv, probabilities.npy

    predictions.csv     image, perhaps the class that its folder is named like, and the three most likely classes; of a model of several
                        labels, before these, all classes with a probability of `THRESHOLD` or more
    probabilities.csv   image and the probability of every class
    probabilities.npy   the same, float32 [images, classes], a row for each row of the tables; of several heads probabilities-<head>.npy

While it goes, `predictions.part-<key>.csv` holds what is done; the key stands for model, settings and files. Where the names are taken
by other predictions, `predictions-2.csv` and its companions are written, and so on.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import glob
import hashlib
import io
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from resnet_study.class_names import THRESHOLD, labels_by_name
from resnet_study.data.file_tree import list_tree
from resnet_study.data.image_files import IMAGE_SUFFIXES
from resnet_study.environment import count_cores
from resnet_study.errors import UsageError, say_once
from resnet_study.evaluation import find_class_names, make_reader
from resnet_study.exporting.exported_model import ExportedModel
from resnet_study.files import holding_lock, move, write_array, write_atomically
from resnet_study.predictor import Predictor
from resnet_study.saved_models import by_head, find_heads
from resnet_study.strings import as_text, composed

_AT_A_TIME = 64 << 20  # bytes of images in memory
_LEFT_OUT_NAMED = 20


class NoImageError(UsageError):
    """None of the files can be read as an image."""


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Image files to be asked about.

    Attributes:
        files: paths in order, each once.
        named: those that the user named one by one: each must be readable.
        folders: of each file, the names of the folders between what was named and the file; with that of the named folder in front.
    """

    files: list[str]
    named: frozenset[str]
    folders: list[tuple[str, ...]]


def list_images(paths) -> ImageList:
    """Lists image files.

    Args:
        paths: files, folders or `.zip`s, or one of them; of the latter two all images within are taken, in the order of their paths. Other files there are
            counted in a line.

    Raises:
        UsageError: nothing is named, or a folder or archive holds no image.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    named, folders = set(), {}
    for path in (place for given in paths for place in _expand(given)):
        if not path.is_dir() and path.suffix.lower() != ".zip":
            named.add(path.as_posix())
            folders.setdefault(path.as_posix(), (path.absolute().parent.name,))
            continue
        found, others = {}, 0
        for inner, names in list_tree(path, IMAGE_SUFFIXES).items():
            images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
            others += len(names) - len(images)
            found |= {"/".join([path.as_posix(), *inner, name]): (path.resolve().name, *inner) for name in images}
        if not found:
            raise UsageError(
                f"{path} must hold images ({', '.join(IMAGE_SUFFIXES)}), received a folder without any; give another"
            )
        if others:
            say_once(f"left aside in {path}: {others:,} file(s) that are no images of a kind that is read")
        folders |= {file: inner for file, inner in sorted(found.items()) if file not in folders}
    if not folders:
        raise UsageError("--mode=predict needs --images FILE_OR_FOLDER..., received none; give some")
    return ImageList(list(folders), frozenset(named), list(folders.values()))


def _expand(given) -> list[Path]:
    """What a shell leaves to the program: `~` behind `--images=`, and under Windows `*`."""
    if not os.fspath(given):  # else it would be the working folder
        raise UsageError("--images must name files or folders, received ''; give some")
    if address := re.match(r"(https?|ftp|file)://", os.fspath(given), re.IGNORECASE):
        mend = "give its path alone" if address[1].lower() == "file" else "save the image as a file"
        raise UsageError(f"--images must name files or folders, received the address {given}; {mend}")
    path = Path(given).expanduser()
    if path.exists() or os.name != "nt":
        return [path]
    return sorted(map(Path, glob.glob(str(path)))) or [path]  # noqa: PTH207 - Path.glob takes no absolute pattern


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a model says of image files.

    Attributes:
        files: those that were read.
        indices: of these, int [n], their places in the list that was given.
        probabilities: {name of the head: float32 [n, classes]}; a single head is called "".
        table: content of `predictions.csv`.
        csv_path: its path.
    """

    files: list[Path]
    indices: np.ndarray
    probabilities: dict[str, np.ndarray]
    table: pd.DataFrame
    csv_path: Path


def predict_files(
    config, path: str, model, images: ImageList, folder: Path, true_names: list[str | None] | None = None
) -> Answers:
    """Asks a model about image files, and writes what it says.

    Args:
        config: settings of either program; uses test_batch_size, and how images are read: with others, nothing is gone on with.
        path: of the model, see `evaluation.find_model`.
        model: keras.Model or `ExportedModel`.
        images: of `list_images`.
        folder: where to write.
        true_names: of each image the class that it is of, as far as known; a column of the table.

    Returns:
        Answers.

    Raises:
        UsageError: an image that was named itself cannot be read, or none can; another process answers for the same images; the folder cannot
            be written to.
    """
    predictor, read, class_names = Predictor(model), make_reader(config, path, model), find_class_names(path, model)
    key = _key(model, images, str(read.keywords))

    def answer(pixels):
        return predictor.predict(pixels, config.test_batch_size)

    with contextlib.ExitStack() as held:
        part = _ask(model, answer, images, read, folder / f"predictions.part-{key}.csv", class_names, held)
        # Others may answer for other images at the same time, but one at a time finds the next free number.
        with holding_lock(folder / ".lock-predictions", 60, _taken(folder)):
            return _write(part, images, folder, class_names, true_names)


def _taken(folder: Path) -> str:
    return f"another process answers for these images in {folder}; wait for it"


def _ask(model, answer, images, read, path, class_names, held):
    """Asks for all images that the part file of an earlier process lacks; returns the `_Part`."""
    columns = [f"{head}/{name}" if head else name for head, names in class_names.items() for name in names]
    part = _Part(path, columns, held)
    waiting = [index for index, file in enumerate(images.files) if as_text(file) not in part.rows]
    if part.rows and waiting:
        print(f"going on after {len(part.rows):,} images that {part.path} holds")
    shape, failures = model.input_shape[1:], []
    size = min(1024, max(1, _AT_A_TIME // int(np.prod(shape))))

    def attempt(file):
        try:
            return file, read(Path(file), shape)
        except UsageError as error:
            return file, error

    with (
        _telling_how_far(part, len(images.files)),
        concurrent.futures.ThreadPoolExecutor(count_cores()) as pool,
        tqdm(
            total=len(images.files), initial=len(part.rows), unit="image", disable=None if len(waiting) > size else True
        ) as bar,
    ):
        for start in range(0, len(waiting), size):
            files, pixels = [], []
            for file, image in pool.map(attempt, (images.files[index] for index in waiting[start : start + size])):
                if not isinstance(image, UsageError):
                    files.append(as_text(file))
                    pixels.append(image)
                elif file in images.named:
                    raise image
                else:
                    failures.append(image)
            if pixels:
                found = by_head(answer(np.stack(pixels)))
                part.add(files, np.concatenate([found[head] for head in class_names], axis=1))
            bar.update(min(size, len(waiting) - start))
    if not part.rows:
        others = f" (and {len(failures) - 1:,} more images that cannot be read)" if len(failures) > 1 else ""
        raise NoImageError(f"{failures[0]}{others}") from failures[0]
    for error in failures[:_LEFT_OUT_NAMED]:
        print(f"left out: {error}", file=sys.stderr)
    if len(failures) > _LEFT_OUT_NAMED:
        print(f"left out: {len(failures) - _LEFT_OUT_NAMED:,} more images that cannot be read", file=sys.stderr)
    return part


@contextlib.contextmanager
def _telling_how_far(part, count):
    """Says, where Ctrl-C comes, how many answers are kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        told = f"stopped after {len(part.rows):,} of {count:,} images; the same command again goes on"
        raise KeyboardInterrupt(told) from stop


def _write(part, images, folder, class_names, true_names) -> Answers:
    indices = np.array([index for index, file in enumerate(images.files) if as_text(file) in part.rows])
    files = [images.files[index] for index in indices]
    values = np.stack([part.rows[as_text(file)] for file in files])
    ends = np.cumsum([len(names) for names in class_names.values()])[:-1]
    probabilities = dict(zip(class_names, np.split(values, ends, axis=1), strict=True))
    table = {"image": files}
    if true_names and any(true_names[index] for index in indices):
        table["true_class"] = [true_names[index] or "" for index in indices]
    for head, answers in probabilities.items():
        columns = (f"{head}_", f"{head}_probability_") if head else ("class_", "probability_")
        order = np.argsort(-answers, axis=1, kind="stable")
        if class_names.multi_label:
            table["classes"] = [
                "; ".join(class_names[head][label] for label in labels if row[label] >= THRESHOLD)
                for labels, row in zip(order, answers, strict=True)
            ]
        order = order[:, :3]
        for rank in range(order.shape[1]):
            labels = order[:, rank]
            table[f"{columns[0]}{rank + 1}"] = [class_names[head][label] for label in labels]
            table[f"{columns[1]}{rank + 1}"] = [
                round(float(value), 4) for value in answers[np.arange(len(labels)), labels]
            ]
    table = pd.DataFrame(table)
    csv_path, places = _write_beside(folder, table.to_csv(index=False), probabilities)
    for head, answers in probabilities.items():
        write_array(places[head], answers)
    part.finish(_beside(csv_path), [as_text(file) for file in files])
    return Answers([Path(file) for file in files], indices, probabilities, table, csv_path)


class _Part:
    """The file of what is done.

    Attributes:
        path: of the file.
        rows: {path of the image: float32 [classes of all heads]}.
    """

    def __init__(self, path: Path, columns: list[str], held: contextlib.ExitStack):
        """Reads what an earlier process has done; a row that a kill has cut off is forgotten. `held`: what holds the lock of the file."""
        self.path, self._header, self.rows = path, ["image", *map(as_text, columns)], {}
        self._held, self._is_mine = held, False
        if not path.is_file():
            return
        self._hold()
        text = path.read_bytes().decode("utf-8", errors="replace")
        rows = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        next(rows, None)
        for row in rows:
            if len(row) != len(self._header):
                break
            with contextlib.suppress(ValueError):  # no numbers: it is asked again
                self.rows[row[0]] = np.array(row[1:], np.float32)
        self._write_all(path, self.rows)

    def add(self, files: list[str], values: np.ndarray) -> None:
        """Adds images and their probabilities, float32 [n, classes of all heads], to the file."""
        self._hold()
        new = dict(zip(files, values.astype(np.float32), strict=True))
        if not self.path.is_file():
            self._write_all(self.path, {})
        with self.path.open("a", encoding="utf-8", newline="") as opened:
            opened.write(_lines(new))
        self.rows |= new

    def _hold(self):
        """Takes the lock of the file, not before there is something to write: images that cannot be read make no folder."""
        if not self._is_mine:
            folder = self.path.parent
            self._held.enter_context(
                holding_lock(folder / f".lock-{self.path.stem.rpartition('-')[2]}", 1, _taken(folder))
            )
            self._is_mine = True

    def finish(self, path: Path, files: list[str]) -> None:
        """Makes the file the table of all probabilities, with its rows in the order of `files`."""
        if list(self.rows) == files:
            move(self.path, path)
        else:  # images were read in a later try
            self._write_all(path, {file: self.rows[file] for file in files})
            self.path.unlink()

    def _write_all(self, path, rows):
        buffer = io.StringIO(newline="")
        csv.writer(buffer).writerow(self._header)
        write_atomically(path, buffer.getvalue() + _lines(rows))


def _lines(rows) -> str:
    """{path: probabilities} as lines of CSV; nine digits give the same float32 again."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(
        [file, *(f"{value:.9g}" for value in values.tolist())] for file, values in rows.items()
    )
    return buffer.getvalue()


def _key(model, images, settings) -> str:
    digest = hashlib.sha256(f"{settings}\0{list(find_heads(model).items())}".encode())
    exported = isinstance(model, ExportedModel)
    for content in model.list_bytes() if exported else (variable.numpy().tobytes() for variable in model.weights):
        digest.update(content)
    for file in images.files:
        place = Path(file)
        while not os.path.exists(place) and place != place.parent:  # noqa: PTH110 - within an archive, where a name may be of any length
            place = place.parent
        state = place.stat()
        digest.update(f"{file}\0{state.st_size} {state.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:8]


def find_true_names(images: ImageList, names, shown) -> list[str | None]:
    """Of each image the class whose name the nearest folder around it has, in any case; None where no folder is called like a class.

    Args:
        images: of `list_images`.
        names: what the folders of the classes are called.
        shown: names of the classes to give instead, in the same order.
    """
    known = labels_by_name(shown, names)

    def find(folder):
        label = known.get(composed(folder), known.get(composed(folder).lower()))
        return None if label is None else shown[label]

    return [next(filter(None, map(find, reversed(inner))), None) for inner in images.folders]


def _write_beside(folder: Path, text: str, probabilities) -> tuple[Path, dict[str, Path]]:
    """Writes `predictions.csv`, or with the next free number where there are others, or probabilities of others, whose table was renamed.

    Args:
        folder: where to write.
        text: of the table.
        probabilities: {name of the head: float32 [images, classes]}.

    Returns:
        (path of the table; {name of the head: path for its probabilities}).
    """
    number = 1
    while True:
        end = f"-{number}" * (number > 1)
        path = folder / f"predictions{end}.csv"
        places = {head: folder / f"probabilities{f'-{head}' * bool(head)}{end}.npy" for head in probabilities}
        is_free = not any(place.exists() for place in (path, _beside(path), *places.values()))
        # The table has four digits, so that answers that differ may have the same.
        is_same = path.is_file() and path.read_bytes() == as_text(text).encode()
        if is_free or (is_same and all(_holds(places[head], answers) for head, answers in probabilities.items())):
            write_atomically(path, text)
            return path, places
        number += 1


def _holds(place: Path, answers) -> bool:
    """Whether a file has no other probabilities than these: it may be missing, or what a kill has left."""
    if not place.is_file():
        return True
    try:
        held = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return True
    return held.shape == answers.shape and np.allclose(held, answers, rtol=0, atol=1e-5)


def _beside(path: Path) -> Path:
    """The table of all probabilities that goes with a table of predictions."""
    return path.with_name(path.name.replace("predictions", "probabilities"))
