"""Trained models on disk: saved, loaded from strangers' files, shipped in half precision.

load_model(path)              a trained model: raw pixels -> probabilities
as_functional(model)          a `keras.Sequential` as the functional model that it stands for
find_heads(model)             the heads of a trained model; `by_head` sorts what they give
halve_weights(source, target) a `.keras` file in half precision
"""

import io
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from resnet_study.checkpoints import read_checkpoint
from resnet_study.class_names import pack_class_names
from resnet_study.errors import UsageError
from resnet_study.files import write_atomically, written_aside
from resnet_study.networks import registry
from resnet_study.networks.layers import PixelNormalization, finalize_layers
from resnet_study.strings import shorten

# What Keras, or a layer of others, raises where the layer cannot be made again from its configuration.
CANNOT_COPY = (ValueError, TypeError, AttributeError, NotImplementedError)

_LARGEST_MODEL = 2 << 30  # bytes unpacked


def save_model(model, path: Path, class_names: dict[str, list[str]] | None = None) -> None:
    """Saves a Keras model as `.keras`, see `write_atomically`; with the names of its classes, see `class_names`."""
    with written_aside(path) as aside:
        model.save(aside)
        if class_names:
            pack_class_names(aside, class_names)


def read_model(path: Path):
    """Reads a Keras model from a `.keras` file; code in the file is refused.

    Args:
        path: of the file.

    Returns:
        keras.Model, not compiled.

    Raises:
        Exception: Keras raises nearly anything for a damaged file.
        ValueError: it would unpack to more than 2 GiB.
    """
    with zipfile.ZipFile(path) as file:
        unpacked = sum(member.file_size for member in file.infolist())
    if unpacked > _LARGEST_MODEL:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, more than {_LARGEST_MODEL:,}")
    return keras.saving.load_model(path, compile=False, safe_mode=True)


def load_model(path: str, shipped_name: str = "") -> keras.Model:
    """Loads a trained network that takes raw pixels 0..255 and returns probabilities.

    Args:
        path: "cifar10" or another of `registry.SHIPPED` = the shipped weights of `shipped_name`; a run folder (its `best.keras`); a `.keras` file; or a checkpoint
            `step-*.npz` in the folder of its run.
        shipped_name: registry name, used with shipped weights alone; "" = see `registry.default_network`.

    Returns:
        keras.Model, not compiled. Input [batch, height, width, channels], channels 1 or 3. Output float32 [batch, classes], or with
        several heads a dict, name of the head -> such a tensor.

    Raises:
        UsageError: not found, damaged, or not a classifier of images.

    Example:
        from resnet_study.saved_models import load_model

        model = load_model("cifar10")
        print(model.input_shape, model.output_shape)  # (None, 32, 32, 3) (None, 10)
    """
    if path in registry.SHIPPED:
        shipped_name = shipped_name or registry.default_network(path)
        try:
            return registry.find(shipped_name).build(weights=path)
        except Exception as error:  # none of this network, missing or damaged
            reason = shorten(str(error))
            raise UsageError(
                f"'{path}', the shipped weights, cannot be loaded for {shipped_name} ({reason})"
            ) from error
    place = Path(path).expanduser()
    if place.is_dir():
        place = place / "best.keras"
    if not place.is_file():
        raise UsageError(
            f"expected a run folder, .keras file, checkpoint or one of {', '.join(registry.SHIPPED)}, received '{path}'; there is no file {place}, give another path"
        )
    if place.suffix == ".npz":
        return _load_checkpoint(place)
    if place.suffix != ".keras":
        raise UsageError(
            f"expected a .keras file or a checkpoint .npz, received '{place}'; give another file, or a run folder (.onnx and .tflite are to be "
            "tested, asked and served: --mode=test, predict and serve, flowers.evaluate and flowers.predict, Predictor)"
        )
    try:
        model = as_functional(read_model(place))
        if isinstance(model.output, dict) and len(model.output) == 1:  # one head needs no name
            model = keras.Model(model.inputs, *model.output.values(), name=model.name)
        inputs, outputs = tuple(model.input_shape), [tuple(output.shape) for output in model.outputs]
        flat = all(isinstance(output, keras.KerasTensor) for output in by_head(model.output).values())
    # Keras raises nearly anything for a damaged file; whatever it is, the file cannot be used.
    except Exception as error:
        reason = shorten(str(error))
        raise UsageError(
            f"{place} is damaged or no Keras model of this library ({reason}); give another file"
        ) from error
    sizes = [*inputs[1:], *(size for output in outputs for size in output[1:])]
    shaped = len(inputs) == 4 and all(len(output) == 2 and output[1] != 1 for output in outputs)
    if not (flat and shaped and all(isinstance(size, int) for size in sizes)):
        raise UsageError(
            f"{place} must map [batch, height, width, channels] to [batch, classes], two classes or more, received {inputs} to {outputs}; "
            "give another file"
        )
    if isinstance(model.output, dict):
        check_head_names(model.output, place)
    if inputs[3] not in (1, 3) or max(inputs[1:]) > 4096:
        raise UsageError(
            f"{place} must take grey or RGB images of up to 4096 x 4096 pixels, received {inputs}; give another file"
        )
    return model


def check_head_names(names, place: Path) -> None:
    """Raises UsageError where a head, after which files are named, is called like a path."""
    for name in names:
        if not isinstance(name, str) or re.search(r"[/\\\0]|^\.|^$", name):
            raise UsageError(
                f"{place} must have heads with plain names, received {name!r}; rename the outputs of the model"
            )


def _load_checkpoint(path: Path) -> keras.Model:
    arrays, facts = read_checkpoint(path)
    if isinstance(facts.get("net"), dict) and "head" in facts["net"]:
        raise UsageError(
            f"expected a checkpoint of cifar10_main.py, received {path} of flowers.train, which lacks what never changes; give the run "
            "folder or its best.keras"
        )
    try:
        stored = facts["net"]
        model = registry.find(stored["model"]).build(
            input_shape=tuple(stored["input_shape"]),
            classes=stored["classes"],
            preprocessing=PixelNormalization.from_config(stored["normalization"]),
            **stored["options"],
        )
        averaged = any(name.startswith("average/") for name in arrays)
        for index, variable in enumerate(model.weights):
            variable.assign(arrays[f"average/{index:04d}" if averaged else f"net/{variable.path}"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is no checkpoint of a training run ({error}); give another file") from error
    return model


def as_functional(model):
    """A `keras.Sequential` whose input is known as a functional model of the same layers; anything else as it is.

    Raises:
        UsageError: it is a keras.Model whose layers Keras does not know.
    """
    if isinstance(model, keras.Sequential) and model.built:
        whole = keras.Model(model.inputs, model.outputs[0], name=model.name)
        if all(len(layer._inbound_nodes) == 1 for layer in model.layers):
            return whole
        # Keras calls each layer anew for every one that is added, as it does when it loads a file; a copy has each call once.
        try:
            copy = keras.models.clone_model(whole)
        except CANNOT_COPY:
            return whole
        copy.set_weights(whole.get_weights())
        finalize_layers(copy)
        return copy
    if isinstance(model, keras.Model) and not hasattr(model, "operations"):
        raise UsageError(
            f"expected a functional model, received {type(model).__name__} '{model.name}'; build it with keras.Model(inputs, outputs), a "
            "keras.Sequential with a keras.Input"
        )
    return model


def by_head(outputs) -> dict:
    """{name of the head: what it gives}, of the outputs or answers of a network; a single head is called ""."""
    return outputs if isinstance(outputs, dict) else {"": outputs}


def find_heads(model: keras.Model) -> dict[str, int]:
    """Name -> number of classes of each head of a network of `load_model`; a network with one head has it under the name "".

    Raises:
        ValueError: the outputs are no [batch, classes].
    """
    heads = by_head(model.output)
    if not all(len(getattr(tensor, "shape", ())) == 2 for tensor in heads.values()):
        received = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), model.output)
        raise ValueError(
            f"expected a model whose output is [batch, classes], or a dict of such, received {received} of '{model.name}'"
        )
    return {name: tensor.shape[-1] for name, tensor in heads.items()}


def halve_weights(source: Path, target: Path) -> None:
    """Writes a copy of a `.keras` file whose weights are rounded to float16; Keras loads it as float32.

    Args:
        source: file of `keras.Model.save`.
        target: file to write, may be `source`.

    Raises:
        ValueError: a weight is too large for float16 (65,504).
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith(".h5"):
                content = _halve_arrays(content)
            new.writestr(zipfile.ZipInfo(member.filename), content, zipfile.ZIP_DEFLATED)
    write_atomically(Path(target), archive.getvalue())


def _halve_arrays(content: bytes) -> bytes:
    """An HDF5 file with its float32 arrays as float16."""
    result = io.BytesIO()
    with h5py.File(io.BytesIO(content)) as old, h5py.File(result, "w") as new:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                copied = new.require_group(name)
            else:
                values = item[()]
                is_single = values.dtype == np.float32
                if is_single and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
                    raise ValueError(f"weights must be at most 65,504 for half precision, received more in {name}")
                copied = new.create_dataset(name, data=values.astype(np.float16) if is_single else values)
            copied.attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(copy)
    return result.getvalue()
