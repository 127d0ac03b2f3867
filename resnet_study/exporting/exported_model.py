"""Model files of other programs as models of this library: ONNX, LiteRT and SavedModel, each computed by its own runtime."""

import contextlib
import importlib.util
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import keras
import numpy as np

from resnet_study.class_names import parse_class_names
from resnet_study.errors import UsageError
from resnet_study.exporting import runtimes
from resnet_study.saved_models import check_head_names, load_model
from resnet_study.strings import as_text, shorten

# The format of a file by the end of its name; a folder may be a SavedModel.
_ENDINGS = {".onnx": "onnx", ".tflite": "litert"}
_RUNTIMES = {"onnx": "onnxruntime", "litert": "ai_edge_litert"}
_WRITERS = {"onnx": ("onnx", "tf2onnx")}
_LARGEST = 2 << 30  # bytes
_LARGEST_SIDE = 4096  # pixels


def find_format(path: str) -> str | None:
    """The format of a model file or folder that is no `.keras` file, checkpoint or run folder; None for these."""
    place = Path(path).expanduser()
    if (place / "saved_model.pb").exists():
        return "saved_model"
    return _ENDINGS.get(place.suffix.lower())


def open_model(path: str, shipped_name: str = ""):
    """A trained network that takes raw pixels 0..255 and returns probabilities, of any format.

    Args:
        path: a `.onnx` or `.tflite` file, a SavedModel folder, or what `saved_models.load_model` takes.
        shipped_name: see there.

    Returns:
        `ExportedModel`, or the keras.Model of `load_model`.

    Raises:
        UsageError: not found, damaged, too large, or not a classifier of images; or its runtime is not installed.

    Example:
        from resnet_study.exporting.exported_model import open_model

        print(open_model("cifar10").input_shape)  # (None, 32, 32, 3)
    """
    kind = find_format(path)
    return load_model(path, shipped_name) if kind is None else ExportedModel(path, kind)


class ExportedModel:
    """A model file in a process of its own, which holds its runtime and nothing of this library.

    Attributes:
        name: of the file.
        runtime: name and version of what computes it.
        input_shape: (None, height, width, channels).
        output: keras.KerasTensor [batch, classes], or with several heads a dict, name of the head -> such a tensor.
        class_names: {name of the head: names}; empty where the file tells none. A single head is called "".
    """

    def __init__(self, path: str, kind: str, threads: int = 0):
        """Starts the process.

        Args:
            path: file or folder.
            kind: a key of `runtimes.FORMATS`.
            threads: of the processor; 0 = as the runtime likes.

        Raises:
            UsageError: see `open_model`.
        """
        self._place = Path(path).expanduser()
        self.name = self._place.name if self._place.is_dir() else self._place.stem
        _check_place(self._place, kind)
        check_installed(kind)
        self._lock, self._was_interrupted = threading.Lock(), False
        self._folder = tempfile.TemporaryDirectory()  # where it may drop what it likes
        self._errors = (Path(self._folder.name) / "errors").open("w+b")
        # -P: nothing of the folder of that program is found. Packages of the user are, so not -I.
        self._command = [sys.executable, "-P", runtimes.__file__, kind, str(self._place.resolve()), str(threads)]
        self._read_facts(self._start())

    def _start(self):
        """Starts the process; returns what it tells of the file."""
        pipe = subprocess.PIPE
        self._errors.seek(0)
        self._errors.truncate()  # what an earlier process said is no reason of this one
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, stderr=self._errors, cwd=self._folder.name
        )
        try:
            return self._receive()
        except BaseException:
            self.close()
            raise

    def _read_facts(self, facts):
        height, width, channels = facts["input_shape"].tolist()
        if channels not in (1, 3) or max(height, width) > _LARGEST_SIDE:
            raise UsageError(
                f"{self._place} must take images of (height, width, channels) with 1 or 3 channels and up to {_LARGEST_SIDE} x {_LARGEST_SIDE} "
                f"pixels, received {(height, width, channels)}; give a file whose channels come last"
            )
        self.runtime, self.input_shape = str(facts["runtime"]), (None, height, width, channels)
        self.pixels = str(facts["pixels"])
        heads = [as_text(name) for name in facts["heads"].tolist()]
        if len(heads) > 1:
            check_head_names(heads, self._place)
        tensors = [keras.KerasTensor((None, size)) for size in facts["classes"].tolist()]
        self._heads = heads if len(heads) > 1 else [""]
        self.output = dict(zip(heads, tensors, strict=True)) if len(heads) > 1 else tensors[0]
        classes = dict(zip(self._heads, facts["classes"].tolist(), strict=True))
        self.class_names = parse_class_names(str(facts["class_names"]), classes, self._place)

    def answer(self, images: np.ndarray):
        """Float32 [n, classes] of one batch of raw pixels; of several heads a dict. Raises UsageError where it cannot."""
        found = self._ask(images=images)
        answers = {}
        for index, head in enumerate(self._heads):
            values = found.get(f"head_{index}")
            size = (self.output[head] if head else self.output).shape[-1]
            if values is None or values.shape != (len(images), size) or values.dtype.kind != "f":
                raise UsageError(f"{self._place} must give float numbers for {size} classes; give another file")
            answers[head] = values.astype(np.float32)
        return answers.get("", answers)

    def time(self, images: np.ndarray, seconds: float) -> float:
        """Seconds that its runtime takes for a batch of raw pixels, without their way to its process; see `runtimes.time_answers`."""
        return float(self._ask(images=images.astype(self.pixels), seconds=np.array(seconds))["seconds"])

    def list_bytes(self):
        """Yields what the file, or each file of the folder, holds."""
        for path in sorted(self._place.rglob("*")) if self._place.is_dir() else [self._place]:
            if path.is_file():
                yield path.read_bytes()

    def _ask(self, **arrays):
        with self._lock:  # the process takes one question at a time
            if self._was_interrupted:
                self._start()
                self._was_interrupted = False
            try:
                # Where it has ended, it may have said why.
                with contextlib.suppress(BrokenPipeError, ValueError):
                    runtimes.write_message(self._process.stdin, **arrays)
                return self._receive()
            except (
                BaseException
            ):  # such as Ctrl-C: the answer that is under way must not be taken for that of the next question
                self._was_interrupted = True
                self._process.kill()
                self.close()
                raise

    def _receive(self):
        try:
            message = runtimes.read_message(self._process.stdout)
        except TimeoutError:  # of a signal
            raise
        except (OSError, ValueError, zipfile.BadZipFile):
            message = None
        if message is None:
            reason = self._tell_end()
        elif "error" in message:
            reason = str(message["error"])
        else:
            return message
        raise UsageError(
            f"{self._place} is damaged, too large or no classifier of images ({shorten(reason)}); give another file"
        )

    def _tell_end(self):
        """Why the process has ended without a word."""
        self.close()
        status = self._process.returncode
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no message"
        return f"its runtime ended with {f'signal {-status}' if status < 0 else f'code {status}'}: {last}"

    def close(self):
        """Ends the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __del__(self):
        if hasattr(self, "_process"):
            self.close()
            self._errors.close()
            self._folder.cleanup()


def check_installed(kind: str, writes: bool = False) -> None:
    """Raises UsageError where a package is missing that computes files of a format, or that writes them."""
    for package in (_RUNTIMES.get(kind, "keras"), *(_WRITERS.get(kind, ()) if writes else ())):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"the format {kind} needs the package {package}, which is not installed; install the extra export: pip install -e '.[export]' in the clone"
            )


def _check_place(place, kind):
    if kind == "saved_model":
        files = [file for file in place.rglob("*") if file.is_file()]
    else:
        files = [place]
        if not place.is_file():
            raise UsageError(
                f"expected a file of the format {kind}, received '{place}'; there is none, give another path"
            )
    size = sum(file.stat().st_size for file in files)
    if size > _LARGEST:
        raise UsageError(
            f"{place} must be at most {_LARGEST:,} bytes, received {size:,}; it is too large, give another file"
        )
