"""Which labelled images a command means to test on: those of the run, perhaps in another place, or others.

Importing this module imports neither TensorFlow nor Keras.
"""

import dataclasses
from pathlib import Path

from resnet_study.data.label_table import NoTableError
from resnet_study.data.labelled_files import LabelledFiles, find_labelled
from resnet_study.errors import UsageError, say_once
from resnet_study.files import is_kind, read_json
from resnet_study.own_image_settings import WITHOUT_PLACE
from resnet_study.run_folder import RunFolder
from resnet_study.run_images import check_own

_DATA_FLAGS = ("dataset", "data_dir", "labels", "label_level", "label_separator")
# What makes parts of images, and what a test of other images does not do.
_PARTS = ("classes", "validation_fraction", "test_fraction", "split_seed", "folds", "fold")
_NOT_DONE = ("test_flip", "test_shifts")


def find_new(flags: dict, stored, run: RunFolder | None, dataset: str) -> LabelledFiles | None:
    """The images that flags name, if they are images of one's own, and not those that a run was trained with.

    Args:
        flags: those that were given; where they name other images than those of a run, and no model apart from it, the flags of the images
            are taken out.
        stored: settings of the run; None = there are none.
        run: the run that the model lies in; None = there is none.
        dataset: the data set that is meant where neither the flags nor the run name one.

    Returns:
        The images; None = none are named, or they are those of the run, perhaps in another place.

    Raises:
        UsageError: as `find_labelled`; or a flag is about parts, which other images do not have.
    """
    meant = flags.get("dataset", kept := getattr(stored, "dataset", dataset))
    if "dataset" not in flags and "data_dir" in flags and kept in WITHOUT_PLACE:
        meant = "folder"  # where the data set of the run has no place, it is that of others
    if not {"data_dir", "labels"} & flags.keys() or meant != "folder":
        return None
    given = {name: flags.get(name, getattr(stored, name, None)) for name in _DATA_FLAGS[1:]}
    moved = run is not None and stored and not _is_same_place(given, stored)
    # A table that lies elsewhere is that of the run's images, perhaps in another place; others have their own.
    is_foreign = moved and "labels" not in flags and Path(given["labels"]).expanduser().is_file()
    try:
        found = _find(given)
    except UsageError as error:
        # A table that lies among the images is theirs, and what is wrong with it is to be mended.
        has_own = not is_foreign and not isinstance(error, NoTableError)
        if not moved or "labels" in flags or not given["labels"]:
            raise
        if has_own:
            raise UsageError(f"{error}, or give --labels= to take their folders for labels") from error
        found = _find(given | {"labels": ""})
    if run is not None and _is_own(found, run):
        return None
    if is_foreign:
        found = _find(given | {"labels": ""})
    if moved and not found.classes and given["label_level"] and "label_level" not in flags:
        found = _find(given | {"labels": "", "label_level": 0})
        say_once(
            f"note: {found.place} has no images in folders of --label_level={given['label_level']}, which {run} has; its first folders are taken "
            "for classes"
        )
    # Those of the parts of a run may name it, and where there is none, that is told later.
    parts = _PARTS if stored or flags.get("test_ckpt_path") else ()
    ignored = [name for name in parts if flags.get(name, kept := getattr(stored, name, None)) != kept]
    if ignored := ignored + [name for name in _NOT_DONE if flags.get(name) in (True, "on")]:
        raise UsageError(
            f"all images of {found.place} are tested, each once and as it is, received --{ignored[0]}={flags[ignored[0]]}; leave that out"
        )
    if run is not None and stored and not moved:
        check_own(run, found.fingerprint(), str(found.place))
    elif run is not None and stored and _may_be_same_place(given["data_dir"], stored):
        say_once(
            f"note: {run} was trained on {stored.data_dir}; if that is {found.place}, whose images or labels have changed since, "
            "images that it was trained on are among those tested"
        )
    elif count := found.count_common(sample := _read_sample(run)):
        say_once(
            f"note: of a sample of {len(sample):,} images of {run}, {count:,} are among those of {found.place}, by name, class and size; on images that "
            "it was trained on, the result says nothing of new ones"
        )
    if flags.get("test_ckpt_path"):
        flags["dataset"] = meant
    else:  # the settings are those of the run then
        if run is not None:
            flags["version"] = run.path.name  # which follows from the data set, where none was given
        for name in _DATA_FLAGS:
            flags.pop(name, None)
        found = dataclasses.replace(found, on_bad_image=flags.pop("on_bad_image", ""))
    return found


def _find(given) -> LabelledFiles:
    return find_labelled(
        given["data_dir"] or "", given["labels"] or "", given["label_level"] or 0, given["label_separator"] or "auto"
    )


def _is_same_place(given, stored) -> bool:
    """Whether images lie, by the same table, where those of a run lay: changed since, they are neither others nor its own."""
    places = [(given[name] or "", getattr(stored, name)) for name in ("data_dir", "labels")]
    return stored.dataset == "folder" and all(
        Path(one).expanduser().resolve() == Path(other).expanduser().resolve() for one, other in places
    )


def _may_be_same_place(data_dir, stored) -> bool:
    """Whether images may lie where those of a run lay, whose place may have been given from a folder that is not known any more."""
    kept, here = Path(stored.data_dir).expanduser(), Path(data_dir).expanduser().resolve()
    if kept.is_absolute():
        return stored.dataset == "folder" and kept.resolve() == here
    names = tuple(name for name in kept.parts if name != "..")
    return stored.dataset == "folder" and names != () and here.parts[-len(names) :] == names


def _read_sample(run) -> dict[str, int]:
    """Some of the images of a run, see `LabelledFiles.sample`; {} where it does not tell."""
    sample = read_json(run.data, {}).get("sample") if run is not None and run.data.is_file() else None
    return sample if is_kind(sample, dict) and all(is_kind(size, int) for size in sample.values()) else {}


def _is_own(found, run) -> bool:
    facts = read_json(run.data, {}) if run.data.is_file() else {}
    if "fingerprint" in facts:
        return facts["fingerprint"] == found.fingerprint()
    # Runs of before there were fingerprints tell of their classes and of how many images there are.
    if not is_kind(facts, {"class_folders": [str], "images": dict, "skipped": list}):
        return False
    kept = sum(facts["images"].values()) + len(facts["skipped"])
    return sorted(facts["class_folders"]) == sorted(found.classes) and kept == sum(map(len, found.parts.values()))
