"""The settings that a command of `cifar10_main` works with: from its flags, from a run that exists, or as a model was trained.

Importing this module imports neither TensorFlow nor Keras.
"""

import argparse
import dataclasses
import shlex
from pathlib import Path

import hyper_parameters
from resnet_study.command_line import add_flags
from resnet_study.errors import UsageError, say_once
from resnet_study.networks import registry
from resnet_study.run_folder import RunFolder, begun_run_around, find_run, find_settings, run_around
from resnet_study.run_images import check_parts

# The settings that the name of a run folder follows from.
_NAMING = (
    "version", "runs_dir", "preset", "model", "num_residual_blocks", "dataset", "data_dir", "seed", "validation_fraction",
    "folds", "fold",
)  # fmt: skip
# The settings that the test part of a folder of images follows from.
_OF_FOLDER = (
    "data_dir", "labels", "label_level", "label_separator", "image_size", "channels", "test_fraction", "split_seed", "on_bad_image",
    "folds", "fold",
)  # fmt: skip

_FIELDS = dataclasses.fields(hyper_parameters.HyperParameters)
_EVERY = {field.name for field in _FIELDS}
# Those that a run is held against, see `find_settings`.
_KEPT = {field.name for field in _FIELDS if not field.metadata["operational"]}
# Where things lie, which scripts say in each of their commands, and what a run or study is called.
_WHERE = {"runs_dir", "data_dir"}
_PLACES = {"version", *_WHERE}
_NETWORK = {"model", "num_residual_blocks"}
# What tells how images of one's own are read; of their JPEG files each model tells itself.
_READING = {"value_range", "resize"}
# What tells on which data a model is tested that no run or flag of a run tells of.
_OF_DATA = {"preset", "dataset", "synthetic_images", "heads", *_OF_FOLDER, *_READING}
_TABLE = {"labels", "label_separator"}
_TEST = {"test_batch_size", "test_flip", "test_shifts"}
_STUDY = _EVERY - {"test_ckpt_path", "prune_by"}
# The settings that each mode reads, where no model is named by its path or the like.
_READS = {
    "train": _EVERY - {"test_ckpt_path"},
    "test": _KEPT | _PLACES | _TABLE | _TEST,
    "predict": _KEPT | _PLACES | {"test_batch_size"},
    "export": _KEPT | _PLACES | _TABLE | {"test_batch_size"},
    "prune": _EVERY - {"is_use_ckpt", "ckpt_path", "quantize_aware"},
    "calibrate": _KEPT | _PLACES | _TABLE | {"test_batch_size"},
    "models": _WHERE,
    "report": {*_NAMING, *_TABLE},
    "serve": {*_NAMING},
    "runs": _WHERE,
    "publish": _KEPT | _PLACES,
    "compare": _STUDY,
    "degradation": _STUDY - _NETWORK,
    "robustness": _STUDY,
    "compress": _OF_DATA | _PLACES | {"model", "seed", "test_batch_size"},
    "diagram": _PLACES | _NETWORK | {*hyper_parameters.NETWORK_OPTIONS},
}
# The same where paths name the models; `_NETWORK` is that of shipped weights.
_READS_OF_MODELS = {
    "test": _OF_DATA | _PLACES | _TEST,
    "predict": {"preset", "dataset", "test_batch_size"} | _PLACES | _READING,
    "export": _OF_DATA | _PLACES | {"seed", "test_batch_size"},
    "serve": _OF_DATA | _PLACES | {"validation_fraction"},
}
# What to do about a setting that is not read, where that is more than to leave it out: (mode, setting) -> what.
_ADVICE = {
    ("train", "test_ckpt_path"): "give --ckpt_path to start from weights; --test_ckpt_path is for --mode=test, predict, export, serve and prune",
    **{(mode, "test_ckpt_path"): f"{mode} a run, by its --version" for mode in ("calibrate", "publish", "report")},
    **{("degradation", name): "leave it out, --models or --depths name the networks" for name in _NETWORK},
    ("compress", "num_residual_blocks"): "give --versions=resnet32 and so on",
    ("prune", "quantize_aware"): "give it to a training that begins with the pruned run: --mode=train --is_use_ckpt --ckpt_path=RUN, with its --widths or --sparsity",
    **{("prune", name): "name what to prune by --version or --test_ckpt_path" for name in ("is_use_ckpt", "ckpt_path")},
}  # fmt: skip


def check_read(flags: dict, mode: str, paths=(), versions=()) -> None:
    """Raises UsageError for a setting that was given and that the mode would ignore.

    Args:
        flags: those of the settings that were given.
        mode: what is done.
        paths: what `test_ckpt_path` or for serve anything else names: run folders, model files, names of shipped weights.
        versions: what --versions names.
    """
    read, of = _READS[mode], " with --versions" * bool(versions)
    if paths and mode in _READS_OF_MODELS:
        read, of = _READS_OF_MODELS[mode] | {"test_ckpt_path"}, " of a model file"
        held = [begun_run_around(path) is not None for path in paths]
        if any(held):
            of = " of a run"
            if mode == "serve":
                read = _PLACES | {"test_ckpt_path"} if all(held) else read - _READING
        if any(path in registry.SHIPPED for path in paths):
            read, of = read | _NETWORK, of.replace("a model file", "shipped weights")
    elif mode == "report" and versions:
        read = _PLACES
    elif mode == "report" and "version" in flags:
        read, of = _PLACES | _TABLE, " of a run"
    elif mode == "compress" and versions and not set(versions) & set(registry.SHIPPED):
        read = read - {"model"}
    _refuse_others(flags, read, mode, of)


def _refuse_others(flags, read, mode, of):
    for name, value in flags.items():
        if name not in read and value != "":
            advice = _ADVICE.get((mode, name), "leave it out")
            raise UsageError(f"--mode={mode}{of} reads no --{name}, received --{name}={value}; {advice}")


def find_command_settings(flags: dict, mode: str, resume: bool) -> hyper_parameters.HyperParameters:
    """The settings of the run: those it has stored, where it exists and goes on, changed by the flags that were given.

    Args:
        flags: those of the settings that were given.
        mode: what is done.
        resume: whether a run that exists goes on.

    Raises:
        UsageError: the mode needs a run and there is none, or the flags contradict it.
    """
    make = hyper_parameters.from_flags
    if flags.get("test_ckpt_path"):
        if mode != "prune" and flags.get("version"):
            raise UsageError(
                f"--version={flags['version']} and --test_ckpt_path both name a model for --mode={mode}; give one of them"
            )
        return with_recipe(flags) if mode == "prune" else with_data(flags)
    run = find_named(flags)
    if mode == "publish" and (run.path / "study.json").is_file():
        _refuse_others(flags, _NAMING, mode, " of a study")
        return make(flags)
    if mode in ("test", "predict", "calibrate", "export", "prune") and not run.holds_run():
        raise UsageError(
            f"expected a run in {run}, found none; train it first, give another --version, or --test_ckpt_path=cifar10 for the "
            "shipped weights"
        )
    if mode == "prune":
        _check_source(run, flags)
        flags = {"extend": 0} | flags  # it begins a schedule of its own
    crosses = flags.get("folds", 0) and not flags.get("fold")
    goes_on, begins = (resume and not crosses) or mode != "train", mode in ("train", "prune")
    return find_settings(run, hyper_parameters.HyperParameters, make, flags, goes_on=goes_on, begins=begins)


def _check_source(run, flags):
    """Raises UsageError for flags that a run which is pruned cannot have: with other parts, it would be tested on what it was trained on."""
    if "preset" in flags and "version" in flags:
        raise UsageError(
            f"--mode=prune takes the recipe of {run}, received --preset={flags['preset']}; give single settings, such as --init_lr"
        )
    _read_data_flags(flags | {"test_ckpt_path": str(run.path)})


def find_named(flags: dict) -> RunFolder:
    """The folder of the run or study that flags name, by its version or by what its name follows from; it need not exist."""
    return find_run(hyper_parameters.from_flags, flags, _NAMING)


def find_others(flags: dict):
    """The labelled images to test on, where they are others than those of the run, see `find_new`."""
    from resnet_study.data.new_images import find_new

    path = flags.get("test_ckpt_path")
    run = run_around(path) if path else find_named(flags)
    holds = run is not None and run.holds_run()
    settings = hyper_parameters.HyperParameters
    stored = run.read_config(settings) if holds else None
    return find_new(flags, stored, run, settings.__dataclass_fields__["dataset"].default)


def with_data(flags: dict) -> hyper_parameters.HyperParameters:
    """The settings of flags with `test_ckpt_path`; what they leave open of the data is as the model was trained on, where that is known."""
    return hyper_parameters.from_flags(_read_data_flags(flags) | flags)


def with_recipe(flags: dict) -> hyper_parameters.HyperParameters:
    """The settings of flags with `test_ckpt_path`; what they leave open is as in the training of the model, where that is known."""
    path, config = flags["test_ckpt_path"], with_data(flags)
    if path not in registry.SHIPPED:
        run = begun_run_around(path)
        if run is None:
            return config
        _check_source(run, flags | {"version": ""})
        stored = run.read_config(hyper_parameters.HyperParameters)
        # A pruned run begins its own schedule, also that of a run which was extended.
        return dataclasses.replace(stored, **{"runs_dir": config.runs_dir, "version": "", "extend": 0} | flags)
    commands = [
        card["command"]
        for card in registry.read_cards()
        if (card["model"], card["weights"]) == (config.model_name, path)
    ]
    if "preset" in flags or not commands:
        return config
    parser = argparse.ArgumentParser(allow_abbrev=False)  # or --mode would be --model
    add_flags(parser, hyper_parameters.HyperParameters)
    recipe = vars(parser.parse_known_args(shlex.split(commands[0]))[0])
    return hyper_parameters.from_flags(_read_data_flags(flags) | recipe | {"seed": config.seed, "version": ""} | flags)


def _read_data_flags(flags):
    """Flags of the data, and of shipped weights the network, that a model of `test_ckpt_path` was trained with, where they are known."""
    path = flags["test_ckpt_path"]
    if path in registry.SHIPPED:
        named = {"model", "num_residual_blocks"} & flags.keys()
        network = {} if named else {"model": registry.default_network(path)}
        return network | ({} if "dataset" in flags else {"dataset": registry.dataset_of(path)})
    run = begun_run_around(path)
    if run is None:
        return {}
    stored = run.read_config(hyper_parameters.HyperParameters)
    # What tells the parts of the data holds wherever these lie now: with others, it would be tested on what it was trained on.
    if flags.get("dataset", stored.dataset) != stored.dataset:
        names = ("value_range", "resize", "jpeg_size")
    else:
        names = ("dataset", "synthetic_images", "heads", "value_range", "resize", "jpeg_size")
        if stored.dataset == "folder":
            names += _OF_FOLDER
            check_parts(run, stored, flags, ("test_fraction", "split_seed", "folds", "fold"))
        elif stored.dataset == "synthetic":
            check_parts(run, stored, flags, ("synthetic_images",))
        elif stored.data_dir and Path(stored.data_dir).expanduser().exists():
            names += ("data_dir",)
        elif stored.data_dir and "data_dir" not in flags:
            say_once(
                f"{stored.data_dir}, where {run} had its data, is gone; they are taken from Keras' cache, or --data_dir says where they are"
            )
    return {name: getattr(stored, name) for name in names}


def find_sources(flags: dict, versions: list[str]) -> dict[str, hyper_parameters.HyperParameters]:
    """Name -> settings to test with, of each run, model file or network with shipped weights."""
    found, runs = {}, Path(hyper_parameters.from_flags(flags).runs_dir).expanduser()
    for name in versions:
        place = runs / name
        source = {"test_ckpt_path": str(place) if place.is_dir() else name}
        if name in registry.MODELS and not place.is_dir():
            weights = flags.get("dataset", "cifar10")
            source = {"test_ckpt_path": weights if weights in registry.SHIPPED else "cifar10", "model": name}
        found[name] = with_data(flags | source)
    return found
