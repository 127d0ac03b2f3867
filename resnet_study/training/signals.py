"""What ends a training early: signals while a step runs, a loss without a value, machines that are gone, images that cannot be read."""

import contextlib
import math
import os
import re
import signal
import threading

import tensorflow as tf

from resnet_study.errors import LostMachineError, UsageError, naming_memory

_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


@contextlib.contextmanager
def catch_signals():
    """Collects SIGINT and SIGTERM instead of dying in the middle of a step; a second SIGINT ends at once."""
    caught = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return

    def note(number, _frame):
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))
        if len(caught) == 1:  # not by `print`, which this may have interrupted
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(2, b"\nstopping after this step, then writing a checkpoint; Ctrl-C again ends at once\n")

    stops = [
        signal.SIGINT,
        signal.SIGTERM,
        *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else []),
    ]  # Ctrl-Break of Windows
    before = {number: signal.signal(number, note) for number in stops}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_loss(loss: float, step: int, task, run) -> None:
    """Raises UsageError unless `loss`, of a batch or of the validation part after `step` steps, is finite."""
    if not math.isfinite(loss):
        rate = "--fine_tune_lr" if getattr(task, "unfrozen", False) else "--init_lr or lengthen --warmup_steps"
        raise UsageError(
            f"the loss must be finite, received {loss} at step {step} (learning rate {task.learning_rate(step):g}); in a new run, "
            f"lower {rate}; last good checkpoint: {run.latest_checkpoint() or 'none'}"
        )


@contextlib.contextmanager
def naming_errors(config, run):
    """Says of what TensorFlow raises while it trains what a user can do about it."""
    sizes = f"--train_batch_size={config.train_batch_size} or --validation_batch_size={config.validation_batch_size}"
    try:
        with naming_memory(f"lower {sizes}, in a new run"):
            yield
    except tf.errors.OpError as error:
        # The input pipeline wraps what is raised while it reads.
        if reason := re.search(r"UsageError: (.*)", error.message):
            raise UsageError(reason[1]) from error
        if config.strategy != "multi_worker" or not isinstance(error, _LOST):
            raise
        raise LostMachineError(
            "another machine has stopped or cannot be reached; see what it said, then start all machines again with: "
            f"{config.resume_command(run.path)}"
        ) from error
