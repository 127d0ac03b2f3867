"""Structured pruning: a smaller dense network from the channels between the convolutions of the residual blocks that matter most.

The residual stream keeps its channels, since all blocks of a stage add to it. Widths stay multiples of 16, which processors compute
without waste; of a block that begins no stage even the last channels may go, and the block with them.

find_inner(model)                 the channels that can be pruned
score_channels(model, ...)        what each of them is worth
choose_widths(model, scores, ...) which to keep, for a share of the multiply-adds
keep_channels(source, target, scores) the weights of what was kept
"""

import collections
import dataclasses
import re

import keras
import numpy as np
import tensorflow as tf

from resnet_study.data import streams
from resnet_study.errors import UsageError
from resnet_study.networks.multiply_adds import multiply_adds

STEP = 16  # channels that are kept or go together
_IMAGES, _BATCH = 1000, 100


@dataclasses.dataclass(frozen=True)
class Inner:
    """Channels within a residual block.

    Attributes:
        block: name of the block.
        before: the convolution that makes them.
        norm: their batch normalisation.
        after: the convolution that reads them.
    """

    block: str
    before: keras.layers.Conv2D
    norm: keras.layers.BatchNormalization
    after: keras.layers.Conv2D

    @property
    def width(self) -> int:
        return self.before.filters


def find_inner(model: keras.Model) -> list[Inner]:
    """The channels that can be pruned, from the first block to the last.

    Raises:
        UsageError: the network has no residual blocks of this library.
    """
    readers = collections.defaultdict(list)
    for layer in model.layers:
        for tensor in keras.tree.flatten(layer.input):
            readers[id(tensor)].append(layer)
    found = []
    for before in model.layers:
        block, norm, after = _block_of(before), None, before
        while block and (after is before or type(after) is not keras.layers.Conv2D):
            if isinstance(after, keras.layers.BatchNormalization):
                norm = after
            # What two layers read is the residual stream.
            after = next(iter(readers[id(after.output)]), None) if len(readers[id(after.output)]) == 1 else None
            if after is None or _block_of(after, keras.layers.Layer) != block or isinstance(after, keras.layers.Add):
                break
        else:
            if block:
                found.append(Inner(block, before, norm, after))
    if not found:
        raise UsageError(
            f"expected a network of residual blocks to prune, received {model.name}; give one such as resnet20 or resnet9"
        )
    return found


def _block_of(layer, kind=keras.layers.Conv2D):
    match = re.match(r"stage\d+_block\d+", layer.name)
    return match[0] if match and isinstance(layer, kind) and "shortcut" not in layer.name else ""


def score_channels(model: keras.Model, criterion: str, training, seed: int) -> list[np.ndarray]:
    """What each channel of `find_inner` is worth.

    Args:
        model: network from raw pixels to probabilities.
        criterion: "taylor" = the square of the change of the loss, to first order, if the channel were 0, as mean over images (Molchanov
            et al. 2019, arXiv:1906.10771); "l1" = sum of the absolute weights of its filter; "norm" = absolute scale (gamma) of its
            batch normalisation.
        training: `cifar10_input.Split` of training images, of which "taylor" takes 1,000.
        seed: which these are.

    Returns:
        For each place float [channels].

    Raises:
        UsageError: the network has several heads, no such channels, or for "norm" a batch normalisation without a scale.
    """
    if isinstance(model.output, dict):
        raise UsageError(
            f"--macs, and --widths of a network with --ckpt_path, are for one head, received {model.name} with several; leave them out"
        )
    inner = find_inner(model)
    if criterion == "l1":
        return [np.abs(place.before.kernel.numpy()).sum((0, 1, 2)) for place in inner]
    if criterion == "norm":
        if not all(place.norm.scale for place in inner):
            raise UsageError(f"--prune_by=norm needs batch norm with a scale, which {model.name} has not; give taylor")
        return [np.abs(place.norm.gamma.numpy()) for place in inner]
    multi_label = np.ndim(training.labels) == 2
    watched = keras.Model(model.inputs, [model.output, *(place.after.input for place in inner)])

    @tf.function(reduce_retracing=True)
    def measure(images, labels):
        with tf.GradientTape() as tape:
            probabilities, *maps = watched(images, training=False)
            if multi_label:
                chosen = tf.where(labels == 1, probabilities, 1 - probabilities)
            else:
                chosen = tf.gather(probabilities, labels, batch_dims=1)
            loss = -tf.reduce_sum(tf.math.log(tf.maximum(chosen, 1e-9)))
        gradients = tape.gradient(loss, maps)
        changes = [tf.reduce_sum(a * b, (1, 2)) for a, b in zip(gradients, maps, strict=True)]
        return [tf.reduce_sum(change**2, 0) for change in changes]

    chosen = np.random.default_rng((seed, streams.SCORED_IMAGES)).choice(
        len(training), min(len(training), _IMAGES), replace=False
    )
    sums = [measure(*batch) for batch in training.take(chosen).batches(_BATCH)]
    return [np.sum(parts, axis=0) / len(chosen) for parts in zip(*sums, strict=True)]


def choose_widths(model: keras.Model, scores: list[np.ndarray], share: float) -> list[int]:
    """How many channels each place of `find_inner` keeps, chosen over the whole network: those go first that are worth least for
    their arithmetic.

    Args:
        model: network of `score_channels`.
        scores: of `score_channels`.
        share: of the multiply-adds that stay, above 0 and below 1.

    Returns:
        Widths, for the argument `widths` of the builders; blocks that the model has lost before have none.

    Raises:
        UsageError: the network cannot be made so small.
    """
    inner = find_inner(model)
    widths, whole = [place.width for place in inner], multiply_adds(model)
    rising = [np.sort(score) for score in scores]
    blocks = collections.defaultdict(list)
    for number, place in enumerate(inner):
        blocks[place.block].append(number)
    names = {layer.name for layer in model.layers}
    # Without a shortcut nothing would be left of a block. The first one of a stage changes the size of the maps, but where a convolution before it does.
    removable = {
        block
        for block in blocks
        if f"{block}_add" in names and (not block.endswith("_block1") or block.replace("_block1", "_conv") in names)
    }
    fixed = whole - _count(inner, widths)
    while fixed + _count(inner, widths) > share * whole:
        choices = []
        for block, numbers in blocks.items():
            smaller = [[number] for number in numbers if widths[number] > STEP]
            if not smaller and block in removable and widths[numbers[0]]:
                smaller = [numbers]
            for chosen in smaller:
                after = [
                    max(0, -(-width // STEP) - 1) * STEP if number in chosen else width
                    for number, width in enumerate(widths)
                ]
                lost = sum(
                    float(rising[n][len(rising[n]) - widths[n] : len(rising[n]) - after[n]].sum()) for n in chosen
                )
                choices.append((lost / (_count(inner, widths) - _count(inner, after)), after))
        if not choices:
            least = (fixed + _count(inner, widths)) / whole
            raise UsageError(f"--macs must be at least {least:.2f} for {model.name}, received {share:g}; give more")
        widths = min(choices)[1]
    return widths


def _count(inner, widths) -> int:
    """Multiply-adds of all convolutions that make or read inner channels of these numbers."""
    makes = {place.before: width for place, width in zip(inner, widths, strict=True)}
    reads = {place.after: width for place, width in zip(inner, widths, strict=True)}
    total = 0
    for layer in makes | reads:
        _, height, width, _ = layer.output.shape
        area = height * width * layer.kernel.shape[0] * layer.kernel.shape[1]
        total += area * reads.get(layer, layer.kernel.shape[2]) * makes.get(layer, layer.filters)
    return total


def keep_channels(source: keras.Model, target: keras.Model, scores: list[np.ndarray]) -> keras.Model:
    """Gives a narrower network the weights of the channels with the highest scores, and returns it.

    Args:
        source: network of `score_channels`.
        target: the same network with fewer `widths`.
        scores: of `score_channels`.

    Raises:
        UsageError: the target has channels or layers that the source has not.
    """
    wanted = {layer.name: layer for layer in target.layers}
    given = {layer.name: layer.get_weights() for layer in source.layers}
    for place, score in zip(find_inner(source), scores, strict=True):
        if place.before.name not in wanted:
            continue
        # In their old order, so that nothing changes where all are kept.
        kept = np.sort(np.argsort(-score, kind="stable")[: wanted[place.before.name].filters])
        for layer in (place.before, place.norm):
            given[layer.name] = [values[..., kept] for values in given[layer.name]]
        kernel, *bias = given[place.after.name]
        given[place.after.name] = [kernel[:, :, kept], *bias]
    for name, layer in wanted.items():
        if [tuple(weight.shape) for weight in layer.weights] != [values.shape for values in given.get(name, [])]:
            raise UsageError(f"expected {source.name} to have all that the pruned network has, received another {name}")
        layer.set_weights(given[name])
    return target
