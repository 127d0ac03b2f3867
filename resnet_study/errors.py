"""What a user can mend, in one line, and how a command line ends."""

import atexit
import contextlib
import errno
import io
import os
import re
import sys
import traceback

from resnet_study.strings import as_text, shorten

# What TensorFlow says where it finds no memory, on processors and on GPUs.
_MEMORY_SIGNS = ("OOM when allocating", "out of memory", "OUT_OF_MEMORY", "Dst tensor is not initialized")
# A full disk, and a user's share of one. Windows has no shares.
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class UsageError(ValueError):
    """Something the user gave cannot be used. The message is one line: expected, received, what to do."""


class UnreadableError(UsageError):
    """A file that may be sound could not be read."""


class LostMachineError(UsageError):
    """Another machine of a training has stopped."""


_said = set()
_LOST = 75  # of sysexits: what may go well when it is tried again, unlike a mistake in the command


def say_once(text: str, kind: str = "") -> None:
    """Prints a line unless it, or one of the same kind, was printed by this command before."""
    if (kind or text) not in _said:
        _said.add(kind or text)
        print(as_text(text))


def run_command(command) -> int:
    """Calls `command()` for a command line. Returns the exit code: 0, 2 for what the user can mend (one line on stderr), 75 where
    another machine of a training was lost, 130 for Ctrl-C. With RESNET_STUDY_DEBUG=1 in the environment the traceback of what ended it follows.
    """
    _said.clear()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the name of a file need not be text
    try:
        command()
    except UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        _show_traceback()
        if isinstance(error, LostMachineError):
            # TensorFlow cannot take down a cluster that lacks a machine: its threads, still waiting for it, may abort the process.
            atexit.register(_end_at_once)
            return _LOST
        return 2
    except BrokenPipeError:  # whoever read our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, MemoryError) as error:  # a disk, a permission or an odd file name that no message foresaw
        names = [str(name) for name in (getattr(error, f"filename{part}", None) for part in ("", "2")) if name]
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        parts = [" and ".join(names), "out of memory" if isinstance(error, MemoryError) else "", reason]
        text = " ".join(": ".join(filter(None, parts)).split())
        print(f"error: {text}; {advise(error)}", file=sys.stderr)
        _show_traceback()
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, RuntimeError) and "home directory" in str(error):  # of pathlib
            print(
                "error: a path that begins with ~ must name a user of this machine, received another; mend it",
                file=sys.stderr,
            )
            _show_traceback()
            return 2
        if (told := _describe_memory(error)) is None:
            raise
        print(
            f"error: {told}; give smaller batches (--train_batch_size, --test_batch_size) or a smaller --model",
            file=sys.stderr,
        )
        _show_traceback()
        return 2
    return 0


def _end_at_once():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_LOST)


@contextlib.contextmanager
def naming_memory(remedy: str):
    """Turns what TensorFlow raises where it finds no memory into a `UsageError` of one line that ends with `remedy`."""
    try:
        yield
    except Exception as error:
        if (told := _describe_memory(error)) is None:
            raise
        raise UsageError(f"{told}; {remedy}") from error


def _describe_memory(error: BaseException) -> str | None:
    """What an error says of memory that TensorFlow did not get; None if it is another error. TensorFlow need not be imported for that."""
    text = str(error)
    lacks = type(error).__name__ == "ResourceExhaustedError" or any(sign in text for sign in _MEMORY_SIGNS)
    if not lacks or isinstance(error, OSError | MemoryError):
        return None
    shape = re.search(r"tensor with shape\s?\[([\d,]+)\]", text)
    return "there is too little memory" + (f" for a tensor of {shape[1].replace(',', ' x ')} numbers" if shape else "")


def advise(error: BaseException) -> str:
    """What a user can do about an error of the operating system or of the memory."""
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return "there is too little memory; give smaller batches or fewer images, or end other programs"
    if number in _FULL:
        return "make room or give another place"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give a place that you may use, mend the rights, or close the program that holds it"
    if number == errno.ENOENT:
        return "there is no such file or folder; check the name"
    return "give another file or folder"


def _show_traceback():
    """Prints the traceback of the error that is handled, for who asks for it."""
    if os.environ.get("RESNET_STUDY_DEBUG", "") not in ("", "0"):
        traceback.print_exc()


def one_line(error: BaseException) -> str:
    """Kind and message of an error, at most 200 characters, see `shorten`."""
    return shorten(f"{type(error).__name__}: {error}")
