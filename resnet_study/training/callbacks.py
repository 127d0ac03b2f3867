"""Stock Keras callbacks in this library's loop: which of them run, and what they are told and shown.

A callback sees the model as users get it: raw pixels 0..255 to probabilities, whole, in float32, with the averaged weights where
there are any. It is brought up to date before training begins, at each report and at the end; between reports it is that of the
last one. One Keras "epoch" is one report interval.
"""

import keras

from resnet_study.errors import UsageError

# What this library does itself, and the setting that does it.
_REFUSED = {
    "LearningRateScheduler": "the learning rate is that of the settings; use --lr_schedule",
    "ReduceLROnPlateau": "the learning rate is that of the settings; use --lr_schedule",
    "BackupAndRestore": "every report writes a checkpoint; use --resume",
    "SwapEMAWeights": "averages are kept and tested with a setting; use --weight_averaging",
    "OrbaxCheckpoint": "every report writes a checkpoint; use --resume, or ModelCheckpoint for files of your own",
}


def check_callbacks(callbacks) -> None:
    """Raises UsageError for a callback that cannot do its job here; the message names the setting that does it."""
    for callback in callbacks:
        for kind in type(callback).__mro__:
            if kind.__name__ in _REFUSED and kind.__module__.startswith("keras."):
                raise UsageError(f"{_REFUSED[kind.__name__]}; received the callback {type(callback).__name__}")
        if isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_freq != "epoch":
            raise UsageError(
                "the model that callbacks see changes at reports; expected ModelCheckpoint with save_freq='epoch', received "
                f"{callback.save_freq!r}; use --report_freq"
            )


def make_callback_list(callbacks, model, *, epochs: int, steps: int) -> keras.callbacks.CallbackList:
    """A `CallbackList` whose callbacks know the direction of every metric that `run_log.callback_logs` tells.

    Args:
        callbacks: checked by `check_callbacks`.
        model: see the head of this file.
        epochs: reports of the whole training.
        steps: batches between reports.
    """
    for callback in callbacks:
        # Keras looks for the direction in the compiled metrics of a model; this loop compiles none.
        if getattr(callback, "mode", None) == "auto" and str(getattr(callback, "monitor", "")).endswith("accuracy"):
            callback.mode = "max"
    return keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs, steps=steps, verbose=1)
