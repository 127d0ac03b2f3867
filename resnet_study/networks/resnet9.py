"""A wide residual network for trainings of minutes on CIFAR-10.

References: Page 2019, "How to train your ResNet". Jordan 2024 = arXiv:2404.00498.
"""

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from resnet_study.errors import UsageError
from resnet_study.networks.assembly import (
    begin,
    check_ending,
    check_shape,
    classify,
    count_classes,
    end,
    list_widths,
    pool,
)
from resnet_study.networks.layers import FusedBatchNormalization, PartialIdentity, PatchWhitening


def convolve_and_normalize(x, filters, name, *, pools=False, momentum, dtype):
    """A 3x3 convolution that begins as a copy, perhaps 2x2 max pooling, and batch normalisation without gamma.

    Args:
        x: Keras tensor [batch, height, width, channels].
        filters: channels of the output, int >= 1.
        name: beginning of the names of the layers.
        pools: whether to halve height and width.
        momentum: share of the moving statistics that a step keeps, 0..1.
        dtype: dtype policy of the layers; None = Keras' global policy.

    Returns:
        Keras tensor [batch, height, width, filters]; with `pools` [batch, height // 2, width // 2, filters].
    """
    x = layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=False,
        kernel_initializer=PartialIdentity(),
        dtype=dtype,
        name=f"{name}_conv",
    )(x)
    if pools:
        x = layers.MaxPooling2D(2, dtype=dtype, name=f"{name}_pool")(x)
    return FusedBatchNormalization(momentum=momentum, epsilon=1e-5, scale=False, dtype=dtype, name=f"{name}_bn")(x)


def build_resnet9(
    *,
    weights: str | None = None,
    include_top: bool = True,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    input_tensor: Any = None,
    pooling="max",
    classes: int | None = None,
    classifier_activation: str | None = "softmax",
    widths: Sequence[int] = (64, 256, 256),
    preprocessing: keras.layers.Layer | None = None,
    dtype: Any = None,
    name: str = "resnet9",
) -> keras.Model:
    """Builds a wide residual network of nine trained convolutions for short trainings on CIFAR-10.

    layer                                                            output (32 x 32 input)
    2x2 patch whitening with fixed filters, bias, ReLU               31 x 31 x 24
    3x3 convolution, 2x2 max pooling, BN, ReLU; residual block       15 x 15 x 64
    3x3 convolution, 2x2 max pooling, BN, ReLU; residual block       7 x 7 x 256
    3x3 convolution, 2x2 max pooling, BN, ReLU; residual block       3 x 3 x 256
    global max pooling, divided by 9, dense                          10

    A residual block is ReLU(x + BN(conv(ReLU(BN(conv(x)))))). 3,188,450 parameters are trained, 161 million multiply-adds an
    image.

    The layout is that of Page 2019 ("How to train your ResNet"). The whitening of the stem, the pooling before BN, BN without gamma, the kernels
    that begin as copies and the division by 9 are those of Jordan 2024 (arXiv:2404.00498). The widths, the ReLUs, the residual blocks and the dense
    layer, with a bias and Glorot's initialisation, are ours.

    The filters of the first layer are set by training images: `PatchWhitening.adapt`, which the tasks of a training call.

    Args:
        weights: None = random; "cifar10", "cifar10_robust" or "cifar100" = shipped weights, where there are such (`python
            cifar10_main.py --mode=models`), for 32x32x3, or with `include_top` False any size with three channels; or the path of a
            `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 16.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "max" = global maximum pooling, divided by 9, output [batch, 256];
            "avg" = global average pooling; None = the map [batch, (height - 1) // 8, (width - 1) // 8, 256]. With `include_top` it
            is always "max".
        classes: width of the output, int >= 1; None = as many as the shipped weights have, else 10. Where the weights are of another
            number of classes, the dense layer begins random and a warning says so; all layers before it have the weights.
        classifier_activation: "softmax", or None for logits.
        widths: channels between the two convolutions of each residual block; 0 = the block is left out. A pruned network has fewer, see
            `resnet_study.networks.pruning`.
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case. Shipped weights allow no other than their own.
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
        from resnet import build_resnet9

        model = build_resnet9(weights="cifar10")
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3))  # raw pixels
        print(model(images).shape)  # (2, 10)
    """
    widths = list_widths(widths)
    if len(widths) != 3 or not all(isinstance(width, int) and width >= 0 for width in widths):
        raise UsageError(
            f"widths must be three whole numbers, one for each block, received {','.join(map(str, widths))}"
        )
    input_shape = check_shape(input_shape, input_tensor, 16)
    check_ending(10 if classes is None else classes, pooling)
    source, start, x = begin(
        input_shape,
        input_tensor,
        weights,
        preprocessing,
        include_top=include_top,
        shipped="resnet9",
    )
    convolve = functools.partial(convolve_and_normalize, momentum=0.8, dtype=dtype)

    def relu(x, layer_name):
        return layers.ReLU(dtype=dtype, name=f"{layer_name}_relu")(x)

    x = relu(PatchWhitening(input_shape[2], dtype=dtype, name="stem_whitening")(x), "stem")
    for stage, (filters, inner) in enumerate(zip((64, 256, 256), widths, strict=True), start=1):
        x = relu(convolve(x, filters, f"stage{stage}", pools=True), f"stage{stage}")
        if not inner:
            continue
        residual = relu(convolve(x, inner, f"stage{stage}_block1_1"), f"stage{stage}_block1_1")
        residual = convolve(residual, filters, f"stage{stage}_block1_2")
        x = relu(layers.Add(name=f"stage{stage}_block1_add", dtype=dtype)([x, residual]), f"stage{stage}_block1_2")
    x = pool(x, "max" if include_top else pooling)
    if include_top or pooling == "max":
        x = layers.Rescaling(1 / 9, name="scale", dtype="float32")(x)
    if include_top:
        x = classify(x, count_classes(classes, weights, source), classifier_activation)
    return end(start, x, name, source)
