"""What a training says while it goes on: the columns of `error.csv`, the lines of the console, what callbacks are told."""

import contextlib
import datetime
import sys
import time

import pandas as pd
import tensorflow as tf

_MANY_EPOCHS = 100
_RATE_OF_SGD = 0.02  # from which on Adam hardly learns


def name_columns(part: str, sums: dict, images: int) -> dict:
    """Means of the sums that a step returns, under the names of `error.csv`: loss in nat, error in %, a head's name behind."""
    columns = {}
    for name, value in sums.items():
        kind, _, head = name.partition("_")
        if kind in ("loss", "wrong"):
            column, factor = ("loss", 1) if kind == "loss" else ("error", 100)
            columns["_".join(filter(None, (part, column, head)))] = factor * value / images
    return columns


def note_large_batch(batch_size: int, images: int) -> str:
    """A line that is due where a batch holds some training images more than once; "" elsewhere."""
    if batch_size <= images:
        return ""
    return (
        f"\nnote: a batch of {batch_size:,} images is more than the {images:,} training images, so it holds some of them more than once; "
        f"--train_batch_size={images} does not"
    )


def note_long_warmup(warmup_steps: int, steps: int) -> str:
    """A line that is due where the learning rate rises for half of the training or more; "" elsewhere."""
    shorter = max(1, steps // 10)
    if 2 * warmup_steps < steps or warmup_steps <= shorter:
        return ""
    return f"\nnote: the learning rate rises through {warmup_steps:,} of the {steps:,} steps; give a smaller --warmup_steps, such as {shorter}"


def note_rates(config) -> str:
    """Lines that are due where the learning rate begins or ends above its highest, or Adam has that of SGD; "" elsewhere."""
    lines, rate = "", config.init_lr
    if config.warmup_steps and config.warmup_lr > rate:
        lines += (
            f"\nnote: the warm-up begins above the highest learning rate, at --warmup_lr={config.warmup_lr:g}, and falls to --init_lr={rate:g}; give "
            f"such as --warmup_lr={rate / 10:g}"
        )
    highest = {"init_lr": rate}
    if getattr(config, "unfreeze_at_epoch", 0) and config.fine_tune_lr:  # 0 stays 0
        highest["fine_tune_lr"] = config.fine_tune_lr
    for name, value in highest.items() if config.lr_schedule in ("linear", "cosine") else ():
        if config.final_lr > value:
            lines += f"\nnote: the learning rate rises to the end, from --{name}={value:g} to --final_lr={config.final_lr:g}; give a lower --final_lr"
    if config.optimizer == "adam" and rate >= _RATE_OF_SGD:
        lines += f"\nnote: --init_lr={rate:g} is a learning rate of SGD; Adam needs one such as --init_lr=0.001"
        lines += " --warmup_lr=0.0001" * (config.warmup_steps > 0)
    return lines


def note_late_decay(config) -> str:
    """A line that is due where the steps of the schedule come after the end, and not by the preset's own will; "" elsewhere."""
    steps, usual = config.train_steps, config.as_preset()
    is_meant = usual.lr_schedule == "step" and usual.decay_step0 >= usual.train_steps
    if config.lr_schedule != "step" or config.decay_step0 < steps or is_meant:
        return ""
    return (
        f"\nnote: the learning rate never falls: --decay_step0={config.decay_step0} is not before the end, {steps}; give such as "
        f"--decay_step0={steps // 2} --decay_step1={3 * steps // 4}"
    )


def note_many_epochs(steps: int, batch_size: int, images: int, may_stop: bool) -> str:
    """A line that is due where each training image is seen very often; "" elsewhere. `may_stop`: whether there is --patience to advise."""
    if steps * batch_size <= 2 * _MANY_EPOCHS * images:
        return ""
    fewer = max(1, _MANY_EPOCHS * images // batch_size)
    return (
        f"\nnote: each image is seen {steps * batch_size / images:,.0f} times; --train_steps={fewer} --warmup_steps={fewer // 10} ({_MANY_EPOCHS} times) is "
        "shorter" + ", and --patience=5 stops where the validation error falls no more" * may_stop
    )


def smooth(values: list[float], decay: float) -> float:
    """The last point of the smoothed curve through `values`, one a report; that of the untrained model is left out."""
    return float(pd.Series(values[1:] or values).ewm(alpha=1 - decay).mean().iloc[-1])


def seconds_left(history: list[dict], train_steps: int) -> float | None:
    """Remaining time at the speed of the last reports, reports included; None before the first interval has ended."""
    recent = history[-4:]
    steps = recent[-1]["step"] - recent[0]["step"]
    if not steps:
        return None
    return (recent[-1]["seconds"] - recent[0]["seconds"]) / steps * (train_steps - recent[-1]["step"])


class Forecast:
    """Times the first steps of a training, to tell once what all of it will take; of one that goes on, at the speed of its last reports."""

    _FILLING, _MEASURED = 5, 20  # steps that wait for the pipeline to fill, and steps that are measured

    def __init__(self, known: float | None = None):
        """`known`: the remaining seconds of a training that goes on, see `seconds_left`."""
        self._began, self._steps, self._report_seconds, self._known = time.perf_counter(), 0, 0.0, known

    @property
    def measures(self) -> bool:
        """Whether it still times steps, which no device may run ahead of then."""
        return self._steps < self._FILLING + self._MEASURED

    def end_report(self) -> None:
        """To be called when the first report is made."""
        self._report_seconds = time.perf_counter() - self._began

    def end_step(self, steps_left: int, reports_left: int) -> str:
        """To be called after each step. Returns the line to print, once; else ""."""
        self._steps += 1
        if self._steps == self._FILLING:
            self._began = time.perf_counter()
        if self._steps != self._FILLING + self._MEASURED or not steps_left:
            return ""
        step_seconds = (time.perf_counter() - self._began) / self._MEASURED
        report_seconds = self._report_seconds
        if self._known is not None:
            report_seconds = max(0.0, self._known - step_seconds * steps_left) / max(1, reports_left)
        return forecast(step_seconds, steps_left, report_seconds, reports_left)


def forecast(step_seconds: float, steps: int, report_seconds: float, reports: int) -> str:
    """What a training will take, by its first steps and its first report, and the memory that it has taken so far."""

    def name_time(seconds):
        units = ((7200, 3600, ".1f", "h"), (100, 60, ".0f", "min"), (0, 1, ".0f", "s"))
        return next(f"{seconds / unit:{places}} {name}" for least, unit, places, name in units if seconds >= least)

    # The first report also compiles, so it takes longer than the others will.
    least, most = step_seconds * steps, step_seconds * steps + report_seconds * reports
    time = name_time(most) if most < 1.25 * least else f"{name_time(least)} to {name_time(most)}"
    memory = []
    with contextlib.suppress(ImportError):  # Windows has no such module
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        memory.append(f"{peak / 1e9:.1f} GB of memory")
    memory += [
        f"{tf.config.experimental.get_memory_info(gpu.name.removeprefix('/physical_device:'))['peak'] / 1e9:.1f} GB of {gpu.name[-5:]}"
        for gpu in tf.config.get_visible_devices("GPU")
    ]
    return f"about {', '.join([time, *memory])}: {steps:,} steps at {1000 * step_seconds:.0f} ms, {reports} reports"


def callback_logs(row: dict) -> dict:
    """A row of `error.csv` under the names that stock callbacks monitor; accuracies are shares of 1."""
    logs = {"loss": row["train_loss"], "accuracy": 1 - row["train_error"] / 100, "learning_rate": row["learning_rate"]}
    if "validation_error" in row:
        logs |= {"val_loss": row["validation_loss"], "val_accuracy": 1 - row["validation_error"] / 100}
    return logs


def format_row(row: dict, train_steps: int, seconds: float | None) -> str:
    """The console line of a row of `error.csv`, with the remaining time in `seconds`."""
    errors = "".join(
        f"  {part} error {row[f'{part}_error']:5.2f} %"
        for part in ("train", "validation", "test")
        if f"{part}_error" in row
    )
    left = "" if seconds is None else f"  left {datetime.timedelta(seconds=round(seconds))}"
    return (
        f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}  step {row['step']:>6,}/{train_steps:,}  loss {row['train_loss']:.4f}  "
        f"{row['examples_per_sec']:>7,.0f} images/s{errors}{left}"
    )
