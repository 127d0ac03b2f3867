"""A trained network made of stock Keras layers only, so that it computes where this library is not installed."""

import keras
import numpy as np

from resnet_study.networks.fold_batch_norm import fold_batch_norm, read_statistics
from resnet_study.networks.layers import (
    CaffePreprocessing,
    LocalResponseNormalization,
    PatchWhitening,
    PixelNormalization,
    ZeroPadChannels,
    finalize_layers,
    sigmoid_gelu,
)


def make_plain(model: keras.Model) -> keras.Model:
    """Copies a trained network in float32, without any layer of this library; batch normalisation is folded, see `fold_batch_norm`.

    Args:
        model: functional network of this library, or one of stock Keras layers; it is not changed.

    Returns:
        keras.Model with the input and the outputs of `model`, equal within rounding. `keras.saving.load_model` opens its file with
        Keras alone, also under the backends JAX and PyTorch.

    Raises:
        ValueError: the model is not functional, or uses a layer in several places.

    Example:
        from resnet import build_resnet20
        from resnet_study.exporting.plain_keras import make_plain

        print(make_plain(build_resnet20(weights="cifar10")).output_shape)  # (None, 10)
    """
    return _copy(fold_batch_norm(model))


def _copy(model):
    copy = keras.models.clone_model(model, clone_function=_copy_layer, call_function=_call_layer)
    for layer in copy.layers:
        if layer.weights and not isinstance(layer, keras.Model):  # a model within has been copied with its weights
            source = model.get_layer(layer.name)
            layer.set_weights(_scale_channels(source) if _scales_channels(source) else source.get_weights())
    finalize_layers(copy)
    copy.trainable = False
    return copy


def _scales_channels(layer) -> bool:
    """Whether a layer is batch normalisation of maps: written as a convolution of single pixels, which an int8 file rounds once, and
    channel by channel.
    """
    return isinstance(layer, keras.layers.BatchNormalization) and len(layer.output.shape) == 4 and layer.axis in (-1, 3)


def _scale_channels(layer) -> list[np.ndarray]:
    """Kernel and bias of that convolution."""
    mean, factor, beta = read_statistics(layer)
    return [factor[None, None, :, None], beta - mean * factor]


# What takes the place of a layer of this library and keeps its weights.
_STOCK = {PatchWhitening: keras.layers.Conv2D}


def _copy_layer(layer):
    if _scales_channels(layer):
        return keras.layers.DepthwiseConv2D(1, dtype="float32", name=layer.name)
    if not isinstance(layer, keras.layers.Layer) or type(layer) in _COMPUTE or _is_sigmoid_gelu(layer):
        return layer  # never called: its place is taken by operations
    if isinstance(layer, keras.Model):
        return _copy(layer)
    config = layer.get_config()
    left = ("channels", "size", "epsilon") if isinstance(layer, PatchWhitening) else ()
    # How weights begin and are trained is over, and may be of this library, too.
    training = ("_initializer", "_regularizer", "_constraint")
    config = {name: value for name, value in config.items() if name not in left and not name.endswith(training)}
    return _STOCK.get(type(layer), type(layer)).from_config(config)


def _call_layer(layer, inputs, *arguments, **options):
    if _is_sigmoid_gelu(layer):
        return inputs * keras.ops.sigmoid(1.702 * inputs)
    if type(layer) in _COMPUTE:
        return _COMPUTE[type(layer)](layer, inputs)
    options.pop("mask", None)  # which batch normalisation takes, and what stands for it does not
    return layer(inputs, *arguments, **options)


def _is_sigmoid_gelu(layer):
    return isinstance(layer, keras.layers.Activation) and layer.activation is sigmoid_gelu


def _normalize_pixels(layer, images):
    images = keras.ops.cast(images, "float32")
    if not layer.per_image:
        return _rescale(layer, images, np.asarray(layer.mean, np.float64), np.asarray(layer.scale, np.float64))
    mean, variance = keras.ops.moments(images, axes=(1, 2, 3), keepdims=True)
    return (images - mean) / keras.ops.maximum(keras.ops.sqrt(variance), float(np.prod(images.shape[1:])) ** -0.5)


def _standardize(layer, inputs):
    """A `keras.layers.Normalization` over the channels, whose mean and variance converters take for further inputs of the file."""
    if layer.invert or layer.axis not in ((), (-1,), (len(inputs.shape) - 1,)):
        return layer(inputs)
    mean = np.ravel(np.asarray(layer.mean, np.float64))
    scale = np.maximum(np.sqrt(np.ravel(np.asarray(layer.variance, np.float64))), keras.config.epsilon())
    return _rescale(layer, inputs, mean, scale)


def _rescale(layer, inputs, mean, scale):
    """(inputs - mean) / scale by a stock layer of the name of `layer`."""
    rescaling = keras.layers.Rescaling((1 / scale).tolist(), (-mean / scale).tolist(), dtype="float32", name=layer.name)
    return rescaling(inputs)


def _pad_channels(layer, maps):
    missing = layer.filters - maps.shape[-1]
    return keras.ops.pad(maps, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


def _divide_by_energy(layer, maps):
    height, width, channels = maps.shape[1:]
    energy = keras.ops.pad(keras.ops.square(maps), ((0, 0), (0, 0), (0, 0), (2, 2)))
    energy = keras.ops.reshape(energy, (-1, height * width, channels + 4, 1))
    # The mean of five neighbours, so five times alpha.
    means = keras.ops.average_pool(energy, (1, 5), (1, 1), "valid", "channels_last")
    return maps / (2 + 5e-4 * keras.ops.reshape(means, (-1, height, width, channels))) ** 0.75


_COMPUTE = {
    PixelNormalization: _normalize_pixels,
    keras.layers.Normalization: _standardize,
    CaffePreprocessing: lambda layer, images: keras.ops.flip(_normalize_pixels(layer, images), axis=-1),
    ZeroPadChannels: _pad_channels,
    LocalResponseNormalization: _divide_by_energy,
}
