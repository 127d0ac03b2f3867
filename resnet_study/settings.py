"""What every class of settings has in common: fields with unit and range, their checks, and the command line made from them.

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import argparse
import dataclasses
import difflib
import json
import os
import re
import shlex
import subprocess
import textwrap
from pathlib import Path
from typing import Any, ClassVar

from resnet_study.environment import describe_versions, name_program
from resnet_study.errors import UsageError, shorten

_LARGEST = 3.4028234e38  # of the numbers that the networks compute in

RUN, DATA, NETWORK, TRAINING, LOADING = (
    "run and report",
    "data and augmentation",
    "network",
    "training and learning rate",
    "validating, testing and loading",
)
_PATHS = (
    "data_dir",
    "runs_dir",
    "ckpt_path",
    "teacher",
    "test_ckpt_path",
    "weights",
    "labels",
    "class_weight",
)  # settings that are paths, of all classes of settings
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
            _check(field, getattr(self, field.name))
            if field.name in _PATHS:
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
        # Which may have been asked for by a later start than the first.
        for name in ("watch_test", "test_flip", "test_shifts", "strategy"):
            if (
                name in self.__dataclass_fields__
                and (value := getattr(self, name)) != self.__dataclass_fields__[name].default
            ):
                flags.insert(0, f"--{name}={str(value).lower()}")
        if folder.parent != Path(str(type(self).__dataclass_fields__["runs_dir"].default)):
            flags.insert(0, f"--runs_dir={_quote(str(folder.parent))}")
        # Installed, it has no file to be named.
        program = (
            self.PROGRAM.replace("python cifar10_main.py", "cifar10") if name_program() == ["cifar10"] else self.PROGRAM
        )
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


# How other programs, or the other one of this library, call a flag.
_ELSEWHERE = {
    "--epochs": ("--train_steps",),
    "--train_steps": ("--epochs",),
    "--steps": ("--train_steps", "--epochs"),
    "--batch_size": ("--train_batch_size",),
    "--lr": ("--init_lr",),
    "--learning_rate": ("--init_lr",),
    "--data": ("--data_dir",),
    "--output": ("--runs_dir",),
    "--name": ("--version",),
}


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `UsageError`s, and whose `--help` fits a screen.

    Args:
        prog: name of the command.
        usage: the command in short.
        description: what it does.
        shown: names of the flags that `--help` shows, in this order; `--help-all` shows all.
        examples: commands, a line each, for `--help`.
        epilog: for `--help-all`.
    """

    def __init__(self, *, description, prog=None, usage="%(prog)s [flags]", shown=(), examples="", epilog=None):
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._shown, self._examples = shown, examples
        self.add_argument(
            "-h", "--help", action=_Print, text=self.format_short_help, help="the flags that are used most"
        )
        self.add_argument("--help-all", action=_Print, text=self.format_help, help="every flag, with its default")
        self.add_argument(
            "--version-info",
            action=_Print,
            text=describe_versions,
            help="versions and processor, for a report of an error",
        )

    def format_short_help(self) -> str:
        """The help of the flags that are used most."""
        flags = {action.dest: action for action in self._actions}
        formatter = self.formatter_class(prog=self.prog)
        formatter.add_usage(self.usage, [], [])
        formatter.add_text(self.description)
        formatter.start_section(f"flags that are used most; --help-all lists all {len(flags) - 1}")
        formatter.add_arguments([flags[name] for name in self._shown])
        formatter.end_section()
        if self._examples:
            formatter.add_text("examples:\n" + textwrap.indent(self._examples.strip(), "  "))
        return formatter.format_help()

    def parse_args(self, args=None, namespace=None):
        """As of argparse; what is not known is named with the flag that comes nearest, before what is missing."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag, known = unknown[0].split("=")[0], self._option_string_actions
            near = [name for name in _ELSEWHERE.get(flag, ()) if name in known]
            if not flag.startswith("-") and "--images" in known:
                near = [f"--images {flag}"]
            near = near or difflib.get_close_matches(flag, list(known))
            self.error(
                f"unrecognized arguments: {' '.join(unknown)}"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
                + " An epoch has as many steps as the images divided by --train_batch_size"
                * (near == ["--train_steps"])
            )
        for action in required:
            if not getattr(parsed, action.dest):
                self.error(f"the following argument is required: {'/'.join(action.option_strings) or action.metavar}")
        return parsed

    def error(self, message):
        raise UsageError(f"{message}; see --help")


class _Print(argparse.Action):
    """Prints a text, which a function makes, and ends the program."""

    def __init__(self, option_strings, dest, text, help):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self._text = text

    def __call__(self, parser, namespace, values, option_string=None):
        print(self._text().rstrip())
        parser.exit()


class PrintCompletion(argparse.Action):
    """Prints the script by which a shell completes the flags of the installed command `const`, and ends the program."""

    def __call__(self, parser, namespace, shell, option_string=None):
        try:
            import shtab
        except ImportError as error:
            raise UsageError(
                f"{option_string} needs shtab; install the extra completion: pip install -e '.[completion]' in the clone"
            ) from error
        parser.prog = self.const
        for action in parser._actions:
            if action.dest in (*_PATHS, "images"):
                action.complete = shtab.FILE
        print(shtab.complete(parser, shell))
        parser.exit()


def _boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"expected true or false, received '{text}'")
    return values[text.lower()]


def _number(kind, minimum, maximum):
    """A parser of numbers, for argparse, that says what it expects."""
    expected = "a whole number" if kind is int else "a number"
    if minimum is not None:
        expected += f" of at least {minimum:g}" if maximum is None else f" from {minimum:g} to {maximum:g}"

    def parse(text):
        try:
            return kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected {expected}, received '{text}'") from error

    return parse


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings], read=None) -> None:
    """Adds one flag per field, in the five groups; a flag that is not given stays out of the parsed namespace.

    With `read`, only these fields: those that the command reads.
    """
    groups = {name: parser.add_argument_group(name) for name in (RUN, DATA, NETWORK, TRAINING, LOADING)}
    for field in dataclasses.fields(settings):
        if read is not None and field.name not in read:
            continue
        facts = field.metadata
        names = [name for name in facts["choices"] or () if name not in facts["help"]]
        text = facts["help"] + (f"; one of {', '.join(facts['choices'])}" if names else "")
        kind: Any = field.type
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{text} [{field.default}]".replace("%", "%%")}
        if kind is bool:
            options |= {"type": _boolean, "nargs": "?", "const": True, "metavar": "BOOL"}
        elif facts["choices"]:
            options |= {"choices": [*facts["choices"], *facts["old_values"]], "metavar": "NAME"}
        else:
            read_text = kind if kind is str else _number(kind, facts["minimum"], facts["maximum"])
            options |= {"type": read_text, "metavar": kind.__name__.upper()}
        flags = [f"--{name}" for name in (field.name, facts["alias"]) if name]
        groups[facts["group"]].add_argument(*flags, dest=field.name, **options)


def list_of(kind):
    """A parser of comma-separated values, for argparse, which names it in its messages."""

    def parse(text):
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"comma-separated {kind.__name__}"
    return parse


def parse_seeds(text):
    """ "0,3-5" -> [0, 3, 4, 5]."""
    seeds = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if dash and int(last) < int(first):
            raise ValueError(part)
        seeds += range(int(first), int(last if dash else first) + 1)
    return seeds


parse_seeds.__name__ = "comma-separated int"  # how argparse calls it in its messages


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
