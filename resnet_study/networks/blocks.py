"""The residual blocks of `resnet.build_resnet`, and the layers that they are made of.

    function      block                                             source
    v1_block      conv-BN-ReLU-conv-BN, add, ReLU                   He 2015, figure 2; without shortcut: the plain network
    preact_block  BN-ReLU-conv-BN-ReLU-conv, add                    Liang 2020, section 2
    v2_block      BN-ReLU-conv-BN-ReLU-conv, or a bottleneck; add   He 2016, figure 4e

All take and return maps [batch, height, width, channels]. Stride 2 halves height and width, rounded up. References: see `resnet`.
"""

import dataclasses

from keras import layers

from resnet_study.networks.layers import FusedBatchNormalization, ZeroPadChannels


@dataclasses.dataclass(frozen=True)
class BlockLayers:
    """Makes the layers of the blocks of one network.

    Attributes:
        kernel_initializer: of the convolutions.
        epsilon: of batch normalisation, added to the variance.
        zero_last_gamma, squeeze_excitation, block_dropout, dtype: arguments of `resnet.build_resnet`.
    """

    kernel_initializer: str
    epsilon: float
    zero_last_gamma: bool
    squeeze_excitation: int
    block_dropout: float
    dtype: str | None

    @property
    def sum_dtype(self):
        """Of sums that pass from block to block without normalisation: float32 whatever the convolutions have, or the global policy."""
        return "float32" if self.dtype else None

    def conv(self, filters, size, stride, name, padding="same"):
        return layers.Conv2D(
            filters,
            size,
            stride,
            padding,
            use_bias=False,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype,
            name=name,
        )

    def norm(self, name, is_last=False):
        """`is_last`: of a block, where `zero_last_gamma` counts."""
        gamma = "zeros" if is_last and self.zero_last_gamma else "ones"
        return FusedBatchNormalization(
            momentum=0.9, epsilon=self.epsilon, gamma_initializer=gamma, dtype=self.dtype, name=name
        )

    def relu(self, name):
        return layers.ReLU(dtype=self.dtype, name=name)

    def drop(self, x, block_name):
        """What stands before the last convolution of a block."""
        if not self.block_dropout:
            return x
        return layers.Dropout(self.block_dropout, dtype=self.dtype, name=f"{block_name}_dropout")(x)

    def finish(self, residual, block_name, skip):
        """What stands between the last layer of a residual branch and the addition; the branch is left out with probability `skip`."""
        if self.squeeze_excitation:
            residual = squeeze_and_excite(residual, self.squeeze_excitation, block_name, self.dtype)
        if not skip:
            return residual
        return layers.Dropout(
            skip, noise_shape=(None, 1, 1, 1), dtype=self.dtype, name=f"{block_name}_stochastic_depth"
        )(residual)


def v1_block(x, filters, stride, name, make, skip, inner, *, shortcut):
    """He 2015, figure 2: ReLU(x + BN(conv(ReLU(BN(conv(x)))))).

    Args:
        x: maps [batch, height, width, channels].
        filters: channels of the output.
        stride: 1 or 2.
        name: of the block, which the names of its layers begin with.
        make: `BlockLayers`.
        skip: probability 0..<1 that the residual branch is left out in training; 0 = never.
        inner: list of the channels between the convolutions of the branch.
        shortcut: "A", "B" or None, which is the plain network.
    """
    residual = x
    if stride == 2:
        # TensorFlow's "same" would pad an even map only at its end and centre the kernel on odd pixels, while the
        # shortcut keeps the even ones. One pixel on each side and "valid" puts both on the same grid.
        residual = layers.ZeroPadding2D(1, dtype=make.dtype, name=f"{name}_pad")(residual)
    residual = make.conv(inner[0], 3, stride, f"{name}_conv1", "valid" if stride == 2 else "same")(residual)
    residual = make.drop(make.relu(f"{name}_relu1")(make.norm(f"{name}_bn1")(residual)), name)
    residual = make.norm(f"{name}_bn2", is_last=True)(make.conv(filters, 3, 1, f"{name}_conv2")(residual))
    residual = make.finish(residual, name, skip)
    if shortcut is None:
        return make.relu(f"{name}_relu2")(residual)
    if stride == 2 and shortcut == "A":
        # A 1x1 window picks every second pixel.
        x = layers.AveragePooling2D(1, strides=2, dtype=make.dtype, name=f"{name}_subsample")(x)
        x = ZeroPadChannels(filters, dtype=make.dtype, name=f"{name}_shortcut")(x)
    elif stride == 2:
        x = make.norm(f"{name}_shortcut_bn")(make.conv(filters, 1, 2, f"{name}_shortcut_conv")(x))
    return make.relu(f"{name}_relu2")(layers.Add(dtype=make.dtype, name=f"{name}_add")([x, residual]))


def preact_block(x, filters, stride, name, make, skip, inner, *, is_first):
    """Liang 2020, section 2: x + conv(ReLU(BN(conv(ReLU(BN(x)))))).

    Args: as `v1_block`, and
        is_first: the block is the first of all, which has no BN-ReLU before its first convolution.
    """
    residual = x if is_first else make.relu(f"{name}_relu1")(make.norm(f"{name}_bn1")(x))
    residual = make.conv(inner[0], 3, stride, f"{name}_conv1")(residual)
    residual = make.drop(make.relu(f"{name}_relu2")(make.norm(f"{name}_bn2")(residual)), name)
    residual = make.finish(make.conv(filters, 3, 1, f"{name}_conv2")(residual), name, skip)
    if stride == 2:
        x = layers.AveragePooling2D(2, padding="same", dtype=make.sum_dtype, name=f"{name}_pool")(x)
        x = ZeroPadChannels(filters, dtype=make.sum_dtype, name=f"{name}_shortcut")(x)
    return layers.Add(dtype=make.sum_dtype, name=f"{name}_add")([x, residual])


def v2_block(x, filters, stride, name, make, skip, inner, *, begins_stage, is_bottleneck, shortcut):
    """He 2016, figure 4e: x + conv(ReLU(BN(... x))).

    Args: as `v1_block`, but for
        begins_stage: both branches share the first BN-ReLU.
        is_bottleneck: the branch has a 1x1 (with the stride), a 3x3 and a 1x1 convolution, and the output 4 * `filters` channels;
            else two of 3x3.
        shortcut: "A" or "B".
    """
    residual = make.relu(f"{name}_relu1")(make.norm(f"{name}_bn1")(x))
    if begins_stage:
        x = residual
    if is_bottleneck:
        residual = make.conv(inner[0], 1, stride, f"{name}_conv1")(residual)
        residual = make.relu(f"{name}_relu2")(make.norm(f"{name}_bn2")(residual))
        residual = make.conv(inner[1], 3, 1, f"{name}_conv2")(residual)
        residual = make.drop(make.relu(f"{name}_relu3")(make.norm(f"{name}_bn3")(residual)), name)
        filters = 4 * filters
        residual = make.conv(filters, 1, 1, f"{name}_conv3")(residual)
    else:
        if stride == 2:  # one grid with the shortcut, as in `v1_block`
            residual = layers.ZeroPadding2D(1, dtype=make.dtype, name=f"{name}_pad")(residual)
        residual = make.conv(inner[0], 3, stride, f"{name}_conv1", "valid" if stride == 2 else "same")(residual)
        residual = make.drop(make.relu(f"{name}_relu2")(make.norm(f"{name}_bn2")(residual)), name)
        residual = make.conv(filters, 3, 1, f"{name}_conv2")(residual)
    if x.shape[-1] != filters and shortcut == "B":
        x = make.conv(filters, 1, stride, f"{name}_shortcut_conv")(x)
    elif x.shape[-1] != filters:
        x = layers.AveragePooling2D(1, strides=2, dtype=make.sum_dtype, name=f"{name}_subsample")(x)
        x = ZeroPadChannels(filters, dtype=make.sum_dtype, name=f"{name}_shortcut")(x)
    return layers.Add(dtype=make.sum_dtype, name=f"{name}_add")([x, make.finish(residual, name, skip)])


def squeeze_and_excite(x, ratio, name, dtype):
    """Scales each channel by what two dense layers make of the means of all channels (Hu et al. 2018, figure 2)."""
    channels = x.shape[-1]
    gate = layers.GlobalAveragePooling2D(keepdims=True, dtype=dtype, name=f"{name}_se_pool")(x)
    gate = layers.Dense(
        max(1, channels // ratio),
        "relu",
        kernel_initializer="he_normal",
        dtype=dtype,
        name=f"{name}_se_reduce",
    )(gate)
    gate = layers.Dense(channels, "sigmoid", dtype=dtype, name=f"{name}_se_expand")(gate)
    return layers.Multiply(dtype=dtype, name=f"{name}_se_scale")([x, gate])
