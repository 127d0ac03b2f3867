"""Whether images are those that a run was trained on, in the same parts: where they are others, or in others, errors would be too small.

check_own, check_own_of     of a test, a prediction or a page: the images have not changed since
check_same_images           of a run that goes on
check_given_images          of a run whose images a program gave
check_parts                 flags that would draw other parts
tell_known_images           of weights that may know images that are held out
tell_own_images             of files to answer for that the model was trained on
"""

import json
from collections.abc import Callable
from pathlib import Path

from resnet_study.data.file_sorting import part_of
from resnet_study.errors import UsageError, say_once
from resnet_study.files import read_json
from resnet_study.networks import registry
from resnet_study.run_folder import RunFolder, begun_run_around


def check_own(run: RunFolder, fingerprint: str, place: str) -> None:
    """Raises UsageError where images are others than those a run was trained with: among them, its training images may be in other parts."""
    kept = read_json(run.data, {}).get("fingerprint", fingerprint)
    if kept != fingerprint:
        raise UsageError(
            f"the images of {place} have changed since {run} was trained; bring back what was there, or test on other images "
            "(--dataset=folder --data_dir=NEW), or check an export on files (--images)"
        )


def check_own_of(path: str, config, fingerprint: str, place: str, digest: Callable[[], str] | None = None) -> None:
    """As `check_own`, of the run that a model lies in, where that is of the same data set.

    Args:
        path: of the model.
        config: settings of the images.
        fingerprint, place: of the images.
        digest: see `check_given_images`; None = no program gives images of this kind.

    Raises:
        UsageError: as `check_own` and `check_given_images`; or the run is of the other program, which draws other parts of the same folder.
    """
    run = begun_run_around(path)
    if run is not None and read_json(run.config, dict).get("dataset") == config.dataset:
        if config.dataset == "folder":
            run.read_config(type(config))
        check_own(run, fingerprint, place)
        if digest:
            check_given_images(run, digest)


def check_same_images(run: RunFolder, facts: dict) -> None:
    """Raises UsageError where a resumed run was begun on other images of one's own, or where others of them could be read then.

    Args:
        run: the run, with its `data.json`.
        facts: what that file is to hold now: class_folders, images, found, fingerprint.
    """
    kept = read_json(run.data, dict)
    if kept.get("fingerprint", facts["fingerprint"]) != facts["fingerprint"]:
        raise UsageError(
            f"--resume goes on with the images of {run}, those of {facts['found']} are others; give the same --data_dir or start another "
            "--version"
        )
    for name in ("class_folders", "images"):
        if name in kept and json.loads(json.dumps(facts[name])) != kept[name]:
            raise UsageError(
                f"--resume goes on with the images of {run}: expected {name} {kept[name]}, received {facts[name]}; "
                "give the same --data_dir or start another --version"
            )


def check_given_images(run: RunFolder, digest: Callable[[], str]) -> None:
    """Raises UsageError where a program gave a run its images and these, see `image_data.digest`, are others."""
    if (kept := run.told("given")) and kept != digest():
        raise UsageError(
            f"a program gave {run} its images (Train(data=...)), and these are others; give the same ones to go on, and test with Train.test or "
            "cifar10_test.test(model, images)"
        )


def check_parts(run: RunFolder, stored, flags: dict, names) -> None:
    """Raises UsageError where `flags` change the parts that a run had of its images: it would be tested on what it was trained on."""
    for name in names:
        if (given := flags.get(name, kept := getattr(stored, name))) != kept:
            raise UsageError(f"{run} was trained with --{name}={kept}, received --{name}={given}; leave that out")


def tell_known_images(path: str, config, data, name: str = "") -> None:
    """Says so where the weights of `path` may have been trained on images that a run holds out: shipped weights of that data set, or those of a
    run on the same images that held out others. Of images of one's own these may be test images, too.

    Args:
        path: of the weights, or their name.
        config: settings of either program, for the run that begins with these weights or tests them.
        data: its images; uses test, fingerprint and own_parts, see `resnet_study.data.image_data.ImageData`.
        name: what to call the weights; "" = `path`.
    """
    held_out = ["validation"] if config.validation_fraction else []
    if config.dataset == "folder" and data.test is not None:
        held_out.append("test")
    if path in registry.SHIPPED:
        knows = _images_of(registry.dataset_of(path)) == _images_of(config.dataset)
    else:
        run = begun_run_around(path)
        stored = read_json(run.config, dict) if run else {}
        fields = config.__dataclass_fields__

        def is_equal(names):  # a run of before there was one of them had its default
            return all(
                stored.get(name, fields[name].default) == getattr(config, name) for name in names if name in fields
            )

        knows = _images_of(stored.get("dataset")) == _images_of(config.dataset)
        # The two programs draw other parts by the same seed, and class by class, so other labels give others.
        is_alike = ("preset" in stored) == hasattr(config, "preset")
        is_alike = is_alike and is_equal(("dataset", "heads", "validation_fraction", "split_seed"))
        if knows and config.dataset == "folder":
            places = [Path(str(place)).expanduser().resolve() for place in (stored.get("data_dir"), config.data_dir)]
            kept = read_json(run.data, {}).get("fingerprint") if run and run.data.is_file() else None
            knows = places[0] == places[1] or kept == data.fingerprint
            same_labels = kept in (None, data.fingerprint) and is_equal(("labels", "label_level", "folds"))
            is_alike = is_alike and same_labels and is_equal(("test_fraction", "fold"))
            if same_labels and not config.folds:  # both had them
                held_out = [part for part in held_out if part not in data.own_parts]
        knows = knows and not is_alike
    if knows and held_out:
        say_once(
            f"note: {name or path} may have been trained on the {' and '.join(held_out)} images; then errors on these are too small"
        )


def tell_own_images(path: str, paths) -> None:
    """Says so where files to answer for lie in the folder that the model was trained on: how many answers are right says nothing then.

    Args:
        path: of the model.
        paths: of the files, or of folders around them.
    """
    run = begun_run_around(path)
    stored = read_json(run.config, dict) if run else {}
    if stored.get("dataset") != "folder" or not stored.get("data_dir"):
        return
    place = Path(stored["data_dir"]).expanduser().resolve()
    for given in (Path(each).expanduser().resolve() for each in paths):
        within = given.relative_to(place).parts if given.is_relative_to(place) else None
        if within is None and not place.is_relative_to(given):
            continue
        if (
            within and any(part_of(name) == "test" for name in within) and not stored.get("labels")
        ):  # where the folders are the parts
            continue
        say_once(
            f"note: among the images of {given} may be some that {run} was trained on, in {place}; the accuracy on these says nothing of new ones"
        )


def _images_of(dataset: str | None) -> str | None:
    """The data set whose images another one has, too, under other labels."""
    return "cifar100" if dataset == "cifar100_coarse" else dataset
