"""Where the weights of a backbone come from: a file or a run folder, whatever network it holds the backbone in, or Keras' cache of downloads."""

import re
import tempfile
from pathlib import Path

import h5py
import keras
import numpy as np

from flowers.backbones import KNOWN_WEIGHTS
from resnet_study.data.download import is_reachable, keras_cache
from resnet_study.errors import UsageError
from resnet_study.networks.layers import finalize_layers
from resnet_study.networks.weights import copy_weights
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import read_model
from resnet_study.strings import shorten

_WEIGHTS_SITE = "https://storage.googleapis.com/tensorflow/keras-applications/"


def find_weights(path: str) -> Path:
    """The file that `--weights` names, of a run folder its `best.keras`."""
    place = Path(path).expanduser()
    return RunFolder(place).best if place.is_dir() else place


def load_backbone_weights(backbone: keras.Model, path: str) -> None:
    """Fills a backbone from a file, layer by layer by name.

    Args:
        backbone: model of `keras.applications` without its top.
        path: `.h5` or `.weights.h5` (of the backbone, or of a model that holds it, as one layer or with its layers among its own),
            `.keras` (the backbone, or a model of this library), or a run folder (its `best.keras`).

    Raises:
        UsageError: not found, damaged, of another network, or a layer got no weights; the backbone is then not to be used.
    """
    place = find_weights(path)
    if not place.is_file() or place.suffix not in (".h5", ".keras"):
        raise UsageError(
            f"--weights must be {', '.join(KNOWN_WEIGHTS)}, none, a run folder or a .h5, .weights.h5 or .keras file, received '{path}'; give one "
            "that exists"
        )
    source = None
    if place.suffix == ".keras":
        try:
            source = read_model(place)
        # A damaged file can raise nearly anything.
        except Exception as error:
            raise UsageError(f"--weights={path} could not be read: {shorten(str(error))}; give another file") from error
    # What is still not a number afterwards was not in the file.
    for variable in backbone.weights:
        variable.assign(np.full(variable.shape, np.nan))
    try:
        if source:
            nested = [layer for layer in source.layers if layer.name == backbone.name]
            copy_weights(nested[0] if nested else source, backbone)
        elif place.name.endswith(".weights.h5"):
            _load_own_or_nested(backbone, place)
        else:
            backbone.load_weights(place, by_name=True)
            _fill_from_nested(backbone, place)
    # Keras raises nearly anything for a file that is damaged or of another network.
    except Exception as error:
        fault = "could not be read" if isinstance(error, OSError) else f"does not fit {backbone.name}"
        raise UsageError(f"--weights={path} {fault}: {shorten(str(error))}; give another file") from error
    finalize_layers(backbone)
    missing = sorted({v.path.split("/")[0] for v in backbone.weights if not np.isfinite(v.numpy()).all()})
    if missing:
        raise UsageError(
            f"--weights={path} must hold finite weights for every layer of {backbone.name}, received none for {len(missing)} of them "
            f"({', '.join(missing[:3])}, ...); give a file of the same network"
        )


def _load_own_or_nested(backbone, place):
    """Fills a backbone from a `.weights.h5` file: its own, or that of a model of which it is one layer."""
    with h5py.File(place) as file:
        nested = [group for group in file.get("layers", {}).values() if "layers" in group]
        if len(nested) != 1:
            backbone.load_weights(place)
            return
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "backbone.weights.h5"
            with h5py.File(part, "w") as target:
                for name in nested[0]:
                    nested[0].copy(name, target)
            backbone.load_weights(part)


def _fill_from_nested(backbone, place):
    """Fills what `by_name` has not found in a `.h5` file from the group of a nested model, as a stock Keras script saves it."""
    if all(np.isfinite(variable.numpy()).all() for variable in backbone.weights):
        return
    with h5py.File(place) as file:
        found = {}
        for group in file.get("model_weights", file).values():
            for name in group.attrs.get("weight_names", ()):
                path = (name.decode() if isinstance(name, bytes) else name).removesuffix(":0")
                found["/".join(path.split("/")[-2:])] = group[name]
        for variable in backbone.variables:
            stored = found.get("/".join(variable.path.split("/")[-2:]))
            if stored is not None and stored.shape == tuple(variable.shape):
                variable.assign(stored[()])


def check_imagenet(spec) -> None:
    """Raises UsageError if the ImageNet weights are neither in Keras' cache nor can be reached within some seconds."""
    cache = keras_cache("models")
    # Keras writes the names of its files in several ways; that of ResNet50 is the beginning of that of ResNet50V2.
    files = [re.sub(r"[-_]", "", path.name.lower()) for path in cache.glob("*.h5")]
    if any(re.match(rf"(weights)?{spec.name}(?!v\d).*notop", name) for name in files):
        return
    if not is_reachable(f"{_WEIGHTS_SITE}resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"):
        raise UsageError(
            f"the ImageNet weights of {spec.application} are not in {cache} and could not be downloaded; connect to a "
            "network, put Keras' file without top there, use --weights=FILE, --weights=RUN or --weights=none, or --model=resnet20, whose "
            "weights are shipped"
        )
