"""The event files of a run, which TensorBoard shows: written, measured, and cut off where a resumed run goes on."""

import contextlib
import os
from pathlib import Path

import keras
import tensorflow as tf

from resnet_study.errors import UsageError, one_line
from resnet_study.training.run_log import smooth


def event_sizes(folder: Path) -> dict[str, int]:
    """Bytes of each event file: what a checkpoint notes, so that `trim_events` can go back to it."""
    return {path.name: path.stat().st_size for path in folder.glob("events.out.tfevents.*") if path.is_file()}


def trim_events(folder: Path, sizes: dict[str, int]) -> None:
    """Takes the event files back to the sizes they had, so that no step is in them twice when it is trained again."""
    for name, size in event_sizes(folder).items():
        path, before = folder / name, sizes.get(name)
        if not isinstance(before, int) or before <= 0:
            path.unlink()
        elif size > before:
            os.truncate(path, before)


class TensorBoardLog:
    """The event files of a run: scalars under the names of the original stack, histogram and share of zeros of activations.

    Attributes:
        watches: whether activations are measured.
    """

    def __init__(self, folder, model: keras.Model, images):
        """Opens a new event file.

        Args:
            folder: of the event files.
            model: whose activation layers are measured at each report.
            images: normalised, [n, height, width, channels], on which they are measured; None = no layers, as for a backbone of 50 or
                152 layers, which would fill the disk.

        Raises:
            UsageError: the files cannot be written.
        """
        self._folder, self._images, self.watches = folder, images, images is not None
        with self._naming_errors():
            self._writer = tf.summary.create_file_writer(os.fsencode(folder))  # a path need not be text
        self._activations = None
        if images is not None:
            kinds = keras.layers.ReLU | keras.layers.Activation
            outputs = {layer.name: layer.output for layer in model.layers if isinstance(layer, kinds)}
            self._activations = keras.Model(model.inputs, outputs)

    def write_start(self, images, labels, step):
        """Writes the first training batch, images float [batch, height, width, channels] of any range, and the graph of `step`.

        `step` is the compiled function of images, labels and steps so far that trains; None = no graph is written.
        """
        with self._naming_errors(), self._writer.as_default(step=0):
            if step is not None:
                tf.summary.graph(step.get_concrete_function(images, labels, tf.TensorSpec((), tf.int64)).graph)
            low, high = tf.reduce_min(images), tf.reduce_max(images)
            tf.summary.image("images", (images - low) / (high - low), max_outputs=16)

    def write(self, history: list[dict], decay: float, full_validation: bool):
        """Writes what a report tells.

        Args:
            history: rows of `error.csv`, the last one the report's.
            decay: of the smoothed curves, per report.
            full_validation: whether the validation error is that of all validation images.
        """
        row = history[-1]
        scalars = {"learning_rate": row["learning_rate"]}
        for name, column, unit in (
            ("train_loss", "train_loss", 1),
            ("train_top1_error", "train_error", 100),
            ("val_loss", "validation_loss", 1),
            ("val_top1_error", "validation_error", 100),
        ):
            if column in row:
                scalars[name] = row[column] / unit
                scalars[f"{name}_avg"] = smooth([earlier[column] for earlier in history], decay) / unit
        if full_validation and "val_top1_error" in scalars:
            scalars["full_validation_error"] = scalars["val_top1_error"]
        if "test_error" in row:
            scalars["test_top1_error"] = row["test_error"] / 100
        with self._naming_errors():
            with self._writer.as_default(step=row["step"]):
                for name, value in scalars.items():
                    tf.summary.scalar(name, value)
                measured = self._activations(self._images, training=False) if self._activations else {}
                for name, values in measured.items():
                    values = tf.cast(values, tf.float32)
                    tf.summary.histogram(f"{name}/activations", values)
                    tf.summary.scalar(f"{name}/sparsity", tf.math.zero_fraction(values))
            self._writer.flush()

    @contextlib.contextmanager
    def _naming_errors(self):
        try:
            yield
        except tf.errors.OpError as error:
            raise UsageError(
                f"could not write to {self._folder} ({one_line(error)}); make room or use --tensorboard=false"
            ) from error
