"""What every class of settings has in common: fields with unit and range, their checks, and what is told and published of them.

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import dataclasses
import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import ClassVar

from resnet_study.environment import name_program
from resnet_study.errors import UsageError
from resnet_study.files import read_text
from resnet_study.strings import shorten

_LARGEST = 3.4028234e38  # of the numbers that the networks compute in

RUN, DATA, NETWORK, TRAINING, LOADING = (
    "run and report",
    "data and augmentation",
    "network",
    "training and learning rate",
    "validating, testing and loading",
)
PATHS = (
    "data_dir",
    "runs_dir",
    "ckpt_path",
    "teacher",
    "test_ckpt_path",
    "weights",
    "labels",
    "class_weight",
)  # settings that are paths, of all classes of settings
# What a command that goes on with a run names otherwise.
_NOT_ASKED_FOR = ("version", "runs_dir", "test_ckpt_path")
_SOURCES = ("ckpt_path", "teacher", "weights")  # of these, what a run begins with or learns from
_BEFORE = {"jpeg_size": "full"}  # what runs of before there was a setting did, where that is not its default


def setting(
    default, group, text, *, choices=None, minimum=None, maximum=None, operational=False, alias=None, old_values=None
):
    """A dataclass field with what the command line needs to know about it.

    Args:
        default: value where none is given.
        group: heading in the help.
        text: help.
        choices: all values that are allowed; None = any.
        minimum, maximum: of numbers.
        operational: it may differ when a run is resumed: it changes where and how it runs, not what it computes.
        alias: another name of the flag.
        old_values: {former name of a value: its name}; runs and commands of before have the former.
    """
    metadata = {
        "group": group,
        "help": text,
        "choices": choices,
        "minimum": minimum,
        "maximum": maximum,
        "operational": operational,
        "alias": alias,
        "old_values": old_values or {},
    }
    return dataclasses.field(default=default, metadata=metadata)


# Values that ask for nothing.
_NOTHING = (None, False, 0, "", "none", "off", "auto")

# A field that only the settings of one program have, and the commands of that program.
_COMMANDS = {
    "preset": "python cifar10_main.py --mode=train, test or predict",
    "epochs": "python -m flowers.train, flowers.evaluate or flowers.predict",
}


# What no folder can be called.
_LONGEST_NAME = 255  # bytes, on all file systems in use
_NO_FOLDERS = r'|[<>:"|?*]|[. ]$|^(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$)' if os.name == "nt" else ""


def _quote(text: str) -> str:
    """A word of a command for the shell of this system."""
    return subprocess.list2cmdline([text]) if os.name == "nt" else shlex.quote(text)


class Settings:
    """What the frozen dataclasses of settings have in common; every field is a `setting`."""

    PROGRAM: ClassVar[str]  # the command that trains with these settings
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]
    version: str
    strategy: str
    runs_dir: str

    def __post_init__(self):
        """Raises UsageError unless every value fits the declared type, choices and range of its field."""
        for field in dataclasses.fields(self):
            if old_values := field.metadata["old_values"]:
                value = getattr(self, field.name)
                object.__setattr__(self, field.name, old_values.get(value, value) if type(value) is str else value)
            value = getattr(self, field.name)
            if type(value).__module__ == "numpy" and hasattr(value, "item"):
                object.__setattr__(self, field.name, value.item())
            elif isinstance(value, os.PathLike) and field.type is str:
                object.__setattr__(self, field.name, os.fspath(value))
            _check(field, getattr(self, field.name))
            if field.name in PATHS:
                try:
                    Path(getattr(self, field.name)).expanduser()
                except RuntimeError as error:
                    raise UsageError(
                        f"--{field.name} must be a path, received '{getattr(self, field.name)}' ({error})"
                    ) from error
        if not self.runs_dir:
            raise UsageError("--runs_dir must be a folder, received ''; leave it out for runs/")
        if re.search(r"[\\/]|^\." + _NO_FOLDERS, self.version):
            raise UsageError(
                f"--version must be a plain folder name, received '{self.version}'; use --runs_dir for the place"
            )
        if (size := len(self.version.encode(errors="replace"))) > _LONGEST_NAME:
            raise UsageError(f"--version must have at most {_LONGEST_NAME} bytes, received {size}; give a shorter one")

    def needs(self) -> list[tuple[tuple[str, ...], bool, str]]:
        """What other settings switch off: (names, whether they are read as the others are, what has to be so for that)."""
        return []

    def check_given(self, flags: dict) -> None:
        """Raises UsageError where a flag that was given would be ignored; presets and settings of runs of before may have it."""
        for names, read, needed in self.needs():
            for name in names if not read else ():
                usual = self.__dataclass_fields__[name].default
                if (value := flags.get(name)) not in _NOTHING and value != usual:
                    raise UsageError(
                        f"--{name} needs {needed}, received --{name}={value} without it, which would change nothing; leave it out, or change that"
                    )

    def flags_beside(self, other: "Settings") -> list[str]:
        """The flags of what differs from `other`, and not only in where things lie."""
        return [
            f"--{field.name}={shlex.quote(str(getattr(self, field.name)))}"
            for field in dataclasses.fields(self)
            if not field.metadata["operational"] and getattr(self, field.name) != getattr(other, field.name)
        ]

    def as_published(self):
        """The same settings for others to repeat: runs and files of runs that it begins with as if they were in `runs/`."""
        names = [name for name in _SOURCES if hasattr(self, name)]
        return dataclasses.replace(self, **{name: without_machine(name, getattr(self, name)) for name in names})

    def resume_command(self, folder: Path) -> str:
        """The command that goes on with the run in `folder`."""
        flags = [f"--version={_quote(folder.name)}", "--resume"]
        config = folder / "config.json"
        stored = self.from_json(read_text(config), str(config)) if config.is_file() else self
        # What this start was asked for, and the run does not keep: a training keeps where its images lie.
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            if field.metadata["operational"] and name not in _NOT_ASKED_FOR and value != getattr(stored, name):
                flags.insert(0, f"--{name}={str(value).lower() if isinstance(value, bool) else _quote(str(value))}")
        if folder.parent != Path(str(type(self).__dataclass_fields__["runs_dir"].default)):
            flags.insert(0, f"--runs_dir={_quote(str(folder.parent))}")
        # Installed, it has no file to be named.
        called = " ".join(name_program())
        installed = called in ("cifar10", "python -m cifar10_main")
        program = self.PROGRAM.replace("python cifar10_main.py", called) if installed else self.PROGRAM
        return " ".join([program, *flags])

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, source: str):
        """Reads `config.json`. Raises UsageError, naming `source`, where it is not the settings of a run of this program."""
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError(f"no settings but {text.strip()}")
            marks = [name for name in _COMMANDS if name in values and name not in cls.__dataclass_fields__]
            if not marks:
                return cls(**_BEFORE | values)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(
                f"expected the settings of a run in {source}, received {shorten(str(error))}; start a new run"
            ) from error
        raise UsageError(f"{source} is of a run of another program; use {_COMMANDS[marks[0]]}")


def _check(field, value):
    """Raises UsageError unless `value` fits the declared type, choices and range of the field."""
    flag, facts = f"--{field.name}", field.metadata
    if type(value) is not field.type and not (field.type is float and type(value) is int):
        raise UsageError(f"{flag} must be {field.type.__name__}, received {value!r}")
    if field.type is str and "\0" in value:
        raise UsageError(f"{flag} must be text without NUL characters, received {value!r}")
    if facts["choices"] and value not in facts["choices"]:
        raise UsageError(f"{flag} must be one of {', '.join(facts['choices'])}; received '{value}'")
    if field.type in (int, float):
        if type(value) is int and abs(value) >= 2**31:
            raise UsageError(f"{flag} must be below {2**31}, received a larger number")
        if not abs(value) <= _LARGEST:
            raise UsageError(f"{flag} must be a finite float32 number, received {value}")
        if facts["minimum"] is not None and value < facts["minimum"]:
            raise UsageError(f"{flag} must be at least {facts['minimum']}, received {value}")
        if facts["maximum"] is not None and value > facts["maximum"]:
            raise UsageError(f"{flag} must be at most {facts['maximum']}, received {value}")


def without_machine(name: str, value: str) -> str:
    """The value of a setting as it is published: what a run begins with as if it were in `runs/`, images of one's own by their name alone."""
    if name in _SOURCES:
        return _in_runs(value)
    if name == "data_dir":
        return name_folder(value)
    return Path(value).name if name in ("labels", "class_weight") else value


def name_folder(place: str) -> str:
    """Name of a folder or archive of images, for titles, file names and published commands."""
    return Path(place or "images").expanduser().resolve().name.removesuffix(".zip")


def _in_runs(path: str) -> str:
    """ "/some/where/mine/best.keras" -> "runs/mine/best.keras"; relative paths and names such as "cifar10" stay."""
    parts = Path(path).expanduser().parts
    if not Path(path).expanduser().is_absolute():
        return path
    is_file = path.endswith((".keras", ".npz", ".h5"))
    return "/".join(["runs", *parts[-1 - is_file - (parts[-2] == "checkpoints") :]])
