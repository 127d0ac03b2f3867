"""Inception-ResNet v1 of Szegedy et al. 2016, the network of sections 3 and 4 and figures 2 to 4 of Liang 2020.

    part            function              299 px ->     160 ->   75 ->   figure in Liang / Szegedy
    stem            stem                  35x35x256     17       7       4 / 14
    5 x A           module_a              35x35x256     17       7       2 / 10
    reduction A     reduction_a           17x17x896     8        3       2 / 7
    10 x B          module_b              17x17x896     8        3       2 / 11
    reduction B     reduction_b           8x8x1792      3        1       2 / 12
    5 x C           module_c              8x8x1792      3        1       3 / 13
    head            average pool, dropout .2, dense layer                - / 15

Every convolution is followed by BN and ReLU and has no bias, but for the last of A, B and C: it is linear, has a bias, and brings
the branches to the width of the input. Its output is scaled before it is added: by .17, .10 and .20. "V" in the comments
stands for "valid": no padding.

References: Szegedy et al. 2016, Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning,
arXiv:1602.07261. Liang 2020 = J. Phys.: Conf. Ser. 1634 012110. Scales and batch normalisation: davidsandberg/facenet, the
program that the community takes for the paper's; its sixth C module and its embedding are not in the paper and not here.
"""

from keras import layers

from resnet_study.networks.assembly import begin, check_ending, check_shape, classify, end, pool
from resnet_study.networks.layers import FusedBatchNormalization
from resnet_study.networks.signatures import name_builder


def stem(x, *, conv, dtype):
    """Input module (Szegedy 2016, figure 14): seven steps to an eighth of the size."""
    x = conv(x, 32, 3, "stem_conv1", stride=2, padding="valid")  # 299 -> 149
    x = conv(x, 32, 3, "stem_conv2", padding="valid")  # 147
    x = conv(x, 64, 3, "stem_conv3")
    x = layers.MaxPooling2D(3, 2, "valid", dtype=dtype, name="stem_pool")(x)  # 73
    x = conv(x, 80, 1, "stem_conv4", padding="valid")
    x = conv(x, 192, 3, "stem_conv5", padding="valid")  # 71
    return conv(x, 256, 3, "stem_conv6", stride=2, padding="valid")  # 35


def small_stem(x, *, conv, dtype):
    """The same convolutions for small images: only the pool halves the map, and nothing is cut off."""
    x = conv(x, 32, 3, "stem_conv1")  # 32
    x = conv(x, 32, 3, "stem_conv2")
    x = conv(x, 64, 3, "stem_conv3")
    x = layers.MaxPooling2D(3, 2, "same", dtype=dtype, name="stem_pool")(x)  # 16
    x = conv(x, 80, 1, "stem_conv4")
    x = conv(x, 192, 3, "stem_conv5")
    return conv(x, 256, 3, "stem_conv6")


def module_a(x, name, *, conv, add):
    """Inception-ResNet-A (figure 10): 1x1; 1x1, 3x3; 1x1, 3x3, 3x3."""
    first = conv(x, 32, 1, f"{name}_branch1_conv1")
    second = conv(x, 32, 1, f"{name}_branch2_conv1")
    second = conv(second, 32, 3, f"{name}_branch2_conv2")
    third = conv(x, 32, 1, f"{name}_branch3_conv1")
    third = conv(third, 32, 3, f"{name}_branch3_conv2")
    third = conv(third, 32, 3, f"{name}_branch3_conv3")
    return add(x, [first, second, third], 0.17, name)


def module_b(x, name, *, conv, add):
    """Inception-ResNet-B (figure 11): 1x1; 1x1, 1x7, 7x1."""
    first = conv(x, 128, 1, f"{name}_branch1_conv1")
    second = conv(x, 128, 1, f"{name}_branch2_conv1")
    second = conv(second, 128, (1, 7), f"{name}_branch2_conv2")
    second = conv(second, 128, (7, 1), f"{name}_branch2_conv3")
    return add(x, [first, second], 0.10, name)


def module_c(x, name, *, conv, add):
    """Inception-ResNet-C (figure 13): 1x1; 1x1, 1x3, 3x1."""
    first = conv(x, 192, 1, f"{name}_branch1_conv1")
    second = conv(x, 192, 1, f"{name}_branch2_conv1")
    second = conv(second, 192, (1, 3), f"{name}_branch2_conv2")
    second = conv(second, 192, (3, 1), f"{name}_branch2_conv3")
    return add(x, [first, second], 0.20, name)


def reduction_a(x, *, conv, dtype):
    """Reduction-A (figure 7, k, l, m, n = 192, 192, 256, 384): pool; 3x3; 1x1, 3x3, 3x3. Halves the map, 256 -> 896 channels."""
    name = "reduction_a"
    pooled = layers.MaxPooling2D(3, 2, "valid", dtype=dtype, name=f"{name}_pool")(x)
    first = conv(x, 384, 3, f"{name}_branch1_conv1", stride=2, padding="valid")
    second = conv(x, 192, 1, f"{name}_branch2_conv1")
    second = conv(second, 192, 3, f"{name}_branch2_conv2")
    second = conv(second, 256, 3, f"{name}_branch2_conv3", stride=2, padding="valid")
    return layers.Concatenate(dtype=dtype, name=f"{name}_concat")([first, second, pooled])


def reduction_b(x, *, conv, dtype):
    """Reduction-B (figure 12): pool; 1x1, 3x3; 1x1, 3x3; 1x1, 3x3, 3x3. Halves the map, 896 -> 1,792 channels."""
    name = "reduction_b"
    pooled = layers.MaxPooling2D(3, 2, "valid", dtype=dtype, name=f"{name}_pool")(x)
    first = conv(x, 256, 1, f"{name}_branch1_conv1")
    first = conv(first, 384, 3, f"{name}_branch1_conv2", stride=2, padding="valid")
    second = conv(x, 256, 1, f"{name}_branch2_conv1")
    second = conv(second, 256, 3, f"{name}_branch2_conv2", stride=2, padding="valid")
    third = conv(x, 256, 1, f"{name}_branch3_conv1")
    third = conv(third, 256, 3, f"{name}_branch3_conv2")
    third = conv(third, 256, 3, f"{name}_branch3_conv3", stride=2, padding="valid")
    return layers.Concatenate(dtype=dtype, name=f"{name}_concat")([first, second, third, pooled])


def build_inception_resnet_v1(
    *,
    weights=None,
    include_top=True,
    input_shape=(299, 299, 3),
    input_tensor=None,
    pooling="avg",
    classes=1000,
    classifier_activation="softmax",
    scale_batch_norm=True,
    batch_norm_momentum=0.995,
    modules=(5, 10, 5),
    width=1.0,
    reduced_stem=False,
    dropout=0.2,
    preprocessing=None,
    dtype=None,
    name="inception_resnet_v1",
):
    """Builds Inception-ResNet v1 (Szegedy et al. 2016, figure 15; Liang 2020, section 4).

    Args:
        weights: None = random, or the path of a `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the dropout and the dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 75, with `reduced_stem` >= 13.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "avg" or "max" = global pooling, output [batch, 1792 * width];
            None = the map [batch, height, width, 1792 * width] of the last module. With `include_top` it is always "avg".
        classes: width of the output, int >= 1. Where the weights are of another number of classes, the dense layer begins
            random and a warning says so; all layers before it have the weights.
        classifier_activation: "softmax", or None for logits.
        scale_batch_norm: False = BN learns beta only, as in TF-Slim and facenet, 13,520 trainable parameters less.
        batch_norm_momentum: decay per step of the moving statistics, 0..1; .995 (facenet) needs a thousand steps to settle.
        modules: how many of A, B and C, ints >= 1.
        width: factor for the number of filters of every convolution.
        reduced_stem: True = `small_stem` in place of `stem`, for images such as 32 x 32: 16x16, 7x7 and 3x3 maps.
        dropout: share 0..<1 of the pooled features dropped before the dense layer (the paper keeps .8).
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case.
        dtype: dtype policy, e.g. "mixed_bfloat16", of all layers up to global average pooling, which and what follows compute in
            float32; None = Keras' global policy.
        name: name of the model.

    Returns:
        keras.Model. Input [batch, height, width, channels], RGB; raw pixels 0..255 with `preprocessing` or the weights of a trained
        model, otherwise normalised pixels (facenet: -1..1). Output float32 [batch, classes], or what `pooling` says. With
        299x299x3: 21,008,298 parameters at 10 classes, 22,783,368 at 1,000; without `scale_batch_norm` 20,994,778 and 22,769,848;
        27,040 of them are moving statistics.

    Raises:
        ValueError: an argument out of its range, or weights of another network.

    Example:
        import numpy as np
        from resnet_study.networks.inception_resnet import build_inception_resnet_v1

        features = build_inception_resnet_v1(include_top=False, input_shape=(160, 160, 3))
        print(features(np.zeros((1, 160, 160, 3))).shape)  # (1, 1792)

    The paper says neither how each kind of module is scaled nor the momentum of BN nor how kernels are drawn. We scale by .17, .10
    and .20 and use momentum .995 and epsilon 1e-3, as facenet does, and draw kernels by Glorot's uniform rule.
    """
    smallest = 13 if reduced_stem else 75  # at 74 pixels nothing is left for the last convolution of reduction B
    hint = "" if reduced_stem else "; use reduced_stem for small images"
    input_shape = check_shape(input_shape, input_tensor, smallest, hint)
    check_ending(classes, pooling)
    if len(modules) != 3 or min(modules) < 1:
        raise ValueError(f"modules must be three ints >= 1, the numbers of A, B and C; received {modules!r}")
    if width <= 0 or not 0 <= dropout < 1:
        raise ValueError(f"width must be above 0 and dropout in 0..<1, received {width!r} and {dropout!r}")

    def conv(x, filters, size, layer_name, stride=1, padding="same"):
        x = layers.Conv2D(
            max(1, round(filters * width)), size, stride, padding, use_bias=False, dtype=dtype, name=layer_name
        )(x)
        x = FusedBatchNormalization(
            momentum=batch_norm_momentum, epsilon=1e-3, scale=scale_batch_norm, dtype=dtype, name=f"{layer_name}_bn"
        )(x)
        return layers.ReLU(dtype=dtype, name=f"{layer_name}_relu")(x)

    def add(x, branches, scale, module):
        """ReLU(x + scale * the branches, brought to the width of x): what is residual in A, B and C."""
        residual = layers.Concatenate(dtype=dtype, name=f"{module}_concat")(branches)
        residual = layers.Conv2D(x.shape[-1], 1, dtype=dtype, name=f"{module}_up")(residual)
        residual = layers.Rescaling(scale, dtype=dtype, name=f"{module}_scale")(residual)
        return layers.ReLU(dtype=dtype, name=f"{module}_relu")(
            layers.Add(dtype=dtype, name=f"{module}_add")([x, residual])
        )

    source, start, x = begin(input_shape, input_tensor, weights, preprocessing)
    x = (small_stem if reduced_stem else stem)(x, conv=conv, dtype=dtype)
    kinds = zip(modules, "abc", (module_a, module_b, module_c), (reduction_a, reduction_b, None), strict=True)
    for count, letter, module, reduction in kinds:
        for index in range(1, count + 1):
            x = module(x, f"module_{letter}{index}", conv=conv, add=add)
        if reduction:
            x = reduction(x, conv=conv, dtype=dtype)
    x = pool(x, "avg" if include_top else pooling)
    if include_top:
        if dropout:
            x = layers.Dropout(dropout, dtype="float32", name="dropout")(x)
        x = classify(x, classes, classifier_activation)
    return end(start, x, name, source)


build_inception_resnet_v1_small = name_builder(
    build_inception_resnet_v1,
    "build_inception_resnet_v1_small",
    """Builds Inception-ResNet v1 made small, to train on CIFAR-10 on two cores; 702,218 trainable parameters.

    The paper has no such network. Reduced by us are the stem (see `small_stem`), the filters (a quarter of each convolution's), the
    modules (2, 3 and 2 in place of 5, 10 and 5) and the memory of batch norm, for short trainings. What is in a module, and how
    modules follow each other, is as published.""",
    defaults={
        "input_shape": (32, 32, 3),
        "classes": 10,
        "batch_norm_momentum": 0.9,
        "modules": (2, 3, 2),
        "width": 0.25,
        "reduced_stem": True,
        "name": "inception_resnet_v1_small",
    },
)
