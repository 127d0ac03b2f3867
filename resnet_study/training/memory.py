"""Whether a network and a batch fit into the memory, and what is said where they do not."""

import contextlib
import math

import keras
import tensorflow as tf

from resnet_study.environment import free_memory, used_gpus
from resnet_study.errors import UsageError, naming_memory

# Memory of a step over the outputs of the layers that train, measured for ResNet-20, 110, 50 and ResNet-9 with one tower and two: from 0.61
# to 1.07. So a batch is refused only where the least of it is too much, and what is advised fits in any case.
_LEAST, _MOST = 0.6, 1.1


def naming_size(config):
    """Says, where a network does not fit into the memory, what makes it smaller."""
    lower = [
        f"--{name}={value}" for name, value in config.model_choices.items() if isinstance(value, int) and value > 1
    ]
    if config.dataset in ("folder", "oxford102"):
        lower.append(f"--image_size={config.image_size}")
    ways = ["use --head=pool"] * (getattr(config, "head_name", "") == "flatten")
    ways.append(f"lower {' or '.join(lower)}" if lower else f"give a smaller --model than {config.model_name}")
    return naming_memory(", or ".join(ways))


def check_batch(model: keras.Model, config) -> None:
    """Refuses a batch for which the memory of this machine is too small; the system would end the process for it, without a word.

    Args:
        model: that is trained.
        config: settings; uses train_batch_size, accumulate, strategy. Nothing is refused on GPUs, which say themselves what is too much, or where
            several machines share a batch.

    Raises:
        UsageError: it does not fit; the message says which batch does.
    """
    free = None if config.strategy == "multi_worker" or used_gpus(config.strategy) else free_memory()
    image = _count_bytes(model)
    at_once = config.train_batch_size // config.accumulate
    if free is None or _LEAST * image * at_once <= free:
        return
    fits = int(free / (_MOST * image))
    fits -= fits % 8 if fits > 8 else 0
    raise UsageError(
        f"--train_batch_size={config.train_batch_size} needs {_LEAST * image * at_once / 1e9:.1f} GB of memory or more, "
        f"{free / 1e9:.1f} are free; {_advise(fits, config)}"
    )


@contextlib.contextmanager
def naming_batch(stage, config):
    """Says, where the memory of a device ends while a batch is trained, which batch fits: it is tried.

    Args:
        stage: `resnet_study.training.stage.Stage`.
        config: settings; uses train_batch_size, accumulate.
    """
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        fits = stage.find_fitting(config.train_batch_size // config.accumulate)
        if not fits:
            raise
        with naming_memory(_advise(fits, config)):
            raise error


def _advise(fits, config):
    """What to do where so many images at once fit."""
    size = config.train_batch_size
    parts = [count for count in range(2, size + 1) if size % count == 0 and size // count <= fits]
    if not parts:
        return "give a smaller --model or smaller images"
    return f"--train_batch_size={fits} fits; --accumulate={parts[0]} computes the batch of {size} in parts"


def _count_bytes(model):
    """Bytes of the outputs of a network's layers for one image, from the first layer on that trains: what a backward pass keeps."""
    total = 0
    for layer in model.layers:
        if total == 0 and not layer.trainable_variables:
            continue
        if isinstance(layer, keras.Model):
            total += _count_bytes(layer)
            continue
        for output in keras.tree.flatten(layer.output):
            total += math.prod(output.shape[1:]) * tf.as_dtype(output.dtype).size
    return total
