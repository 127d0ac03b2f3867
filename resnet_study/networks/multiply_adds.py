"""How large a network is: its parameters, and the multiply-adds of an image."""

import itertools
import math

import keras
import tensorflow as tf


def count_parameters(variables) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds (MACs) of one image through a network: convolutions of images (also depthwise, grouped and transposed) and matrix
    products, without biases and the rest. TensorFlow counts them on the graph that it would compute.
    """
    function = tf.function(lambda images: model(images, training=False))
    graph = function.get_concrete_function(tf.TensorSpec((1, *model.input_shape[1:]))).graph
    builder = tf.compat.v1.profiler.ProfileOptionBuilder
    options = (
        builder(builder.float_operation())
        .with_accounted_types(["Conv2D", "Conv2DBackpropInput", "DepthwiseConv2dNative", "MatMul"])
        .with_empty_output()
        .build()
    )
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # the profiler warns of functions of its own
    try:
        counted = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops // 2
    finally:
        logger.setLevel(level)
    # Keras computes grouped convolutions in a function of their own, into which the profiler does not look.
    return counted + _count_grouped(model)


def _count_grouped(model) -> int:
    """Multiply-adds of the grouped convolutions of a model, those of models within it included."""
    whole, total = getattr(model, "_functional", None) or model, 0  # a Sequential holds what it computes in another one
    for node in itertools.chain.from_iterable(getattr(whole, "_nodes_by_depth", {}).values()):
        layer, cells = node.operation, node.output_tensors[0].shape[1:3]
        if isinstance(layer, keras.layers.Conv2D) and layer.groups > 1 and None not in cells:
            total += math.prod(cells) * math.prod(layer.kernel.shape)
        elif isinstance(layer, keras.Model):
            total += _count_grouped(layer)
    return total
