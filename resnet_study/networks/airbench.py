"""The networks of airbench, whose trainings of minutes reach 94 % on CIFAR-10, and of hours 96 %.

Reference: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498, and
https://github.com/KellerJordan/cifar10-airbench, airbench96.
"""

import functools
import numbers

import keras
from keras import layers

from resnet_study.networks.assembly import begin, check_ending, check_shape, classify, end, pool
from resnet_study.networks.layers import PatchWhitening, sigmoid_gelu
from resnet_study.networks.resnet9 import convolve_and_normalize


def build_airbench(
    *,
    weights=None,
    include_top=True,
    input_shape=(32, 32, 3),
    input_tensor=None,
    pooling="max",
    classes=10,
    classifier_activation="softmax",
    widths=(64, 256, 256),
    convolutions=2,
    preprocessing=None,
    dtype=None,
    name="airbench",
):
    """Builds the network of airbench94 (Jordan 2024, arXiv:2404.00498, section 3): six wide convolutions without shortcuts.

    layer                                                                    output (32 x 32 input)
    2x2 patch whitening with fixed filters, bias, GELU                       31 x 31 x 24
    3x3 convolution, 2x2 max pooling, BN, GELU; 3x3 convolution, BN, GELU    15 x 15 x 64
    the same                                                                 7 x 7 x 256
    the same                                                                 3 x 3 x 256
    global max pooling, divided by 9, dense without bias                     10

    1,971,352 parameters are trained, 118 million multiply-adds an image. That of airbench96, registered as "airbench96", has the widths 128,
    384 and 512, a third convolution in each stage and a shortcut around the second and the third, whose sum goes through the last GELU;
    9,915,416 parameters are trained, 452 million multiply-adds an image.

    The filters of the first layer are set by training images: `PatchWhitening.adapt`, which the tasks of a training call.

    Differs from its source: GELU is x * sigmoid(1.702 x), which takes less than half the time on a processor. The patches are
    whitened about their mean. The bias behind them is trained to the end, not for three epochs. Batch normalisation adds 1e-5 to the
    variance, not 1e-12.

    Args:
        weights: None = random, or the path of a `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 16.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "max" = global maximum pooling, divided by 9, output [batch, widths[2]];
            "avg" = global average pooling; None = the map [batch, (height - 1) // 8, (width - 1) // 8, widths[2]]. With `include_top` it
            is always "max".
        classes: width of the output, int >= 1. Where the weights are of another number of classes, the dense layer begins random
            and a warning says so; all layers before it have the weights.
        classifier_activation: "softmax", or None for logits.
        widths: channels of the three stages, ints >= 1.
        convolutions: of each stage, 2, or 3 with the shortcut.
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case.
        dtype: dtype policy of all layers up to the last map, e.g. "mixed_bfloat16"; None = Keras' global policy. Pooling and the
            dense layer are always float32.
        name: name of the model.

    Returns:
        keras.Model. Input [batch, height, width, channels], RGB; raw pixels 0..255 with `preprocessing` or the
        weights of a trained model, otherwise normalised pixels. Output float32 [batch, classes], or what `pooling` says.

    Raises:
        ValueError: an argument out of its range, or weights of another network.

    Example:
        import numpy as np
        from resnet_study.networks.airbench import build_airbench

        model = build_airbench(classes=10)
        print(model(np.zeros((2, 32, 32, 3))).shape)  # (2, 10)
    """
    input_shape = check_shape(input_shape, input_tensor, 16)
    check_ending(classes, pooling)
    source, start, x = begin(input_shape, input_tensor, weights, preprocessing)
    if (
        convolutions not in (2, 3)
        or len(widths) != 3
        or not all(isinstance(width, numbers.Integral) and width > 0 for width in widths)
    ):
        raise ValueError(
            f"convolutions must be 2 or 3 and widths three ints >= 1, received {convolutions} and {widths}"
        )
    # airbench96 has gone back to the statistics that are usual.
    convolve = functools.partial(convolve_and_normalize, momentum=0.6 if convolutions == 2 else 0.9, dtype=dtype)

    def gelu(x, layer_name):
        return layers.Activation(sigmoid_gelu, dtype=dtype, name=f"{layer_name}_gelu")(x)

    x = gelu(PatchWhitening(input_shape[2], dtype=dtype, name="stem_whitening")(x), "stem")
    for stage, filters in enumerate(widths, start=1):
        for index in range(1, convolutions + 1):
            layer_name = f"stage{stage}_{index}"
            before, x = x, convolve(x, filters, layer_name, pools=index == 1)
            if index == 2:
                shortcut = before
            if index == 3:
                x = layers.Add(dtype=dtype, name=f"stage{stage}_add")([x, shortcut])
            x = gelu(x, layer_name)
    x = pool(x, "max" if include_top else pooling)
    if include_top or pooling == "max":
        x = layers.Rescaling(1 / 9, name="scale", dtype="float32")(x)
    if include_top:
        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        x = classify(x, classes, classifier_activation, uniform, use_bias=False)
    return end(start, x, name, source)
