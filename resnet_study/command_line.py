"""The command line that is made from a class of settings: its flags, its help, its messages, its completion.

Importing this module imports neither TensorFlow nor Keras, so that `--help` answers at once.
"""

import argparse
import dataclasses
import difflib
import textwrap
from typing import Any

from resnet_study.environment import describe_versions
from resnet_study.errors import UsageError
from resnet_study.settings import DATA, LOADING, NETWORK, PATHS, RUN, TRAINING, Settings

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
            if action.dest in (*PATHS, "images"):
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
