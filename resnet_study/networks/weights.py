"""The weights that a network begins with: what a builder's argument `weights` names, and how they come into the network.

open_weights(weights)         what it names, with the normalisation of the pixels
load_weights(model, source)   these weights for a model of the same network
copy_weights(source, target)  layer by layer, by name
find_new_heads(source, target)  the dense layers for another number of classes, which can take no weights
"""

import collections
import os
import re
import sys
import warnings
from pathlib import Path

import h5py
import keras

from resnet_study.errors import UsageError, one_line
from resnet_study.networks import registry
from resnet_study.networks.graph import inputs_of, outputs_of
from resnet_study.networks.layers import CaffePreprocessing, PixelNormalization, finalize_layers
from resnet_study.saved_models import as_functional, read_model
from resnet_study.strings import shorten

_NORMALIZATIONS = (PixelNormalization, keras.layers.Normalization, keras.layers.Rescaling)
# Operations of `keras.ops` that leave the values of pixels as they are.
_KEEPING = ("Cast", "Concatenate", "Flip", "GetItem", "Pad", "Reshape", "Stack", "Transpose")


def open_weights(weights, preprocessing=None, shipped: str | None = None) -> tuple:
    """What a builder's argument `weights` names, read before the network is built, and what is to stand before that network.

    Args:
        weights: None; one of `registry.SHIPPED`, if `shipped` is given; or the path of a `.keras` or `.weights.h5` file.
        preprocessing: the builder's argument; None = as in the file.
        shipped: name of the network, for shipped weights.

    Returns:
        (source, preprocessing): source is for `load_weights`; preprocessing is the one given, or else a new layer with the
        constants of the file's pixel normalisation, or None if the file has none.

    Raises:
        ValueError: there is no such file, it is damaged, or it belongs to a network with a pixel normalisation that it does not hold.

    Example:
        from resnet import build_resnet
        from resnet_study.networks.weights import load_weights, open_weights

        source, preprocessing = open_weights("cifar10", shipped="resnet20")
        model = build_resnet(3, preprocessing=preprocessing)
        load_weights(model, source)
    """
    if weights is None:
        return None, preprocessing
    if weights in registry.SHIPPED and shipped:
        path = registry.shipped_file(shipped, weights)
        if not path.is_file():
            known = [card["model"] for card in registry.read_cards() if card["weights"] == weights]
            raise ValueError(
                f"weights={weights!r} are shipped for {', '.join(known) or 'no network yet'}, received {shipped}; {'take one of these, or ' if known else ''}train your own"
            )
        source = keras.saving.load_model(path, compile=False)
        return source, _copy_normalization(source)
    path = Path(weights).expanduser() if isinstance(weights, str | os.PathLike) else None
    if path is None or not path.is_file() or not path.name.endswith((".keras", ".weights.h5")):
        names = "".join(f"'{name}', " for name in registry.SHIPPED) if shipped else ""
        raise ValueError(
            f"weights must be None, {names}or the path of an existing .keras or .weights.h5 file, received {weights!r}"
        )
    try:
        if path.suffix == ".keras":
            source = read_model(path)
            found = None if preprocessing is not None else _copy_normalization(source)
        else:
            source, found = path, None if preprocessing is not None else _stored_normalization(path)
    except UsageError:
        raise
    # Keras raises nearly anything for a damaged file; whatever it is, the file cannot be used.
    except Exception as error:
        raise ValueError(f"{path} is damaged or no file of Keras ({one_line(error)}); give another file") from error
    return source, found if preprocessing is None else preprocessing


def load_weights(network: keras.Model, source) -> None:
    """Fills a network from the source that `open_weights` gives.

    A head for another number of classes than the source has stays as it is; a warning says so.

    Args:
        network: the layers to fill, of a model of this library.
        source: a model, or the path of a `.weights.h5` file.

    Raises:
        ValueError: the source holds another network. After a `.weights.h5` file the network may be partly filled then.
    """
    if isinstance(source, keras.Model):
        new_heads = find_new_heads(source, network)
        copy_weights(source, network, new_heads)
    else:
        new_heads = _find_new_head(source, network)
        there = _list_layers(source)
        if set(there) - {"None"}:  # which the first files of Keras 3 do not tell
            _check_heads(source, there, network)
            _check_form(source, there, network)
        kept = [network.get_layer(name) for name in new_heads]
        try:
            with warnings.catch_warnings():
                # Keras warns of each layer in a wrong file, and raises then.
                warnings.filterwarnings("ignore", "Skipping nested container")
                network.load_weights(source, objects_to_skip=kept)
        # Keras raises nearly anything for a file of other layers.
        except Exception as error:
            raise ValueError(
                f"weights of {source} do not fit '{network.name}': {shorten(str(error))}; give a file of the same network"
            ) from error
    for stored, wanted in new_heads.values():
        warnings.warn(
            f"the weights for {network.name} are of {stored} classes, expected {wanted}: the dense layer begins random; give "
            f"classes={stored} to keep that of the weights",
            stacklevel=_frames_to_caller(),
        )


def _frames_to_caller() -> int:
    """The `stacklevel` with which who calls this warns of the line outside of the library that called a builder."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and re.match(r"(resnet|resnet_study|flowers)(\.|$)", frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    return level


def find_new_heads(source: keras.Model, target: keras.Model) -> dict[str, tuple[int, int]]:
    """The heads of `target` that `source` has for another number of classes: name of the layer -> (classes there, classes here)."""
    given = {layer.name: layer for layer in source.layers if isinstance(layer, keras.layers.Dense)}
    found = {}
    for layer in target.layers:
        if layer.name in given and (layer.name == "predictions" or layer.name.startswith("predictions_")):
            (features, stored), (wanted_features, wanted) = given[layer.name].kernel.shape, layer.kernel.shape
            if features == wanted_features and stored != wanted:
                found[layer.name] = (stored, wanted)
    return found


def _find_new_head(path: Path, network: keras.Model) -> dict[str, tuple[int, int]]:
    """As `find_new_heads`, of the weights in a `.weights.h5` file; there dense layers have numbers in the place of names."""
    dense = [layer for layer in network.layers if type(layer) is keras.layers.Dense]
    if not dense or dense[-1].name != "predictions":
        return {}
    with h5py.File(path) as file:
        groups = _layer_groups(file)
        names = ["dense", *(f"dense_{number}" for number in range(1, len(dense)))]
        if {name for name in groups if re.fullmatch(r"dense(_\d+)?", name)} != set(names):
            return {}  # another network
        features, stored = groups[names[-1]]["vars"]["0"].shape
    wanted_features, wanted = dense[-1].kernel.shape
    return {"predictions": (stored, wanted)} if features == wanted_features and stored != wanted else {}


def _is_preprocessing(layer) -> bool:
    """Whether a layer changes pixels before a network: a normalisation, another of Keras' preprocessing layers, or a model of such."""
    if isinstance(layer, keras.Model):
        return all(_is_preprocessing(part) or isinstance(part, keras.layers.InputLayer) for part in layer.layers)
    return isinstance(layer, _NORMALIZATIONS) or type(layer).__module__.startswith("keras.src.layers.preprocessing.")


def has_normalization(model: keras.Model) -> bool:
    """Whether something changes the values of pixels before the first layer of a model that learns: a normalisation, also as operations of
    `keras.ops`, or batch norm.
    """
    for operation in _list_operations(model):
        if isinstance(operation, (*_NORMALIZATIONS, keras.layers.BatchNormalization)):
            return True
        if getattr(operation, "weights", None):
            return False
        is_layer = isinstance(operation, keras.layers.Layer) and not isinstance(operation, keras.layers.Lambda)
        if not is_layer and type(operation).__name__ not in _KEEPING:
            return True
    return False


def _list_operations(model):
    """The operations of a model from its input on, those of models within it in their place."""
    for operation in getattr(model, "operations", None) or model.layers:
        if isinstance(operation, keras.Model):
            yield from _list_operations(operation)
        else:
            yield operation


def _copy_normalization(source):
    """A copy of the layer that a trained model puts before its network, without weights; None if it has none.

    Raises:
        UsageError: it puts several there, or one that is not known.
    """
    source = as_functional(source)
    found, tensor = [], source.inputs[0]
    for layer in source.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        if [id(read) for read in inputs_of(layer)] != [id(tensor)] or not _is_preprocessing(layer):
            break
        (tensor,) = outputs_of(layer)
        if not type(layer).__name__.startswith("Random"):  # which changes nothing but in training
            found.append(layer)
    if len(found) > 1 or not all(isinstance(layer, _NORMALIZATIONS) for layer in found):
        raise UsageError(
            f"expected weights of a network behind one layer of pixel normalisation, received '{source.name}' behind "
            f"{', '.join(layer.name for layer in found)}; give these as preprocessing, such as a keras.Sequential"
        )
    return type(found[0]).from_config(found[0].get_config()) if found else None


def _stored_normalization(path: Path):
    """The `PixelNormalization` whose constants a `.weights.h5` file holds; None if its network had none."""
    with h5py.File(path) as file:
        groups = _layer_groups(file)
        for kind, layer in (("pixel_normalization", PixelNormalization), ("caffe_preprocessing", CaffePreprocessing)):
            stored = groups[kind]["vars"] if kind in groups and "vars" in groups[kind] else {}
            if {"mean", "scale", "per_image"} <= set(stored):
                mean, scale = (stored[name][()].tolist() for name in ("mean", "scale"))
                return layer(mean, scale, per_image=bool(stored["per_image"][()]), name="normalization")
        nested = [part["layers"] for part in groups.values() if "layers" in part]  # of models within the model
        kinds = {"pixel_normalization", "caffe_preprocessing", "normalization"}
        # ResNet-9, airbench and Inception-ResNet have rescalings of their own.
        scaled = any(
            name.startswith("rescaling")
            and "vars" in part
            and not re.fullmatch(r"None|(.*_)?scale", str(part["vars"].attrs.get("name")))
            for layers in (groups, *nested)
            for name, part in layers.items()
        )
        if scaled or any(kinds & set(layers) for layers in (groups, *nested)):
            raise UsageError(
                f"expected weights whose pixel normalisation is known, received {path}, which was saved from a network "
                "with such a layer but without its constants; give that layer as preprocessing, such as "
                "PixelNormalization(mean, scale), or the .keras file of the same network"
            )
    return None


def _layer_groups(file: h5py.File):
    """The layers of a `.weights.h5` file."""
    # The second name is that of the first files of Keras 3.
    return file.get("layers", file.get("_layer_checkpoint_dependencies", {}))


def copy_weights(source: keras.Model, target: keras.Model, without=()) -> None:
    """Copies the weights of every layer of `target` from the layer of the same name in `source`. Of those whose names look like Keras' own, the first
    of a class in one model is the first in the other, since Keras counts such names on within a process.

    Args:
        source: model with the weights.
        target: model that gets them.
        without: names of layers of `target` that keep the weights they have.

    Raises:
        ValueError: a layer is missing in `source`, or its weights have other shapes; or `source` has blocks that `target` lacks, or is
            another network of the registry. `target` is then unchanged.
    """
    given = {name: layer.get_weights() for name, layer in _layers_by_name(source).items()}
    layers = {
        name: layer for name, layer in _layers_by_name(target).items() if layer.weights and layer.name not in without
    }
    wanted = {name: [tuple(weight.shape) for weight in layer.weights] for name, layer in layers.items()}
    _check_heads(f"'{source.name}'", [layer.name for layer in source.layers], target)
    for name, shapes in wanted.items():
        received = [weight.shape for weight in given.get(name, [])]
        if received != shapes:
            raise ValueError(
                f"weights of '{source.name}' do not fit '{target.name}': layer {name} expects {shapes}, received {received}"
            )
    _check_form(f"'{source.name}'", [layer.name for layer in source.layers], target)
    for layer in _list_dropped(source, target):
        raise ValueError(
            f"weights of '{source.name}' do not fit '{target.name}': they have a layer {layer.name}, which it lacks"
        )
    names = source.name, target.name
    if names[0] != names[1] and all(
        name in registry.MODELS or re.fullmatch(r"(resnet|plain)\d+(_preact|_v2)?", name) for name in names
    ):
        raise ValueError(f"weights of '{source.name}' do not fit '{target.name}': they are another network's")
    for name, layer in layers.items():
        layer.set_weights(given[name])
    finalize_layers(target)


def _layers_by_name(model) -> dict[str, keras.Layer]:
    """The layers of a model by a name that another building of it has too: of one that Keras chose, how many of its class stand before."""
    named, counts = {}, collections.Counter()
    for layer in model.layers:
        own = not _has_automatic_name(layer)
        named[layer.name if own else f"{type(layer).__name__} {counts[type(layer)]}"] = layer
        counts[type(layer)] += not own
    return named


def _has_automatic_name(layer) -> bool:
    words = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(layer).__name__)).lower()
    return re.fullmatch(rf"{words}(_\d+)?", layer.name) is not None


def _list_dropped(source: keras.Model, target: keras.Model) -> list:
    """Layers with weights that `target` lacks, although it is no shorter network: neither preprocessing nor heads, nor, for a network
    without its top, what follows its last layer and is no block of a network of this library."""
    there = _layers_by_name(target)
    weighted = {name: layer for name, layer in _layers_by_name(source).items() if layer.weights}
    last = max((number for number, name in enumerate(weighted) if name in there), default=-1)
    has_top = any(name.startswith("predictions") for name in there)
    return [
        layer
        for number, (name, layer) in enumerate(weighted.items())
        if name not in there
        and not layer.name.startswith("predictions")
        and not _is_preprocessing(layer)
        and (has_top or number < last or re.match(r"(stage\d+|module|reduction)_", layer.name))
    ]


def _list_layers(path: Path) -> list[str]:
    """Names of the layers of a `.weights.h5` file; "None" for each that tells none, and nothing of a file that cannot be read."""
    try:
        with h5py.File(path) as file:
            return [str(group["vars"].attrs.get("name")) for group in _layer_groups(file).values() if "vars" in group]
    except OSError:  # which is told where its weights are loaded
        return []


def _check_heads(source, names: list[str], target: keras.Model) -> None:
    """Raises ValueError where the names of the layers tell of other heads than those of `target`; a network without any takes the rest."""
    heads, theirs = (
        sorted(name for name in known if name.startswith("predictions"))
        for known in ([layer.name for layer in target.layers], names)
    )
    if heads and theirs and heads != theirs:
        raise ValueError(
            f"weights of {source} have the heads {', '.join(theirs)}, expected {', '.join(heads)} for '{target.name}'"
        )


def _check_form(source, names: list[str], target: keras.Model) -> None:
    """Raises ValueError where the names of the layers tell of another network than `target`, although all weights would fit."""
    here = {layer.name for layer in target.layers}
    # Where a `.weights.h5` file has weights of the same shapes in the same order, Keras takes them for those of this network.
    filled = {
        layer.name
        for layer in target.layers
        if layer.weights and not (_is_preprocessing(layer) or _has_automatic_name(layer))
    }
    has_blocks, has_top = any("_block" in name for name in names), any(name.startswith("predictions") for name in here)
    for name in sorted(here ^ set(names)):
        makes_residual = has_blocks and re.fullmatch(r"stage\d+_block\d+_add", name)
        is_missing = name in here and (name in filled or re.fullmatch(r"(relu|tanh)\d", name))
        is_head = name.startswith("predictions")
        if makes_residual or (has_top and name == "maxout_pieces") or (is_missing and not is_head):
            raise ValueError(
                f"weights of {source} do not fit '{target.name}': one has a layer {name}, which the other lacks; give a file of the same "
                "network"
            )
