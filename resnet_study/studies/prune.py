"""A run that trains a smaller network on from a trained one: fewer channels, weights that are 0, or both."""

import dataclasses
import gzip
from pathlib import Path

import numpy as np

import cifar10_input
from cifar10_test import load_as_trained
from hyper_parameters import HyperParameters, from_preset
from resnet_study import devices
from resnet_study.errors import UsageError
from resnet_study.evaluation import find_model
from resnet_study.files import hash_file
from resnet_study.networks import registry
from resnet_study.networks.multiply_adds import multiply_adds
from resnet_study.networks.pruning import choose_widths, score_channels
from resnet_study.run_folder import RunFolder, begun_run_around
from resnet_study.saved_models import load_model


def plan(config: HyperParameters, given: dict, macs: float, resume: bool, overwrite: bool = False) -> HyperParameters:
    """The settings of the run, which is named after its source, or by `version` where `test_ckpt_path` names that.

    Of the recipe of the source it takes a quarter of the steps, half of the learning rate and a warm-up of a twentieth of its own
    steps, where `given` says nothing else.

    Args:
        config: settings that name the source, with what was given.
        given: flags that were given.
        macs: share of the multiply-adds that stay; 1 = all.
        resume: whether the run may have begun, and what was chosen then counts.
        overwrite: whether a run of that name is to begin anew.

    Raises:
        UsageError: nothing is to be pruned, the network cannot be made so small, or a run of that name exists.
    """
    if not 0 < macs <= 1 or (macs == 1 and not config.sparsity):
        received = "neither" if macs == 1 else f"--macs={macs:g}"
        raise UsageError(
            f"--mode=prune needs --macs above 0 and below 1, or --sparsity, received {received}; give such as --macs=0.6"
        )
    if macs < 1 and "widths" in given:
        raise UsageError(
            f"--macs chooses the widths itself, received --widths={given['widths']}; leave one of them out"
        )
    if macs == 1 and "prune_by" in given:
        raise UsageError(
            f"--prune_by={given['prune_by']} chooses the channels that --macs leaves, received no --macs; give such as --macs=0.6, or leave it out"
        )
    path, source = find_model(config)
    name = source.path.name.removeprefix("test-" if config.test_ckpt_path else "") + (
        f"-macs{macs:g}" if macs < 1 else ""
    )
    name += f"-zeros{config.sparsity:g}" if config.sparsity else ""
    if config.test_ckpt_path and config.version:
        name = config.version
    run = RunFolder(f"{config.runs_dir}/{name}")
    if run.path.resolve() == RunFolder(path).path.resolve():
        raise UsageError(f"--version={name} is the run to prune; give the new one another name")
    if resume and run.holds_run():
        stored = run.read_config(HyperParameters)
        if not stored.is_use_ckpt or not (stored.widths or stored.sparsity):
            raise UsageError(f"{run} is no run that was pruned; give another --version, or leave --resume out")
        if _are_others(stored.ckpt_path, path):
            raise UsageError(
                f"{run} was pruned from {stored.ckpt_path}, received {path}, which is another model; give another --version, or leave --resume out"
            )
        asked = {name: value for name, value in given.items() if name not in ("version", "test_ckpt_path")}
        place = {"runs_dir": config.runs_dir, "version": run.path.name}
        print(f"going on with {run}, what was pruned then stays; --macs is not looked at")
        return dataclasses.replace(run.read_config(HyperParameters), **asked | place)
    # Before anything is computed, as the training would have it.
    run.check(config, resume=resume, overwrite=overwrite)
    images = dataclasses.replace(config, hard_share=given.get("hard_share", 1.0)).images_per_step
    devices.choose_towers(config.towers, devices.choose_strategy(config.strategy), images // config.accumulate)
    model = load_model(path, config.shipped_name)
    data = next(iter(load_as_trained(config, path, model, own=False).values()))
    steps = config.train_steps if "train_steps" in given else max(1, config.train_steps // 4)
    # For which the decays of the source were made; where no run tells, those of the preset.
    begun = begun_run_around(path)
    whole = (begun.read_config(HyperParameters) if begun else from_preset(config.preset)).train_steps
    recipe = {
        "train_steps": steps,
        "report_freq": min(config.report_freq, steps),
        "init_lr": config.init_lr / 2,
        "warmup_steps": steps // 20,
        "decay_step0": config.decay_step0 * steps // whole,
        "decay_step1": config.decay_step1 * steps // whole,
        "extend": 0,
        "hard_share": 1.0,  # a proxy would begin random
    }
    if begun and begun.teacher.is_file():  # what it was taught by may be another one now
        recipe["teacher"] = str(begun.teacher)
    if macs < 1:
        training, _ = cifar10_input.split_data(data, config)
        left = choose_widths(model, score_channels(model, config.prune_by, training, config.seed), macs)
        if before := [int(width) for width in config.widths.split(",") if width]:
            # Blocks that the source has lost before have no places any more.
            places = iter(left)
            left = [next(places) if width else 0 for width in before]
        recipe["widths"] = ",".join(map(str, left))
        options = config.network_options | {"widths": left}
        classes, shape = model.output_shape[-1], model.input_shape[1:]
        smaller = registry.find(config.model_name).build(input_shape=shape, classes=classes, **options)
        print(
            f"{multiply_adds(model):,} -> {multiply_adds(smaller):,} multiply-adds, channels within the blocks: {recipe['widths']}"
        )
    start = {"is_use_ckpt": True, "ckpt_path": path, "test_ckpt_path": "", "version": run.path.name}
    return dataclasses.replace(config, **recipe | given | start)


def _are_others(one: str, other: str) -> bool:
    """Whether two paths, or names of shipped weights, lead to different models; False where one is gone."""
    if one == other or {one, other} & set(registry.SHIPPED):
        return one != other
    places = [Path(path).expanduser() for path in (one, other)]
    files = [RunFolder(place).best if place.is_dir() else place for place in places]
    return all(file.is_file() for file in files) and hash_file(files[0]) != hash_file(files[1])


def describe_size(run: RunFolder, sparsity: float) -> str:
    """What became of a pruned run: bytes as they are and compressed, and the share of zeros where some were asked for."""
    content = run.best.read_bytes()
    line = f"{run.best}: {len(content):,} bytes, {len(gzip.compress(content)):,} by gzip"
    if not sparsity:
        return line
    kernels = [weight for weight in load_model(str(run.best)).get_weights() if weight.ndim == 4]
    zeros = sum(int(np.sum(kernel == 0)) for kernel in kernels) / sum(kernel.size for kernel in kernels)
    return f"{line}; {zeros:.1%} of the weights of convolutions are 0"
