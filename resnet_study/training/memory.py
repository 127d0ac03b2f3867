"""Whether a network and a batch fit into the memory, and what is said where they do not."""

import contextlib
import math

import keras
import tensorflow as tf

from resnet_study.environment import free_memory, used_gpus
from resnet_study.errors import UsageError, naming_memory

# What a step takes over what `_find_maps` counts, measured for ResNet-20, 110, 50 and ResNet-9 with one tower and two: from 1.00 to 1.11.
_MORE = 1.1
_SAFE = 1.15  # what is advised shall fit in any case
_COMPILING = 4e8  # what TensorFlow takes for itself
_WAITING = 5  # batches that are ready
_FORWARD = 3  # maps that a forward pass holds at once
_ACTIVATIONS = (keras.layers.ReLU, keras.layers.Activation)


def naming_size(config):
    """Says, where a network does not fit into the memory, what makes it smaller."""
    lower = [
        f"--{name}={value}"
        for name, value in config.model_choices.items()
        if isinstance(value, int) and value > 1 and name != "squeeze_excitation"  # by which channels are divided
    ]
    if config.dataset in ("folder", "oxford102"):
        lower.append(f"--image_size={config.image_size}")
    ways = ["use --head=pool"] * (getattr(config, "head_name", "") == "flatten")
    ways.append(f"lower {' or '.join(lower)}" if lower else f"give a smaller --model than {config.model_name}")
    return naming_memory(", or ".join(ways))


def check_batch(model: keras.Model, config, proxy: keras.Model | None = None, begun: bool = False) -> None:
    """Refuses a batch for which the memory of this machine is too small; the system would end the process for it, without a word.

    Args:
        model: that is trained.
        proxy: that chooses what it is trained on, see `proxy`.
        config: settings; uses train_batch_size, hard_share, validation_batch_size, accumulate, strategy. Nothing is refused on GPUs, which say themselves
            what is too much, or where several machines share a batch.
        begun: whether the run has begun, so that it keeps its batch.

    Raises:
        UsageError: it does not fit; the message says which batch does.
    """
    free = None if config.strategy == "multi_worker" or used_gpus(config.strategy) else free_memory()
    if free is None:
        return
    free = max(0, free - _COMPILING)
    kept, largest = _find_maps(model)
    image = 4 * math.prod(model.input_shape[1:])
    trains = (kept + 2 * largest) / config.accumulate * config.images_per_step / config.train_batch_size
    if proxy:  # which has its turn before and after
        of_proxy = _find_maps(proxy)
        trains = max(trains, of_proxy[0] + 2 * of_proxy[1])
    needs = {
        "train_batch_size": _MORE * trains + _WAITING * image,
        "validation_batch_size": _FORWARD * largest + image,
    }
    for name, each in needs.items():
        batch = getattr(config, name)
        if batch * each <= free:
            continue
        fits = max(0, int(free / (_SAFE * each)))
        parts = config.accumulate if name == "train_batch_size" else 1
        step = math.lcm(8, parts)
        fits -= fits % (step if fits >= step else parts)
        advice = f"--{name}={fits} fits" if fits and name != "train_batch_size" else _advise(fits, config)
        ways = "free some, or go on on another machine; in a new run, " if begun else ""
        raise UsageError(
            f"--{name}={batch} needs about {each * batch / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free; {ways}{advice}"
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
        with naming_memory("in a new run, " + _advise(fits * config.accumulate, config)):
            raise error


def _advise(fits, config):
    """What to do where a batch of so many images fits."""
    size = config.train_batch_size
    parts = [count for count in range(2, size + 1) if size % count == 0 and size // count * config.accumulate <= fits]
    if parts and config.images_per_step < size:  # which takes no --accumulate
        return f"--train_batch_size={fits} fits"
    if not parts:
        return "give a smaller --model or smaller images"
    return f"--train_batch_size={fits} fits; --accumulate={parts[0]} computes the batch of {size} in parts"


def _find_maps(model) -> tuple[int, int]:
    """Bytes for one image: of the maps that a backward pass needs, from the first layer on that trains, and of the largest map of all.

    A convolution, a pooling and batch norm need what they read, ReLU what it gives, a sum nothing.
    """
    kept, largest, trains = {}, 0, False
    for layer in _list_layers(model):
        outputs = keras.tree.flatten(layer.output)
        largest = max(largest, *map(_count_bytes, outputs))
        trains = trains or bool(layer.trainable_variables)
        if trains and not isinstance(layer, keras.layers.Add):
            needed = outputs if isinstance(layer, _ACTIVATIONS) else keras.tree.flatten(layer.input)
            kept |= {id(tensor): _count_bytes(tensor) for tensor in needed}
    return sum(kept.values()), largest


def _list_layers(model):
    """The layers of a network, those of networks within it too."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _list_layers(layer)
        else:
            yield layer


def _count_bytes(tensor):
    return math.prod(tensor.shape[1:]) * tf.as_dtype(tensor.dtype).size
