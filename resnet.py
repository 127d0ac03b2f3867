"""Residual networks for small images: ResNet-20/32/44/56/110/164/1001 in five forms, and a wide ResNet-9.

    form           block                                       shortcut where a stage begins        source
    v1             conv-BN-ReLU-conv-BN, add, ReLU             every second pixel + zero channels   He 2015, section 4.2
    preact         BN-ReLU-conv-BN-ReLU-conv, add              average pool + zero channels         Liang 2020, section 2
    plain          conv-BN-ReLU-conv-BN-ReLU                   none                                 He 2015, figure 6
    v2             BN-ReLU-conv-BN-ReLU-conv, add              BN-ReLU, then as v1                  He 2016, figure 4e
    bottleneck_v2  three BN-ReLU-conv: 1x1, 3x3, 1x1, add      BN-ReLU, then 1x1 convolution        He 2016, appendix

    depth 6n+2     20        32        44        56         110     bottleneck, depth 9n+2       164         1001
    n               3         5         7         9          18                       n           18          111
    trainable 269,722   464,154   658,586   853,018   1,727,962               trainable    1,703,258   10,327,706
    (32x32x3, 10 classes; the four forms of depth 6n+2 have equal counts)

References: He 2015 = He et al., Deep Residual Learning, arXiv:1512.03385. He 2016 = He et al., Identity Mappings in Deep
Residual Networks, arXiv:1603.05027. Liang 2020 = J. Phys.: Conf. Ser. 1634 012110.
The networks of this file are plain functional `keras.Model`s. Importing it registers the layers of the library, so that
`keras.models.load_model` reads any of its models after `import resnet`.
"""

import numbers
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from resnet_study.errors import UsageError
from resnet_study.networks import registry
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
from resnet_study.networks.blocks import BlockLayers, preact_block, v1_block, v2_block
from resnet_study.networks.resnet9 import build_resnet9
from resnet_study.networks.signatures import ResNetBuilder, name_builder

__all__ = (
    "FORMS",
    "build_resnet",
    "build_resnet9",
    "build_resnet20",
    "build_resnet32",
    "build_resnet44",
    "build_resnet56",
    "build_resnet110",
    "build_resnet164_v2",
    "build_resnet1001_v2",
)

FILTERS = (16, 32, 64)
FORMS = ("v1", "preact", "plain", "v2", "bottleneck_v2")


def build_resnet(
    num_residual_blocks: int = 3,
    form: str = "v1",
    *,
    weights: str | None = None,
    include_top: bool = True,
    input_shape: tuple[int, int, int] = (32, 32, 3),
    input_tensor: Any = None,
    pooling: str | None = "avg",
    classes: int | None = None,
    classifier_activation: str | None = "softmax",
    shortcut: str | None = None,
    squeeze_excitation: int = 0,
    block_dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    zero_last_gamma: bool = False,
    maxout: int = 0,
    widths: Sequence[int] = (),
    preprocessing: keras.layers.Layer | None = None,
    dtype: Any = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a residual network of depth 6n+2 (He 2015, section 4.2; Liang 2020, section 2), or 9n+2 with bottlenecks (He 2016).

    A 3x3 convolution, then three stages of n blocks with 16, 32 and 64 filters (bottlenecks give four times as many) on maps
    of full, half and quarter size, then global average pooling and a dense layer. Convolutions have no bias. Stride 2 sits in
    the first convolution of stages 2 and 3.

    Args:
        num_residual_blocks: n, blocks per stage, int >= 1 (3 -> ResNet-20, 18 -> ResNet-110, or 164 with bottlenecks).
        form: one of `FORMS`, see the table at the head of this file.
        weights: None = random; "cifar10", "cifar10_robust" or "cifar100" = shipped weights, where there are such (`python
            cifar10_main.py --mode=models`), for 32x32x3, or with `include_top` False any size with three channels; or the path of a
            `.keras` or `.weights.h5` file of the same network.
        include_top: False = end before the dense layer, as `pooling` says.
        input_shape: (height, width, channels), height and width >= 8.
        input_tensor: Keras tensor [batch, height, width, channels] to build the network on, an `Input` or the output of a layer;
            None = a new `Input`. Its shape then stands for `input_shape`.
        pooling: what ends the network with `include_top` False: "avg" = global average pooling, output [batch, 64] or, with
            bottlenecks, [batch, 256]; "max" = global maximum pooling; None = the map [batch, height / 4, width / 4, 64 or 256],
            rounded up. With `include_top` it is always "avg".
        classes: width of the output, int >= 1; None = as many as the shipped weights have, else 10. Where the weights are of another
            number of classes, the dense layer begins random and a warning says so; all layers before it have the weights.
        classifier_activation: "softmax", or None for logits.
        shortcut: "A" = subsample + zero channels, no weights (the paper's choice on CIFAR); "B" = 1x1 convolution, in v1
            with BN (+2,752 trainable parameters), in v2 without (+2,560). None = "B" with bottlenecks, which have no other,
            else "A". preact and plain have no "B".
        squeeze_excitation: 0 = off; r >= 1 = squeeze-and-excitation at the end of each residual branch with a hidden layer of
            max(1, channels // r) units (Hu et al. 2018, arXiv:1709.01507).
        block_dropout: share 0..<1 of the values dropped before the last convolution of each block (Zagoruyko & Komodakis
            2016, arXiv:1605.07146, section 2.4).
        stochastic_depth: probability 0..<1 that the residual branch of the last block is left out in training, for each image
            alone; it rises linearly from block to block (Huang et al. 2016, arXiv:1603.09382). Not for plain.
        zero_last_gamma: the last BN of each block begins with gamma 0, so that each block begins as the identity (Goyal et
            al. 2017, arXiv:1706.02677, section 5.1). v1 only: in the others no BN stands there.
        maxout: 0 = off; k >= 2 = a hidden layer of as many maxout units as there are pooled channels, each the largest of k
            linear functions, before the classifier (Goodfellow et al. 2013, arXiv:1302.4389).
        widths: channels between the convolutions of each block, from the first block to the last, two numbers for a bottleneck; 0 =
            the block is left out, which one that begins a stage cannot be. () = as many as the stage has filters. A pruned
            network has fewer, see `resnet_study.networks.pruning`.
        preprocessing: layer put before the network, such as `PixelNormalization`. None = the one that stands in the file of
            `weights`, or none; `keras.layers.Identity()` = none in any case. Shipped weights allow no other than their own.
        dtype: dtype policy of the layers, e.g. "mixed_bfloat16"; None = Keras' global policy. Global pooling and the last
            dense layers are always float32, and so are the sums of preact and v2, which pass from block to block without normalisation, unless
            this is None and the global policy another.
        name: name of the model; None = "resnet20", "resnet20_preact", "plain20", "resnet20_v2", "resnet164_v2", ...

    Returns:
        keras.Model. Input [batch, height, width, channels], RGB; raw pixels 0..255 with `preprocessing` or the
        weights of a trained model, otherwise normalised pixels. Output float32 [batch, classes], or what `pooling` says.

    Raises:
        ValueError: an argument out of its range, or weights of another network.

    Example:
        import numpy as np
        from resnet import build_resnet

        features = build_resnet(3, "v1", weights="cifar10", include_top=False, pooling=None, input_shape=(64, 64, 3))
        images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3))  # raw pixels
        print(features(images).shape)  # (2, 16, 16, 64)

    Where the papers leave something open, or we do not follow them:
        v1: He 2015 writes that weights are drawn by He's normal rule over the fan-in; his program used the fan-out. We use the
            fan-in.
        preact: Liang 2020 writes of a stride of 2 that the input "will do the same operation again, and then average pooling"; his program
            pools the input itself and adds zero channels. So do we. It never averages batch statistics, and so tests with those of the
            test batch. We keep moving averages (momentum 0.9).
        v2: He 2016 does not say which shortcut its networks of depth 6n+2 have. Ours is "A", that of He 2015.
        stochastic_depth: Huang et al. leave a branch out for a whole batch, and shrink it in testing. We leave it out for each
            image alone, and enlarge what stays by 1 / (1 - probability), so that testing needs nothing.
    """
    is_preact, is_bottleneck = form == "preact", form == "bottleneck_v2"
    is_v2 = is_bottleneck or form == "v2"
    shortcut = shortcut or ("B" if is_bottleneck else "A")
    _check_form(num_residual_blocks, form, shortcut)
    _check_options(form, squeeze_excitation, block_dropout, stochastic_depth, zero_last_gamma, maxout)
    input_shape = check_shape(input_shape, input_tensor, 8)
    check_ending(10 if classes is None else classes, pooling)
    if maxout and not include_top and pooling is None:
        raise ValueError(
            "maxout needs pooled features, received pooling None; use pooling 'avg' or 'max', or leave it out"
        )
    depth = (9 if is_bottleneck else 6) * num_residual_blocks + 2
    suffix = {"preact": "_preact", "v2": "_v2", "bottleneck_v2": "_v2"}.get(form, "")
    own_name = f"{'plain' if form == 'plain' else 'resnet'}{depth}{suffix}"
    source, start, x = begin(
        input_shape,
        input_tensor,
        weights,
        preprocessing,
        include_top=include_top,
        shipped=own_name if is_bottleneck or shortcut == "A" else f"{own_name} with shortcut '{shortcut}'",
    )
    make = BlockLayers(
        kernel_initializer="glorot_uniform" if is_preact else "he_normal",
        epsilon=1e-3 if is_preact else 1e-5,
        zero_last_gamma=zero_last_gamma,
        squeeze_excitation=int(squeeze_excitation),
        block_dropout=block_dropout,
        dtype=dtype,
    )

    x = make.conv(FILTERS[0], 3, 1, "stem_conv")(x)
    if not is_v2:
        x = make.relu("stem_relu")(make.norm("stem_bn")(x))

    inner = _share_widths(widths, num_residual_blocks, 2 if is_bottleneck else 1)
    for stage, filters in enumerate(FILTERS, start=1):
        for index in range(1, num_residual_blocks + 1):
            stride = 2 if stage > 1 and index == 1 else 1
            place = (stage - 1) * num_residual_blocks + index
            if not any(inner[place - 1]):
                continue
            skip = stochastic_depth * place / (len(FILTERS) * num_residual_blocks)
            block = (x, filters, stride, f"stage{stage}_block{index}", make, skip, inner[place - 1])
            if is_preact:
                x = preact_block(*block, is_first=place == 1)
            elif is_v2:
                x = v2_block(*block, begins_stage=index == 1, is_bottleneck=is_bottleneck, shortcut=shortcut)
            else:
                x = v1_block(*block, shortcut=None if form == "plain" else shortcut)

    if is_preact or is_v2:
        x = make.relu("head_relu")(make.norm("head_bn")(x))
    x = pool(x, "avg" if include_top else pooling)
    if maxout:
        units = x.shape[-1]
        x = layers.Dense(
            int(maxout) * units, kernel_initializer=make.kernel_initializer, dtype="float32", name="maxout_pieces"
        )(x)
        x = layers.Reshape((maxout, units), dtype="float32", name="maxout_reshape")(x)
        x = layers.GlobalMaxPooling1D(dtype="float32", name="maxout")(x)
    if include_top:
        initializer = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform") if is_preact else "he_normal"
        x = classify(x, count_classes(classes, weights, source), classifier_activation, initializer)
    return end(start, x, name or own_name, source)


def _check_form(num_residual_blocks, form, shortcut):
    if not isinstance(num_residual_blocks, numbers.Integral) or num_residual_blocks < 1:
        raise ValueError(
            f"num_residual_blocks must be an int >= 1, received {num_residual_blocks!r}; use 3 for ResNet-20"
        )
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, received {form!r}")
    possible = {"v1": ("A", "B"), "v2": ("A", "B"), "bottleneck_v2": ("B",)}.get(form, ("A",))
    if shortcut not in possible:
        raise ValueError(f"shortcut must be {' or '.join(possible)} with form {form!r}, received {shortcut!r}")


def _share_widths(widths, num_residual_blocks, each):
    """The inner channels of each block, `each` numbers for one."""
    count = len(FILTERS) * num_residual_blocks * each
    widths = list_widths(widths) or [filters for filters in FILTERS for _ in range(count // len(FILTERS))]
    inner = [widths[start : start + each] for start in range(0, len(widths), each)]
    whole = len(widths) == count and all(isinstance(width, int) and width >= 0 for width in widths)
    # All of a block or nothing, and of the first of a stage all.
    if not whole or not all(
        all(block) or (index % num_residual_blocks and not any(block)) for index, block in enumerate(inner)
    ):
        raise UsageError(
            f"widths must be {count} whole numbers, {each} for each block, 0 for a block that is left out and begins no stage, received "
            f"{','.join(map(str, widths))}; leave them out for those of the paper"
        )
    return inner


def _check_options(form, squeeze_excitation, block_dropout, stochastic_depth, zero_last_gamma, maxout):
    for argument, value, least in (("squeeze_excitation", squeeze_excitation, 1), ("maxout", maxout, 2)):
        if not isinstance(value, numbers.Integral) or (value and value < least):
            raise ValueError(f"{argument} must be 0 or an int >= {least}, received {value!r}")
    for argument, value in (("block_dropout", block_dropout), ("stochastic_depth", stochastic_depth)):
        if not isinstance(value, numbers.Real) or not 0 <= value < 1:
            raise ValueError(f"{argument} must be at least 0 and below 1, received {value!r}")
    if stochastic_depth and form == "plain":
        raise ValueError("stochastic_depth needs a network with shortcuts, received form 'plain'; leave it out")
    if zero_last_gamma and form != "v1":
        raise ValueError(f"zero_last_gamma needs form 'v1', received {form!r}; leave it out")


def _named(name, what, table) -> ResNetBuilder:
    """The builder of a network of the registry, which knows its depth, size and published error."""
    spec = registry.find(name)
    summary = f"""Builds {what}, {spec.trainable:,} trainable parameters.

    {table} gives a test error of {spec.cifar10_error} % on CIFAR-10."""
    return name_builder(build_resnet, f"build_{name}", summary, fixed=spec.options)


_HE_2015 = "He 2015, table 6,"
build_resnet20: ResNetBuilder = _named("resnet20", "ResNet-20 (He 2015, section 4.2)", _HE_2015)
build_resnet32: ResNetBuilder = _named("resnet32", "ResNet-32 (He 2015, section 4.2)", _HE_2015)
build_resnet44: ResNetBuilder = _named("resnet44", "ResNet-44 (He 2015, section 4.2)", _HE_2015)
build_resnet56: ResNetBuilder = _named("resnet56", "ResNet-56 (He 2015, section 4.2)", _HE_2015)
build_resnet110: ResNetBuilder = _named("resnet110", "ResNet-110 (He 2015, section 4.2)", _HE_2015)
_HE_2016 = "of pre-activation bottlenecks (He 2016, appendix)"
build_resnet164_v2: ResNetBuilder = _named("resnet164_v2", f"ResNet-164 {_HE_2016}", "He 2016, table 3,")
build_resnet1001_v2: ResNetBuilder = _named("resnet1001_v2", f"ResNet-1001 {_HE_2016}", "He 2016, table 3,")
