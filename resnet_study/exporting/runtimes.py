"""A process that opens a model file with its own runtime and answers images; `exported_model` starts it and talks to it.

    python -P runtimes.py FORMAT PATH THREADS

It imports nothing of this library, and refuses to: so it shows that a file needs no more than its runtime. A file that brings its
runtime down, or that fills the memory, ends this process and no other.

Standard output holds messages, each 8 bytes of length and so many bytes of an `.npz` file: first what the file is, then for each
message of standard input, `images` [n, height, width, channels], the answers: float [n, classes] for each head, `head_0`, `head_1`, ...
Where `seconds` come with the images, it tells the time of a batch instead, see `time_answers`. In the place of all may stand `error`, a line of text.
"""

import io
import os
import re
import statistics
import sys
import time
import zipfile
from pathlib import Path

import numpy as np

OWN = ("resnet", "resnet_study", "flowers", "hyper_parameters", "cifar10_input", "cifar10_main", "cifar10_test", "cifar10_train")  # fmt: skip
CLASS_NAMES = "class_names.json"  # {name of the head: names of its classes}
_LONGEST_NAMES = 16 << 20  # bytes


def read_packed_names(path):
    """The class names in an archive, as JSON; "" where there are none."""
    with zipfile.ZipFile(path) as packed:
        if CLASS_NAMES not in packed.namelist() or packed.getinfo(CLASS_NAMES).file_size > _LONGEST_NAMES:
            return ""
        return packed.read(CLASS_NAMES).decode()


class Onnx:
    """A file of ONNX in onnxruntime."""

    def __init__(self, path, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads:
            options.intra_op_num_threads = threads
        # From bytes, so that it cannot ask for other files beside it.
        content = Path(path).read_bytes()
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.inputs = [(list(item.shape), _ONNX_TYPES.get(item.type, item.type)) for item in self._session.get_inputs()]
        self.outputs = {item.name: list(item.shape) for item in self._session.get_outputs()}
        self.class_names = self._session.get_modelmeta().custom_metadata_map.get("class_names", "")

    def answer(self, images):
        names = list(self.outputs)
        return dict(zip(names, self._session.run(names, {self._session.get_inputs()[0].name: images}), strict=True))


_ONNX_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


class Litert:
    """A file of LiteRT (TensorFlow Lite) in its interpreter."""

    def __init__(self, path, threads):
        from ai_edge_litert import __version__, interpreter

        content = Path(path).read_bytes()
        self._interpreter = interpreter.Interpreter(model_content=content, num_threads=threads or None)
        self.runtime = f"ai-edge-litert {__version__}"
        given, made = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.inputs = [(item["shape_signature"].tolist(), np.dtype(item["dtype"]).name) for item in given]
        self._places = {_tensor_name(item["name"], index): item["index"] for index, item in enumerate(made)}
        signatures = self._interpreter.get_signature_list()
        if len(signatures) == 1:
            (key,) = signatures
            details = self._interpreter.get_signature_runner(key).get_output_details()
            self._places = {name: item["index"] for name, item in details.items()}
        shapes = {item["index"]: item["shape_signature"].tolist() for item in made}
        self.outputs = {name: shapes[index] for name, index in self._places.items()}
        self._input, self._size, self.class_names = given[0]["index"] if given else None, None, ""
        if zipfile.is_zipfile(path):
            self.class_names = read_packed_names(path)

    def answer(self, images):
        if self._size != len(images):
            self._interpreter.resize_tensor_input(self._input, images.shape)
            self._interpreter.allocate_tensors()
            self._size = len(images)
        self._interpreter.set_tensor(self._input, images)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(index) for name, index in self._places.items()}


def _tensor_name(name, index):
    return re.sub(r"\W", "_", name) or f"output_{index}"


class SavedModel:
    """A folder of TensorFlow's SavedModel, as TensorFlow Serving would call it."""

    def __init__(self, path, threads):
        import tensorflow as tf

        if threads:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.experimental.enable_tensor_float_32_execution(False)  # as `devices.import_tensorflow`
        _refuse_side_effects(path)
        self._loaded = tf.saved_model.load(path)
        signature = self._loaded.signatures["serving_default"]
        self.runtime = f"tensorflow {tf.__version__}"
        specs = signature.structured_input_signature[1]
        self.inputs = [(spec.shape.as_list(), spec.dtype.name) for spec in specs.values()]
        self.outputs = {name: spec.shape.as_list() for name, spec in signature.structured_outputs.items()}
        self._call = lambda images: signature(**{next(iter(specs)): tf.constant(images)})
        names, self.class_names = Path(path, "assets", CLASS_NAMES), ""
        if names.is_file() and names.stat().st_size <= _LONGEST_NAMES:
            self.class_names = names.read_text(encoding="utf-8")

    def answer(self, images):
        return {name: tensor.numpy() for name, tensor in self._call(images).items()}


# State of a network, and what else may stand in one though TensorFlow knows it as stateful.
_HARMLESS = {"VarHandleOp", "ReadVariableOp", "PartitionedCall", "StatefulPartitionedCall", "Placeholder"}
# By their names, since TensorFlow knows some of them as stateless: `DatasetFromGraph` runs whatever graph it is given as a text, and the
# `Debug` operations write their input to files and addresses.
_TOUCHES_FILES = re.compile(
    "File|PyFunc|Save|Restore|Checkpoint|Reader|Print|Dump|Plugin|Dataset|Debug|Remote|ImmutableConst|Send|Recv"
)


def _refuse_side_effects(path):
    """Raises ValueError where a function of a SavedModel does more than compute: files and programs are nothing a network needs."""
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    content = saved_model_pb2.SavedModel()
    content.ParseFromString(Path(path, "saved_model.pb").read_bytes())
    for graph in content.meta_graphs:
        functions = {item.signature.name: item for item in graph.graph_def.library.function}
        if not graph.object_graph_def.concrete_functions:
            raise ValueError("it is no SavedModel of TensorFlow 2 with functions")
        waiting = list(graph.object_graph_def.concrete_functions)
        seen = set(waiting)
        while waiting:
            function = functions.get(waiting.pop())
            for node in function.node_def if function is not None else ():
                operation = op_def_registry.get(node.op)
                stateful = operation is not None and operation.is_stateful and node.op not in _HARMLESS
                if node.op not in functions and (operation is None or stateful or _TOUCHES_FILES.search(node.op)):
                    raise ValueError(f"it holds the operation {node.op}, which may do more than compute")
                called = [node.op]
                for value in node.attr.values():
                    called += [value.func.name, *(item.name for item in value.list.func)]
                new = {name for name in called if name in functions} - seen
                seen |= new
                waiting += new


class Keras:
    """A `.keras` file in Keras, with the backend that KERAS_BACKEND names."""

    def __init__(self, path, threads):
        import keras

        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.experimental.enable_tensor_float_32_execution(False)  # as `devices.import_tensorflow`
        self._model = keras.saving.load_model(path, compile=False)
        self.runtime = f"keras {keras.__version__} on {keras.backend.backend()}"
        self.inputs, outputs = [(list(self._model.input_shape), "float32")], self._model.output
        self._named = isinstance(outputs, dict)
        outputs = outputs if self._named else {"probabilities": outputs}
        self.outputs = {name: list(tensor.shape) for name, tensor in outputs.items()}
        self.class_names = read_packed_names(path)

    def answer(self, images):
        found = self._model.predict_on_batch(images)
        return found if self._named else {"probabilities": found}


FORMATS = {"onnx": Onnx, "litert": Litert, "saved_model": SavedModel, "keras": Keras}


def _describe(model):
    """What the file is, as arrays. Raises ValueError unless it maps images to the classes of one or more heads."""
    shape, kind = model.inputs[0] if len(model.inputs) == 1 else (None, None)
    if shape is None or len(shape) != 4 or not all(isinstance(size, int) and size > 0 for size in shape[1:]):
        raise ValueError(f"it must take one input [batch, height, width, channels], received {model.inputs}")
    if kind not in ("uint8", "float32"):
        raise ValueError(f"it must take pixels as uint8 or float32, received {kind}")
    outputs = model.outputs
    if not outputs or not all(len(one) == 2 and isinstance(one[1], int) and one[1] > 0 for one in outputs.values()):
        raise ValueError(f"it must give [batch, classes], received {outputs}")
    batch = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0  # 0 = any
    return {
        "input_shape": np.array(shape[1:]),
        "batch": np.array(batch),
        "pixels": np.array(kind),
        "heads": np.array(list(outputs)),
        "classes": np.array([size for _, size in outputs.values()]),
        "class_names": np.array(model.class_names),
        "runtime": np.array(model.runtime),
    }


def _answer(model, facts, request):
    images, kind, batch = request["images"], str(facts["pixels"]), int(facts["batch"])
    if kind == "uint8" and images.dtype != np.uint8:
        images = np.clip(np.rint(images), 0, 255)
    images = np.ascontiguousarray(images, kind)
    parts, size = [], batch or len(images)
    for start in range(0, len(images), size):
        part = images[start : start + size]
        filled = np.concatenate(
            [part, np.zeros((size - len(part), *part.shape[1:]), kind)]
        )  # a file for batches of one size
        found = model.answer(filled)
        parts.append([np.asarray(found[name])[: len(part)] for name in model.outputs])
    return {f"head_{index}": np.concatenate(values) for index, values in enumerate(zip(*parts, strict=True))}


def time_answers(answer, images, seconds):
    """Median seconds of `answer(images)` once it is warm, of as many calls as take `seconds`, at least three."""
    for _ in range(3):
        answer(images)
    took = []
    while len(took) < 3 or sum(took) < seconds:
        started = time.perf_counter()
        answer(images)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def _time(model, _facts, request):
    return {"seconds": np.array(time_answers(model.answer, request["images"], float(request["seconds"])))}


def write_message(file, **arrays):
    """Writes arrays as one message."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    file.write(len(buffer.getvalue()).to_bytes(8, "little") + buffer.getvalue())
    file.flush()


def read_message(file):
    """The arrays of the next message; None at the end."""
    length = file.read(8)
    if len(length) < 8:
        return None
    return dict(np.load(io.BytesIO(file.read(int.from_bytes(length, "little"))), allow_pickle=False))


def main(kind, path, threads):
    for name in OWN:
        sys.modules[name] = None  # an import of it fails
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints is no message
    try:
        model = FORMATS[kind](path, int(threads))
        facts = _describe(model)
        write_message(messages, **facts)
        while (request := read_message(sys.stdin.buffer)) is not None:
            answer = _time if "seconds" in request else _answer
            write_message(messages, **answer(model, facts, request))
    # Runtimes raise nearly anything for a damaged file; whatever it is, the file cannot be used.
    except Exception as error:
        write_message(messages, error=np.array(f"{type(error).__name__}: {error}"[:2000]))
    messages.flush()
    os._exit(0)  # without the destructors of what a strange file has left behind


if __name__ == "__main__":
    main(*sys.argv[1:])
