"""A trained network made faster for inference: batch normalisation folded into the convolutions, bfloat16 where that helps."""

import collections

import keras
import numpy as np

from resnet_study.networks.first_and_last import find_first, list_operations
from resnet_study.networks.graph import find_producers, inputs_of
from resnet_study.networks.layers import PixelNormalization, finalize_layers
from resnet_study.saved_models import as_functional


def fold_batch_norm(model: keras.Model, dtype: str = "float32") -> keras.Model:
    """Copies a network for inference, with each batch normalisation that follows a convolution made a part of it.

    With fixed statistics, BN(conv(x)) = gamma * (conv(x) - mean) / sqrt(variance + epsilon) + beta is itself a convolution
    with a bias. Folded are pairs of a linear `Conv2D` and a `BatchNormalization` over the channels which alone reads it;
    any other batch normalisation (in pre-activation networks those behind an addition) is kept.

    Args:
        model: functional network of this library, or one of stock Keras layers; it is not changed. A model within it, such as a
            backbone of `keras.applications`, is folded in the same way.
        dtype: dtype policy of the layers that work on maps [batch, height, width, channels]: "float32", or "mixed_bfloat16"
            for processors that are faster in it (`devices.choose_policy("auto", "auto")` knows). Then pixel
            normalisation, the first convolution and what is before it, global pooling, dense layer and softmax stay as they are, float32 in the networks
            of this library. With "float32" all layers are, whatever the model computes in.

    Returns:
        keras.Model with the inputs and outputs of `model`, not trainable. In float32 the probabilities are equal within
        rounding, about 1e-6; in bfloat16 the networks of `pretrained/` name the same class as in float32 for at least 99.8 %
        of the test images of their data set.

    Raises:
        ValueError: unknown dtype, a model that is not functional, or one that uses a layer in several places.

    Example:
        from resnet import build_resnet20
        from resnet_study.networks.fold_batch_norm import fold_batch_norm

        fast = fold_batch_norm(build_resnet20(weights="cifar10"))
        print(fast.output_shape)  # (None, 10)
    """
    if dtype not in ("float32", "mixed_bfloat16"):
        raise ValueError(f"dtype must be 'float32' or 'mixed_bfloat16', received {dtype!r}")
    convolutions = find_pairs(model)
    folded = {convolution.name: norm for norm, convolution in convolutions.items()}
    # Rounding the pixels to 8 bits is the largest part of the error of bfloat16, and these layers have next to no work.
    first = {model.operations[place] for place in find_first(list_operations(model))}

    def copy_layer(layer):
        if not isinstance(layer, keras.layers.Layer) or layer in convolutions:
            return layer  # a plain operation has no weights to share; a folded layer is never called
        if isinstance(layer, keras.Model):
            return fold_batch_norm(as_functional(layer), dtype)
        config = layer.get_config()
        on_maps = len(getattr(layer.output, "shape", ())) == 4 and layer not in first
        if (on_maps or dtype == "float32") and not isinstance(layer, PixelNormalization):
            config["dtype"] = dtype
        if layer.name in folded:
            config["use_bias"] = True
        return type(layer).from_config(config)

    def call_layer(layer, inputs, *arguments, **options):
        return inputs if layer in convolutions else layer(inputs, *arguments, **options)

    copy = keras.models.clone_model(model, clone_function=copy_layer, call_function=call_layer)
    for layer in copy.layers:
        if not layer.weights or isinstance(layer, keras.Model):
            continue
        source = model.get_layer(layer.name)
        layer.set_weights(_fold(source, folded[layer.name]) if layer.name in folded else source.get_weights())
    finalize_layers(copy)
    copy.trainable = False
    return copy


def find_pairs(model) -> dict:
    """Batch normalisation -> the convolution that can take it in, of a functional model. Raises ValueError for another one."""
    if not hasattr(model, "operations"):
        raise ValueError(f"expected a functional model, received {type(model).__name__} '{model.name}'")
    # With a second use of a layer, somebody reads what nobody produces.
    producers = find_producers(model)
    read = [id(tensor) for operation in model.operations for tensor in inputs_of(operation)]
    readers = collections.Counter(read + [id(tensor) for tensor in model.outputs])
    if not readers.keys() <= producers.keys():
        raise ValueError(f"expected a model that uses each layer once, received '{model.name}'")
    pairs = {}
    for norm in model.layers:
        # An exact type for the convolution: a subclass may compute something else.
        if isinstance(norm, keras.layers.BatchNormalization) and norm.axis in (-1, len(norm.output.shape) - 1):
            before = producers.get(id(norm.input))
            linear = type(before) is keras.layers.Conv2D and before.activation is keras.activations.linear
            if linear and before.data_format == "channels_last" and readers[id(norm.input)] == 1:
                pairs[norm] = before
    return pairs


def read_statistics(norm: keras.layers.BatchNormalization) -> tuple:
    """(mean, factor, beta) of batch normalisation with fixed statistics, (x - mean) * factor + beta; in float64, so that what is made of
    them rounds once. A layer without a centre has the beta 0.0.
    """
    mean, variance = (np.asarray(weight, np.float64) for weight in (norm.moving_mean, norm.moving_variance))
    factor = (np.asarray(norm.gamma, np.float64) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
    return mean, factor, np.asarray(norm.beta, np.float64) if norm.center else 0.0


def _fold(convolution, norm) -> list[np.ndarray]:
    """Kernel and bias of the convolution that computes norm(convolution(x))."""
    kernel, *bias = (np.asarray(weight, np.float64) for weight in convolution.get_weights())
    mean, factor, beta = read_statistics(norm)
    return [kernel * factor, beta + ((bias[0] if bias else 0.0) - mean) * factor]
