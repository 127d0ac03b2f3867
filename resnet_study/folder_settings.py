"""Settings of images of one's own, which both programs have: which files are taken, with which labels, what their pixels mean, and how
much each class counts.

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import dataclasses
from pathlib import Path

from resnet_study.errors import UsageError
from resnet_study.settings import DATA, TRAINING, Settings, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderSettings(Settings):
    """What `--dataset=folder` reads; `resnet_study.data.labelled_files` says how."""

    labels: str = setting(
        "",
        DATA,
        "--dataset=folder: CSV file with a column of file names and one of labels, perhaps one of parts (split), in the place of class folders",
        operational=True,
    )
    label_level: int = setting(
        0,
        DATA,
        "--dataset=folder: which folder names the class, 1 = the first below the whole or its part, 2 = the next; 0 = the first, where that is clear",
        minimum=0,
        maximum=9,
    )
    test_fraction: float = setting(
        0.1,
        DATA,
        "--dataset=folder: share of each class held out for testing, where one folder is split",
        minimum=0.0,
        maximum=0.9,
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

    class_weight: str = setting(
        "",
        TRAINING,
        "factor of each class in the loss that training lowers: balanced = in inverse proportion to its training images; or a JSON file "
        "{class: factor}; '' = 1",
    )

    def __post_init__(self):
        super().__post_init__()
        self.pixel_range  # noqa: B018 - it checks
        if self.dataset != "folder":
            for name in ("labels", "label_level"):
                if value := getattr(self, name):
                    raise UsageError(
                        f"--{name} is for --dataset=folder, received --{name}={value} and {self.dataset}; leave it out"
                    )

    @property
    def folder_name(self) -> str:
        """Name of the folder or archive of images, for titles and file names."""
        return Path(self.data_dir or "images").expanduser().resolve().name.removesuffix(".zip")

    @property
    def folder_flags(self) -> list[str]:
        """The flags of a command that repeats a run: where the images and labels are, by their names."""
        if self.dataset != "folder":
            return []
        return [f"--data_dir={self.folder_name}"] + [f"--labels={Path(self.labels).name}"] * bool(self.labels)

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """`value_range` as (low, high)."""
        if not self.value_range:
            return None
        try:
            low, high = map(float, self.value_range.split(","))
            if low < high < float("inf") and low > float("-inf"):
                return low, high
        except ValueError:
            pass
        raise UsageError(
            f"--value_range must be LOW,HIGH with LOW below HIGH, such as 0,4095, received '{self.value_range}'"
        )
