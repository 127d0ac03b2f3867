"""What all builders have in common: arguments checked, the input, the pooling and the dense layer at the end, the weights."""

import numbers
import operator

import keras
from keras import layers

from resnet_study.devices import check_keras
from resnet_study.networks.layers import PixelNormalization
from resnet_study.networks.registry import SHIPPED
from resnet_study.networks.weights import load_weights, open_weights
from resnet_study.strings import shorten


def check_shape(input_shape, input_tensor, smallest: int, hint: str = "") -> tuple[int, int, int]:
    """The shape (height, width, channels) of the images of a network.

    Args:
        input_shape: argument of the builder.
        input_tensor: argument of the builder; if it is given, its shape counts.
        smallest: lowest height and width, pixels.
        hint: what the user of too small images is told to do.

    Raises:
        ValueError: images that are too small, without channels or of an open size; an `input_tensor` that holds no images.
    """
    if input_tensor is not None:
        if not isinstance(input_tensor, keras.KerasTensor) or len(input_tensor.shape) != 4:
            raise ValueError(
                "input_tensor must be a Keras tensor [batch, height, width, channels], received "
                f"{shorten(repr(input_tensor), 60)}; give keras.Input(...) or the output of a layer"
            )
        input_shape = input_tensor.shape[1:]
    expected = f"input_shape must be (height >= {smallest}, width >= {smallest}, channels >= 1)"
    try:
        height, width, channels = (operator.index(size) for size in input_shape)
    except (TypeError, ValueError):
        one_size = "; a network is for images of one size" if "None" in repr(input_shape) else ""
        raise ValueError(f"{expected}, three whole numbers, received {input_shape!r}{one_size}{hint}") from None
    if min(height, width) < smallest or channels < 1:
        raise ValueError(f"{expected}, received {(height, width, channels)}{hint}")
    return height, width, channels


def list_widths(widths) -> list:
    """The argument `widths` of a builder as a list, NumPy's integers as Python's; what is no sequence is a list of itself."""
    widths = widths.tolist() if hasattr(widths, "tolist") else widths
    return [
        int(width) if isinstance(width, numbers.Integral) else width
        for width in (widths if isinstance(widths, list | tuple) else [widths])
    ]


def check_ending(classes, pooling, poolings=("avg", "max")) -> None:
    """Raises ValueError unless `classes` is an int >= 1 and `pooling` None or one of `poolings`."""
    if not isinstance(classes, numbers.Integral) or classes < 1:
        raise ValueError(f"classes must be an int >= 1, received {classes!r}")
    if pooling is not None and pooling not in poolings:
        raise ValueError(f"pooling must be None, {' or '.join(map(repr, poolings))}, received {pooling!r}")


def begin(input_shape, input_tensor, weights, preprocessing, *, include_top=True, shipped=None):
    """Opens the weights and makes the input.

    Args:
        input_shape: (height, width, channels) of `check_shape`.
        input_tensor, weights, preprocessing, include_top: arguments of the builder.
        shipped: name of the network, of whose weights some may be shipped; None = there are none.

    Returns:
        (source, start, x): the source of the weights and the tensor that the network starts from, both for `end`; the tensor
        that its first layer reads.

    Raises:
        ValueError: the weights cannot be read, or the shipped ones do not fit the other arguments.
    """
    check_keras()  # a notebook may have changed how Keras orders images since the import
    if weights in SHIPPED and shipped:
        if input_shape != (32, 32, 3) and (include_top or input_shape[2] != 3):
            raise ValueError(
                f"weights={weights!r} need input_shape (32, 32, 3) or, with include_top=False, any size with 3 channels; received "
                f"{input_shape}"
            )
        if preprocessing is not None:
            raise ValueError(f"weights={weights!r} bring their own preprocessing; leave the argument out")
    if preprocessing is not None and not callable(preprocessing):
        raise ValueError(f"preprocessing must be a layer or None, received {preprocessing!r}")
    source, preprocessing = open_weights(weights, unused(preprocessing), shipped)
    start = layers.Input(input_shape, name="image") if input_tensor is None else input_tensor
    return source, start, start if preprocessing is None else preprocessing(start)


def unused(layer):
    """A layer, or a copy of one that is part of a network already: in a second one it would be used twice, which `fold_batch_norm` refuses.
    Others than these, which their configuration may not describe wholly, stay.
    """
    is_plain = isinstance(layer, PixelNormalization | layers.Rescaling | layers.Identity)
    return type(layer).from_config(layer.get_config()) if is_plain and layer._inbound_nodes else layer


def count_classes(classes, weights, source) -> int:
    """The argument `classes` of a builder; None = as many as shipped weights have, else 10. `weights`, `source`: see `begin`."""
    if classes is not None:
        return int(classes)
    return source.output_shape[-1] if weights in SHIPPED else 10


def pool(x, pooling):
    """`x` [batch, height, width, channels] reduced to float32 [batch, channels] by "avg" or "max", or itself with None."""
    if pooling == "avg":
        return layers.GlobalAveragePooling2D(name="average_pool", dtype="float32")(x)
    if pooling == "max":
        return layers.GlobalMaxPooling2D(name="max_pool", dtype="float32")(x)
    return x


def classify(x, classes, activation, kernel_initializer="glorot_uniform", use_bias=True):
    """The dense layer that ends a network: [batch, features] to float32 [batch, classes]."""
    # float32: a softmax over bfloat16 logits would round the probabilities to 8 bits.
    return layers.Dense(
        int(classes),
        activation=activation,
        use_bias=use_bias,
        kernel_initializer=kernel_initializer,
        dtype="float32",
        name="predictions",
    )(x)


def end(start, x, name, source) -> keras.Model:
    """The model to `x` from the inputs behind `start`, with the layers between these two filled from `source` of `begin`.

    Raises:
        ValueError: the source holds another network.
    """
    inputs = keras.utils.get_source_inputs(start)
    model = keras.Model(inputs[0] if len(inputs) == 1 else inputs, x, name=name)
    if source is not None:
        # What the caller put before the network is not in the source.
        starts_there = any(start is tensor for tensor in inputs)
        load_weights(model if starts_there else keras.Model(start, x, name=name), source)
    return model
