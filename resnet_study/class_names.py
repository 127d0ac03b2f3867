"""The names of the classes that travel inside a model file, so that a file that was moved still says "cat".

They are {name of the head: names in the order of the probabilities}; a single head is called "". With them goes how images were brought
to the size of the network.
"""

import json
import re
import zipfile
from pathlib import Path

from resnet_study.errors import UsageError
from resnet_study.exporting.runtimes import CLASS_NAMES, read_packed_names
from resnet_study.files import is_kind
from resnet_study.strings import as_text, composed

THRESHOLD = 0.5  # probability from which on an image with several labels has a class
_RESIZE = "/resize"  # no head is called so
_JPEG_SIZE = "/jpeg_size"
_VALUE_RANGE = "/value_range"
_MULTI_LABEL = "/several"
_RESIZES = ("auto", "crop", "pad", "stretch", "nearest")


class ClassNames(dict):
    """{name of the head: names of its classes}.

    Attributes:
        resize: how images were brought to the size of the network, see `data.image_files.read_image`; "auto" = the
            file does not say, as where it was "crop".
        multi_label: whether an image can have several labels: the probabilities are each of a class by itself then.
        jpeg_size: how JPEG files were decoded, full or reduced, see `read_image`; "" = the settings of the run say.
        value_range: the setting of that name by which values became 0..255; "" = none, or the settings of the run say.
    """

    def __init__(self, names=(), resize="auto", multi_label=False, jpeg_size="full", value_range=""):
        super().__init__(names)
        self.resize, self.multi_label, self.jpeg_size, self.value_range = resize, multi_label, jpeg_size, value_range


def labels_by_name(names, folders) -> dict[str, int]:
    """{what a class may be called: its label}: as it is shown or as its folder is named, and in lower case where no class is called just so.

    Args:
        names: of the classes, as they are shown.
        folders: what their folders are called, in the same order.
    """
    known = {}
    for spelling in (str.lower, str):  # the exact names last, so that they hold: a and A may be two classes
        for called in (names, folders):
            known |= {spelling(composed(name)): label for label, name in enumerate(called)}
    return known


def pack_class_names(path: Path, class_names: dict[str, list[str]]) -> None:
    """Adds them to an archive, such as a `.keras` file, or makes one behind a file that is none, as Android's tools have it for LiteRT.

    With the JSON file that this library reads go `labels.txt` files for others. Keras and LiteRT take no notice of them.
    """
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in list_label_files(class_names).items():
            archive.writestr(zipfile.ZipInfo(name), text)


def list_label_files(class_names: dict[str, list[str]]) -> dict[str, str]:
    """Name and content of the files that hold them: JSON for this library, and text with a line for each class."""
    lines = {
        f"labels_{head}.txt" if head else "labels.txt": "".join(
            f"{' '.join(as_text(name).split())}\n" for name in names
        )
        for head, names in class_names.items()
    }
    resize = getattr(class_names, "resize", "auto")
    facts = {_RESIZE: resize} if resize not in ("auto", "crop") else {}
    facts |= {_MULTI_LABEL: True} if getattr(class_names, "multi_label", False) else {}
    facts |= {_JPEG_SIZE: "reduced"} if getattr(class_names, "jpeg_size", "full") == "reduced" else {}
    facts |= {_VALUE_RANGE: class_names.value_range} if getattr(class_names, "value_range", "") else {}
    return {CLASS_NAMES: json.dumps(class_names | facts)} | lines


def read_class_names(path: Path, classes: dict[str, int]) -> ClassNames:
    """Those in a `.keras` file, see `parse_class_names`; {} for a file without, as earlier versions and Keras itself write it."""
    try:
        text = read_packed_names(path)
    except Exception as error:  # a damaged archive can raise nearly anything
        raise UsageError(f"{path} is damaged ({error}); give another file") from error
    return parse_class_names(text, classes, path)


def tell_apart(names: list[str], folders) -> list[str]:
    """The names of classes; with its folder each that another one has too, since tables and answers could not tell them apart."""
    shown = list(names)
    while len(set(shown)) < len(shown):
        shown = [
            f"{name} ({folder})" if shown.count(name) > 1 else name for name, folder in zip(shown, folders, strict=True)
        ]
    return shown


def without_folder(name: str) -> str:
    """A name without what `tell_apart` adds."""
    return re.sub(r" \([^()]*\)$", "", name)


def parse_class_names(text: str, classes: dict[str, int], source) -> ClassNames:
    """The class names that a model file brings.

    Args:
        text: JSON; "" = it brings none.
        classes: {name of the head: number of its classes}.
        source: the file, for messages.

    Raises:
        UsageError: it is something else, or has other numbers of classes.
    """
    if not text:
        return ClassNames()
    try:
        names = json.loads(text)
        told = names if isinstance(names, dict) else {}
        resize, multi_label = told.pop(_RESIZE, "auto"), told.pop(_MULTI_LABEL, False)
        jpeg_size = told.pop(_JPEG_SIZE, "full")  # as it was before the file said it
        value_range = told.pop(_VALUE_RANGE, "")
    except (ValueError, RecursionError):
        names, told, resize, multi_label, jpeg_size, value_range = None, {}, "auto", False, "full", ""
    if list(classes) == [""] and len(told) == 1:  # one head needs no name
        names = {"": next(iter(told.values()))}
    fits = (
        names is not None
        and resize in _RESIZES
        and isinstance(multi_label, bool)
        and jpeg_size in ("full", "reduced")
        and isinstance(value_range, str)
        and is_kind(names, {head: [str] for head in classes})
        and all(len(names[head]) == size for head, size in classes.items())
    )
    if not fits:
        raise UsageError(
            f"{source} must bring the names of its {' and '.join(map(str, classes.values()))} classes, received others; give another file"
        )
    shown = {head: [as_text(name) for name in names[head]] for head in classes}
    return ClassNames(shown, resize, multi_label, jpeg_size, value_range)
