"""The settings of images of one's own, which both programs have: what is a class, what is tested, how files become images.

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import dataclasses
import shlex

from resnet_study.errors import UsageError
from resnet_study.settings import DATA, Settings, name_folder, setting, without_machine

_OF_FILES = ("folder", "oxford102")  # data sets whose images are read from files of any size
WITHOUT_PLACE = ("digits", "synthetic", "oxford102")  # those whose training and test take no --data_dir


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnImageSettings(Settings):
    """What `--dataset=folder` reads; `resnet_study.data.labelled_files` says how. The subclasses say which data sets there are, and where."""

    labels: str = setting(
        "",
        DATA,
        "images of one's own: CSV file with a column of file names and one of labels, perhaps one of parts (split), in the place of class folders",
        operational=True,
    )
    label_separator: str = setting(
        "auto",
        DATA,
        "--labels: what stands between the labels of an image with several, space = ' ', comma = ',', semicolon = ';', bar = '|'; none = a cell "
        "is one label; auto = what the cells look like, which is told",
        choices=("auto", "none", "space", "comma", "semicolon", "bar"),
        operational=True,
    )
    label_level: int = setting(
        0,
        DATA,
        "images of one's own: which folder names the class, 1 = the first below the whole or its part, 2 = the next; 0 = the first, where that is clear",
        minimum=0,
        maximum=9,
    )
    test_fraction: float = setting(
        0.1,
        DATA,
        "images of one's own: share of each class held out for testing, where there is no test part (flowers: and no validation part)",
        minimum=0.0,
        maximum=0.9,
    )
    folds: int = setting(
        0,
        DATA,
        "--dataset=folder: cross-validation: the images in so many parts, each of which is the test part of a run of its own; 0 = none",
        minimum=0,
        maximum=1000,
    )
    fold: int = setting(
        0,
        DATA,
        "which of --folds to train, 1 for the first; 0 = one after the other, and a summary of them all",
        minimum=0,
    )
    on_bad_image: str = setting(
        "refuse", DATA, "images that cannot be read: refuse = name them and stop; skip = name them and leave them out",
        choices=("refuse", "skip"),
    )  # fmt: skip
    value_range: str = setting(
        "",
        DATA,
        "LOW,HIGH: what becomes black and white in images of other than 8 bits; '' = by the kind of number, which is told",
    )
    resize: str = setting(
        "auto",
        DATA,
        "how images are brought to the size of the network: crop = the largest part of its aspect; pad = all of it, on black; stretch = all "
        "of it, without its aspect; auto = crop in training, and as the model was trained in tests, predictions and exports",
        choices=("auto", "crop", "pad", "stretch"),
    )
    jpeg_size: str = setting(
        "reduced",
        DATA,
        "how JPEG files that are far larger than the network are decoded in training: reduced = at 1/2, 1/4 or 1/8 of their sides, which is faster; "
        "full = as they are, as all were before; a run that goes on, tests and predictions do as the training did",
        choices=("full", "reduced"),
        operational=True,
    )

    def __post_init__(self):
        super().__post_init__()
        _parse_range(self.value_range)  # which checks it
        if self.label_separator != "auto" and not self.labels:
            raise UsageError(
                f"--label_separator is for the cells of --labels=FILE.csv, received {self.label_separator} and no table; leave it out"
            )
        if self.folds == 1 or self.fold > self.folds:
            raise UsageError(
                f"--folds must be at least 2, and --fold at most that, received --folds={self.folds} --fold={self.fold}; leave both out to "
                "train on one split"
            )
        if self.dataset != "folder":
            for name in ("labels", "label_level", "folds"):
                if value := getattr(self, name):
                    raise UsageError(
                        f"--{name} is for --dataset=folder, received --{name}={value} and {self.dataset}; leave it out"
                    )

    def needs(self):
        # With images of one's own --resize and --value_range are read, too: by predictions.
        return [
            *super().needs(),
            (("test_fraction",), self.dataset == "folder" and not self.folds, "--dataset=folder without --folds"),
            (("on_bad_image", "jpeg_size"), self.dataset in _OF_FILES, "image files, such as --dataset=folder"),
        ]

    def check_given(self, flags: dict) -> None:
        super().check_given(flags)
        if flags.get("data_dir") and self.dataset in WITHOUT_PLACE:
            raise UsageError(
                f"--dataset={self.dataset} reads no --data_dir, received --data_dir={flags['data_dir']}; leave it out, or give "
                "--dataset=folder for images of your own"
            )

    @property
    def folder_name(self) -> str:
        """Name of the folder or archive of images, for titles and file names."""
        return name_folder(self.data_dir)

    @property
    def dataset_name(self) -> str:
        """Name of the data set or of the folder of images, for titles and file names."""
        return self.folder_name if self.dataset == "folder" else self.dataset

    @property
    def crosses(self) -> bool:
        """Whether these settings mean a run for each fold."""
        return self.folds > 0 and not self.fold

    @property
    def fold_name(self) -> str:
        """What the folds add to the name of a run folder."""
        return f"-fold{self.fold}of{self.folds}" if self.fold else f"-folds{self.folds}" if self.folds else ""

    def without_places(self):
        """The same settings with images of one's own by their name alone: what is published tells of no machine."""
        names = ("data_dir", "labels", "class_weight") if self.dataset == "folder" else ("class_weight",)
        return dataclasses.replace(self, **{name: without_machine(name, getattr(self, name)) for name in names})

    @property
    def folder_flags(self) -> list[str]:
        """The flags of a command that repeats a run: where the images and labels are, as it was given."""
        places = {"data_dir": self.data_dir, "labels": self.labels} if self.dataset == "folder" else {}
        places |= {"label_separator": self.label_separator} if self.label_separator != "auto" else {}
        places |= {"jpeg_size": "full"} if self.dataset in _OF_FILES and self.jpeg_size == "full" else {}
        return [f"--{name}={shlex.quote(place)}" for name, place in places.items() if place]

    @property
    def shipped_name(self) -> str:
        """The network of this library whose shipped weights are meant by their name; "" = see `registry.default_network`."""
        return self.model_name

    def reading(self, told=None) -> dict:
        """How `read_image` is to read image files; `told` is what the file of a model says of it, `class_names.ClassNames`."""
        chosen = next((way for way in (self.resize, getattr(told, "resize", "auto")) if way != "auto"), "crop")
        own = self.jpeg_size if self.dataset in _OF_FILES else "full"
        return {
            "value_range": _parse_range(self.value_range or getattr(told, "value_range", "")),
            "resize": chosen,
            "jpeg_size": getattr(told, "jpeg_size", "") or own,
        }


def _parse_range(text: str) -> tuple[float, float] | None:
    """`value_range` as (low, high); None = by the kind of number."""
    if not text:
        return None
    try:
        low, high = map(float, text.split(","))
        if low < high < float("inf") and low > float("-inf"):
            return low, high
    except ValueError:
        pass
    raise UsageError(f"--value_range must be LOW,HIGH with LOW below HIGH, such as 0,4095, received '{text}'")
