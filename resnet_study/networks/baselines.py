"""The networks that residual networks are compared with: LeNet-5, AlexNet for small images, and a plain CNN.

    network      form          what it is                                                      32x32x3     28x28x1
    lenet5       modern        ReLU, maximum pooling                                            62,006      61,706
    lenet5_1998  1998          tanh, average pooling                                            62,006      61,706
    alexnet      A             torchvision's widths, 3x3 kernels, 2x2 pools                 23,272,266  20,125,386
    alexnet_b    B             Krizhevsky's widths, 5x5 kernels, overlapping 3x3 pools      29,983,114  24,735,434
    alexnet_c    C             11x11 stride 4, one dense layer                               2,472,266   2,456,778
    alexnet_original original  Krizhevsky 2012 in one tower; 224x224x3, 1000 classes: 62,378,344
    plain_cnn                  two convolutions, pool, dropout, twice; dense                 1,250,858     889,834

The counts are of parameters, all trainable, with 10 classes. Lu & Song compare LeNet and AlexNet with a residual network on MNIST
and CIFAR-10 without saying which form of them they mean.

References: LeCun et al., Gradient-based learning applied to document recognition, 1998. Krizhevsky et al., ImageNet
classification with deep convolutional neural networks, 2012. Form A: the convolutions of torchvision's AlexNet, made small.
Form C: bearpaw/pytorch-classification. Plain CNN: Keras' example cifar10_cnn.py.
The networks are functional `keras.Model`s.
"""

import dataclasses

import keras
from keras import layers

from resnet_study.networks.assembly import begin, check_ending, check_shape, classify, end, pool
from resnet_study.networks.layers import LocalResponseNormalization

_POOLINGS = ("avg", "max", "dense")


def build_lenet5(
    form="modern",
    *,
    weights=None,
    include_top=True,
    input_shape=(32, 32, 3),
    input_tensor=None,
    pooling="dense",
    classes=10,
    classifier_activation="softmax",
    preprocessing=None,
    dtype=None,
    name=None,
):
    """Builds LeNet-5 (LeCun et al. 1998, section II.B).

    Convolution 6@5x5, pool 2x2, convolution 16@5x5, pool 2x2, dense 120, 84, `classes`. The first convolution pads images lower
    or narrower than 32 pixels ("same", so 28x28 gives the maps of the paper's 32x32) and no others ("valid").

    Args:
        form: "modern" = ReLU and maximum pooling; "1998" = tanh and average pooling.
        weights: None = random, or the path of a `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the last dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 12.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "dense" = the hidden dense layers, output [batch, 84];
            "avg" or "max" = global pooling of the last map, output [batch, 16]; None = that map, [batch, height, width, 16], 5 x 5
            of 28 x 28 and of 32 x 32 pixels. But for "dense", weights fit images of any size.
        classes: width of the output, int >= 1. Where the weights are of another number of classes, the last dense layer begins
            random and a warning says so; all layers before it have the weights.
        classifier_activation: "softmax", or None for logits.
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case.
        dtype: dtype policy of all layers but the last, e.g. "mixed_bfloat16"; None = Keras' global policy.
        name: name of the model; None = "lenet5" or "lenet5_1998".

    Returns:
        keras.Model. Input [batch, height, width, channels], grey or RGB; raw pixels 0..255 with `preprocessing` or the weights of a
        trained model, otherwise normalised pixels. Output float32 [batch, classes], or what `pooling` says.

    Raises:
        ValueError: an argument out of its range, or weights of another network.

    Example:
        import numpy as np
        from resnet_study.networks.baselines import build_lenet5

        model = build_lenet5(input_shape=(28, 28, 1))
        print(model(np.zeros((2, 28, 28, 1))).shape)  # (2, 10)

    In the paper, a map of the second convolution sees some maps of the first, pools have weights and come before the activation,
    tanh is scaled, and the output is one of radial basis functions. Ours, in both forms: it sees all maps, pools have no weights and
    come after the activation, tanh is not scaled, and the output is a dense layer.
    """
    if form not in ("modern", "1998"):
        raise ValueError(f"form must be 'modern' or '1998', received {form!r}")
    input_shape = check_shape(input_shape, input_tensor, 12)
    check_ending(classes, pooling, _POOLINGS)
    name = name or ("lenet5" if form == "modern" else "lenet5_1998")
    activation, pool_layer = ("relu", layers.MaxPooling2D) if form == "modern" else ("tanh", layers.AveragePooling2D)
    source, start, x = begin(input_shape, input_tensor, weights, preprocessing)
    for index, filters in enumerate((6, 16), start=1):
        padding = "same" if index == 1 and min(input_shape[:2]) < 32 else "valid"
        x = layers.Conv2D(filters, 5, padding=padding, dtype=dtype, name=f"conv{index}")(x)
        x = layers.Activation(activation, dtype=dtype, name=f"{activation}{index}")(x)
        x = pool_layer(2, dtype=dtype, name=f"pool{index}")(x)
    if not include_top and pooling != "dense":
        return end(start, pool(x, pooling), name, source)
    x = layers.Flatten(dtype=dtype, name="flatten")(x)
    for index, units in enumerate((120, 84), start=3):
        x = layers.Dense(units, dtype=dtype, name=f"dense{index}")(x)
        x = layers.Activation(activation, dtype=dtype, name=f"{activation}{index}")(x)
    if include_top:
        x = classify(x, classes, classifier_activation)
    return end(start, x, name, source)


@dataclasses.dataclass(frozen=True)
class _AlexNetForm:
    """What the forms of AlexNet differ in. All pool after convolutions 1, 2 and 5."""

    filters: tuple[int, ...]
    kernels: tuple[int, ...]
    stride: int  # of the first convolution
    padding: int | tuple[tuple[int, int], tuple[int, int]]  # before the first convolution, pixels
    pool_size: int
    pool_padding: str = "valid"
    dense_units: tuple[int, ...] = (4096, 4096)
    normalized: bool = False
    smallest: int = 16


_ALEXNET = {
    "A": _AlexNetForm((64, 192, 384, 256, 256), (3, 3, 3, 3, 3), 2, 1, 2),
    "B": _AlexNetForm((96, 256, 384, 384, 256), (5, 5, 3, 3, 3), 1, 2, 3),
    # "same" pools change nothing at 32x32, and let 28x28 through.
    "C": _AlexNetForm((64, 192, 384, 256, 256), (11, 5, 3, 3, 3), 4, 5, 2, "same", ()),
    # The paper's 224 does not give its 55x55 maps; with 3 more pixels it does.
    "original": _AlexNetForm(
        (96, 256, 384, 384, 256), (11, 5, 3, 3, 3), 4, ((1, 2), (1, 2)), 3, normalized=True, smallest=64
    ),
}


def build_alexnet(
    form="A",
    *,
    weights=None,
    include_top=True,
    input_shape=(32, 32, 3),
    input_tensor=None,
    pooling="dense",
    classes=10,
    classifier_activation="softmax",
    dense_units=None,
    dropout=0.5,
    preprocessing=None,
    dtype=None,
    name=None,
):
    """Builds AlexNet (Krizhevsky et al. 2012, section 3), for small images unless the form is "original".

    Five convolutions with ReLU, pools after the first, the second and the last, then dense layers with ReLU, each after a dropout.

    Args:
        form: "A", "B", "C" or "original", see the table at the head of this file.
        weights: None = random, or the path of a `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the last dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 16; >= 64 for "original", whose paper has 224.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "dense" = the hidden dense layers, output [batch, 4096] in three forms;
            "avg" or "max" = global pooling of the last map, output [batch, 256]; None = that map, [batch, height, width, 256].
            But for "dense", weights fit images of any size.
        classes: width of the output, int >= 1. Where the weights are of another number of classes, the last dense layer begins
            random and a warning says so; all layers before it have the weights.
        classifier_activation: "softmax", or None for logits.
        dense_units: widths of the hidden dense layers; None = as the form has them: 4096 and 4096, for "C" none.
        dropout: share of the values dropped before each hidden dense layer, 0..1.
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case.
        dtype: dtype policy of all layers but the last, e.g. "mixed_bfloat16"; None = Keras' global policy.
        name: name of the model; None = "alexnet", "alexnet_b", "alexnet_c" or "alexnet_original".

    Returns:
        keras.Model. Input [batch, height, width, channels], grey or RGB; raw pixels 0..255 with `preprocessing` or the weights of a
        trained model, otherwise normalised pixels. Output float32 [batch, classes], or what `pooling` says.

    Raises:
        ValueError: an argument out of its range, or weights of another network.

    Example:
        import numpy as np
        from resnet_study.networks.baselines import build_alexnet

        model = build_alexnet("C", classes=100)
        print(model(np.zeros((2, 32, 32, 3))).shape)  # (2, 100)

    The paper has two towers, one for each GPU, normal weights of deviation .01, dropout behind the hidden dense layers, local
    response normalisation, and biases that begin at 1 in convolutions 2, 4 and 5 and in the hidden dense layers. Ours has one tower, weights by
    He's normal rule but for the last layer, biases that begin at 0, dropout before the hidden dense layers (as torchvision), and local response
    normalisation in "original" only.
    """
    if form not in _ALEXNET:
        raise ValueError(f"form must be one of {', '.join(_ALEXNET)}; received {form!r}")
    shape = _ALEXNET[form]
    name = name or ("alexnet" if form == "A" else f"alexnet_{form.lower()}")
    input_shape = check_shape(input_shape, input_tensor, shape.smallest)
    check_ending(classes, pooling, _POOLINGS)
    source, start, x = begin(input_shape, input_tensor, weights, preprocessing)
    x = layers.ZeroPadding2D(shape.padding, dtype=dtype, name="pad1")(x)
    for index, (filters, size) in enumerate(zip(shape.filters, shape.kernels, strict=True), start=1):
        stride, padding = (shape.stride, "valid") if index == 1 else (1, "same")
        x = layers.Conv2D(
            filters, size, stride, padding, kernel_initializer="he_normal", dtype=dtype, name=f"conv{index}"
        )(x)
        x = layers.ReLU(dtype=dtype, name=f"relu{index}")(x)
        if shape.normalized and index <= 2:
            x = LocalResponseNormalization(dtype=dtype, name=f"norm{index}")(x)
        if index in (1, 2, 5):
            x = layers.MaxPooling2D(shape.pool_size, 2, shape.pool_padding, dtype=dtype, name=f"pool{index}")(x)
    if not include_top and pooling != "dense":
        return end(start, pool(x, pooling), name, source)
    x = layers.Flatten(dtype=dtype, name="flatten")(x)
    for index, units in enumerate(shape.dense_units if dense_units is None else dense_units, start=6):
        x = layers.Dropout(dropout, dtype=dtype, name=f"dropout{index}")(x)
        x = layers.Dense(units, kernel_initializer="he_normal", dtype=dtype, name=f"dense{index}")(x)
        x = layers.ReLU(dtype=dtype, name=f"relu{index}")(x)
    if include_top:
        # Krizhevsky's rule: after so many maximum pools, He's would begin with logits far from 0.
        x = classify(x, classes, classifier_activation, keras.initializers.RandomNormal(stddev=0.01))
    return end(start, x, name, source)


def build_plain_cnn(
    *,
    weights=None,
    include_top=True,
    input_shape=(32, 32, 3),
    input_tensor=None,
    pooling="dense",
    classes=10,
    classifier_activation="softmax",
    preprocessing=None,
    dtype=None,
    name="plain_cnn",
):
    """Builds the CNN of the textbooks, as Keras' example cifar10_cnn.py has it.

    Twice: convolution 3x3 "same", convolution 3x3 "valid", ReLU after each, maximum pool 2x2, dropout .25; 32 filters the first time,
    64 the second. Then dense 512 with ReLU, dropout .5, dense `classes`.

    Args:
        weights: None = random, or the path of a `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the last dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 10.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "dense" = the hidden dense layer, output [batch, 512];
            "avg" or "max" = global pooling of the last map, output [batch, 64]; None = that map, [batch, height, width, 64], 6 x 6
            of 32 x 32 pixels. But for "dense", weights fit images of any size.
        classes: width of the output, int >= 1. Where the weights are of another number of classes, the last dense layer begins
            random and a warning says so; all layers before it have the weights.
        classifier_activation: "softmax", or None for logits.
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case.
        dtype: dtype policy of all layers but the last, e.g. "mixed_bfloat16"; None = Keras' global policy.
        name: name of the model.

    Returns:
        keras.Model. Input [batch, height, width, channels], grey or RGB; raw pixels 0..255 with `preprocessing` or the weights of a
        trained model, otherwise normalised pixels. Output float32 [batch, classes], or what `pooling` says.

    Raises:
        ValueError: an argument out of its range, or weights of another network.

    Example:
        import numpy as np
        from resnet_study.networks.baselines import build_plain_cnn

        features = build_plain_cnn(include_top=False, pooling=None)
        print(features(np.zeros((2, 32, 32, 3))).shape)  # (2, 6, 6, 64)
    """
    input_shape = check_shape(input_shape, input_tensor, 10)
    check_ending(classes, pooling, _POOLINGS)
    source, start, x = begin(input_shape, input_tensor, weights, preprocessing)
    for index, (filters, padding) in enumerate(((32, "same"), (32, "valid"), (64, "same"), (64, "valid")), start=1):
        x = layers.Conv2D(filters, 3, padding=padding, dtype=dtype, name=f"conv{index}")(x)
        x = layers.ReLU(dtype=dtype, name=f"relu{index}")(x)
        if index % 2 == 0:
            x = layers.MaxPooling2D(2, dtype=dtype, name=f"pool{index}")(x)
            x = layers.Dropout(0.25, dtype=dtype, name=f"dropout{index}")(x)
    if not include_top and pooling != "dense":
        return end(start, pool(x, pooling), name, source)
    x = layers.Flatten(dtype=dtype, name="flatten")(x)
    x = layers.ReLU(dtype=dtype, name="relu5")(layers.Dense(512, dtype=dtype, name="dense5")(x))
    x = layers.Dropout(0.5, dtype=dtype, name="dropout5")(x)
    if include_top:
        x = classify(x, classes, classifier_activation)
    return end(start, x, name, source)
