"""How a network becomes a file of each format. Whether the file is right is the business of `export`.

    format        file               quantizations
    keras         <name>.keras       none, float16
    saved_model   <name>/            none
    onnx          <name>.onnx        none, float16, int8
    litert        <name>.tflite      none, float16, dynamic, int8

float16: weights of 16 bits, arithmetic as before. dynamic: weights of 8 bits, the activations are rounded as they come. int8: weights
and activations of 8 bits, their ranges found on calibration images. There 8 bits spoil most in the first and the last layers with weights,
in what is before those and behind these, and in the sums of residual blocks: all these stay in float32.

All files take pixels 0..255, normalise them within, and hold the names of the classes.
"""

import contextlib
import logging
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

from resnet_study.class_names import CLASS_NAMES, list_label_files, pack_class_names
from resnet_study.errors import UsageError, one_line
from resnet_study.networks.first_and_last import find_first_and_last
from resnet_study.saved_models import halve_weights, save_model

QUANTIZATIONS = {
    "keras": ("none", "float16"),
    "saved_model": ("none",),
    "onnx": ("none", "float16", "int8"),
    "litert": ("none", "float16", "dynamic", "int8"),
}
ENDINGS = {"keras": ".keras", "saved_model": "", "onnx": ".onnx", "litert": ".tflite"}
_OPSET = 15  # of ONNX: old enough for the runtimes of phones and browsers
_CALIBRATION_BATCH = 50


def check_quantization(kind: str, quantize: str) -> None:
    """Raises UsageError for an unknown format, or a quantization that it does not have."""
    if kind not in QUANTIZATIONS:
        raise UsageError(
            f"--format must be one or more of {', '.join(QUANTIZATIONS)}, received '{kind}'; give another one (litert makes .tflite)"
        )
    if quantize not in QUANTIZATIONS[kind]:
        raise UsageError(
            f"--quantize must be {' or '.join(QUANTIZATIONS[kind])} for --format={kind}, received '{quantize}'; give another one"
        )


class Writer:
    """Writes one network in any format.

    Args:
        model: of `plain_keras.make_plain`.
        name: of the files, without ending.
        class_names: {name of the head: names}; a single head is called "".
        pixels: "uint8" or "float32", what the files take; a `.keras` file takes both.
        calibrate: function without arguments -> images [n, height, width, channels] for int8.
    """

    def __init__(self, model: keras.Model, name: str, class_names, pixels: str, calibrate):
        self._model, self._name, self._class_names = model, name, class_names
        self._pixels, self._calibrate = pixels, calibrate

    def write(self, kind: str, quantize: str, folder: Path) -> Path:
        """Writes a file into a folder that exists, with the labels beside it; returns its path.

        Raises:
            UsageError: the network cannot be brought to the format.
        """
        path = folder / f"{self._name}{ENDINGS[kind]}"
        self._write_labels(folder)
        try:
            getattr(self, f"_write_{kind}")(path, quantize)
        except (UsageError, OSError):
            raise
        # Converters raise nearly anything for a layer that they do not know.
        except Exception as error:
            raise UsageError(
                f"{self._name} cannot be brought to the format {kind}, {quantize} ({one_line(error)}); give another --format or --quantize"
            ) from error
        return path

    def _write_labels(self, folder):
        paths = []
        for name, text in list_label_files(self._class_names).items():
            paths.append(folder / name)
            paths[-1].write_text(text, encoding="utf-8", newline="\n")
        return paths

    def _write_keras(self, path, quantize):
        save_model(self._model, path, self._class_names)
        if quantize == "float16":
            halve_weights(path, path)

    def _function(self):
        """The network as a TensorFlow function of raw pixels that names its outputs, and its signature."""
        import tensorflow as tf

        signature = tf.TensorSpec((None, *self._model.input_shape[1:]), self._pixels, name="image")

        def classify(image):
            answers = self._model(image, training=False)
            return answers if isinstance(answers, dict) else {"probabilities": answers}

        return tf.function(classify, input_signature=[signature]), signature

    def _write_saved_model(self, path, _quantize):
        import tensorflow as tf

        function, _ = self._function()
        module = tf.Module()
        module.weights = [variable.value for variable in self._model.variables]
        with tempfile.TemporaryDirectory() as folder:
            module.assets = [tf.saved_model.Asset(str(file)) for file in self._write_labels(Path(folder))]
            tf.saved_model.save(module, str(path), signatures={"serving_default": function})

    def _write_litert(self, path, quantize):
        import tensorflow as tf

        with tempfile.TemporaryDirectory() as folder:
            self._write_saved_model(Path(folder) / "saved_model", "none")
            converter = tf.lite.TFLiteConverter.from_saved_model(str(Path(folder) / "saved_model"))
            if quantize in ("dynamic", "float16"):
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if quantize == "float16":
                converter.target_spec.supported_types = [tf.float16]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="(?s).*tf.lite.Interpreter is deprecated")
                content = converter.convert()
                if quantize == "int8":
                    content = self._quantize_litert(converter, content)
                path.write_bytes(content)
        pack_class_names(path, self._class_names)

    def _quantize_litert(self, converter, content):
        """The file of 8 bits that the converter makes; `content` is that in float32, which tells the names of what stays so."""
        import tensorflow as tf

        images = self._calibrate().astype(self._pixels)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({"image": image[None]} for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=_list_float_tensors(content))
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=converter.representative_dataset, debug_options=options
        )
        return _shorten_litert_names(debugger.get_nondebug_quantized_model())

    def _write_onnx(self, path, quantize):
        import onnx
        import tf2onnx

        function, signature = self._function()
        logging.getLogger("tf2onnx").setLevel("ERROR")
        proto, _ = tf2onnx.convert.from_function(function, [signature], opset=_OPSET)
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        for output in proto.graph.output:
            output.type.tensor_type.shape.dim[0].dim_param = "batch"
        if quantize == "float16":
            _halve_initializers(proto)
        if quantize == "int8":
            proto = self._quantize_onnx(proto)
        labels = {"class_names": list_label_files(self._class_names)[CLASS_NAMES]}
        onnx.helper.set_model_props(proto, labels)
        onnx.checker.check_model(proto)
        path.write_bytes(proto.SerializeToString())

    def _quantize_onnx(self, proto):
        """8 bits, unsigned for activations: onnxruntime computes signed ones several times more slowly."""
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        images = self._calibrate().astype(self._pixels)
        batches = [images[start : start + _CALIBRATION_BATCH] for start in range(0, len(images), _CALIBRATION_BATCH)]

        class Batches(quantization.CalibrationDataReader):
            def __init__(self):
                self._batches = iter(batches)

            def get_next(self):
                batch = next(self._batches, None)
                return None if batch is None else {"image": batch}

        with tempfile.TemporaryDirectory() as folder, _silenced():
            given, prepared, made = (f"{folder}/{name}.onnx" for name in ("given", "prepared", "made"))
            onnx.save(proto, given)
            quant_pre_process(given, prepared, skip_symbolic_shape=True)
            types = {
                "activation_type": quantization.QuantType.QUInt8,
                "weight_type": quantization.QuantType.QInt8,
                "quant_format": quantization.QuantFormat.QDQ,
            }
            nodes = onnx.load(prepared).graph.node
            kept = _find_float((node.op_type in _ONNX_WEIGHTED, node.input, node.output) for node in nodes)
            in_float = [nodes[place].name for place in kept]
            quantization.quantize_static(
                prepared, made, Batches(), per_channel=True, nodes_to_exclude=in_float, **types
            )
            return _shorten_onnx_names(onnx.load(made))


_ONNX_WEIGHTED = ("Conv", "Gemm", "MatMul")


def _find_float(operations) -> list[int]:
    """What `find_first_and_last` finds. Raises UsageError where that has all the weights."""
    operations = list(operations)
    kept = find_first_and_last(operations)
    if not any(operation[0] for place, operation in enumerate(operations) if place not in kept):
        raise UsageError(
            "--quantize=int8 leaves the first and the last layers with weights in float32 and needs others between them, received a network "
            "without; give --quantize=none"
        )
    return kept


def _list_float_tensors(content) -> list[str]:
    """The names of what stays in float32, in the LiteRT file that is so as a whole."""
    from ai_edge_litert import schema_py_generated as schema

    file = schema.ModelT.InitFromPackedBuf(content, 0)
    graph, codes = file.subgraphs[0], file.operatorCodes
    weighted = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.FULLY_CONNECTED)
    kinds = [codes[one.opcodeIndex].builtinCode for one in graph.operators]
    operations = [(kind in weighted, one.inputs, one.outputs) for kind, one in zip(kinds, graph.operators, strict=True)]
    # Sums of blocks, too: rounded, they add up what was rounded in all blocks before. In ONNX they are rounded, which costs no more there.
    sums = {place for place, kind in enumerate(kinds) if kind == schema.BuiltinOperator.ADD}
    kept = sums.union(_find_float(operations))
    return [graph.tensors[tensor].name.decode() for place in kept for tensor in operations[place][2]]


def _shorten_litert_names(content):
    """Numbers in the place of the names within, which are a tenth of a small file in 8 bits."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    file = schema.ModelT.InitFromPackedBuf(content, 0)
    for graph in file.subgraphs:
        for number in set(range(len(graph.tensors))) - {*graph.inputs, *graph.outputs}:
            graph.tensors[number].name = str(number)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(file.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _shorten_onnx_names(proto):
    """As `_shorten_litert_names`."""
    graph = proto.graph
    short = {item.name: item.name for item in (*graph.input, *graph.output)} | {"": ""}  # "" = an input left out
    for node in graph.node:
        node.name, node.doc_string = "", ""
        for names in (node.input, node.output):
            names[:] = [short.setdefault(name, str(len(short))) for name in names]
    for tensor in graph.initializer:
        tensor.name = short.setdefault(tensor.name, str(len(short)))
    del graph.value_info[:]
    return proto


@contextlib.contextmanager
def _silenced():
    """Without the warnings that a quantizer gives to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _halve_initializers(proto) -> None:
    """Keeps the weights of an ONNX graph in 16 bits, each brought to 32 where it is used."""
    import onnx

    largest, casts = np.finfo(np.float16).max, []
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 64 or np.abs(values).max() > largest:
            continue  # constants of an operation, such as a mean colour, keep their digits
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_float16"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
