"""What a transfer run says of itself: the facts of its images in `data.json`, and the lines that it prints at the start."""

import contextlib
import io
import statistics
from pathlib import Path

import PIL.Image

from flowers.backbones import APPLICATIONS
from flowers.features import LARGEST_FEATURES, may_cache_features
from resnet_study.data.balance import describe_balance
from resnet_study.data.image_files import read_content
from resnet_study.networks.multiply_adds import count_parameters
from resnet_study.training.run_log import note_large_batch, note_long_warmup, note_rates

_SMALL, _ASKED = 64, 9  # pixels; images that are looked at


def describe_data(task) -> dict:
    """What `data.json` holds."""
    data = task.data
    facts = {
        "class_names": list(data.class_names),
        "class_folders": list(data.class_folders),
        "images": _count_images(task),
        "split_rounding": data.split_rounding,
        "found": data.found,
        "skipped": list(data.skipped),
        "leaks": [list(pair) for pair in data.leaks],
        "leak_count": data.leak_count,
        "fingerprint": data.fingerprint,
        "sample": data.sample,
    } | ({"several": True} if data.multi_label else {})
    if task.config.class_weight not in ("", "balanced"):
        facts["class_weights"] = task.class_weights.tolist()
    return facts


def describe(task, machine: str) -> str:
    """What was chosen and found, in some lines; `machine` says where it trains."""
    data, config, counts = task.data, task.config, _count_images(task)
    lines = [
        f"{config.model}, head {config.head_name}: {task.transfer.count_params():,} parameters, "
        f"{count_parameters(task.transfer.trainable_variables):,} of them trainable; backbone "
        f"{'trained' if config.backbone_trainable else 'frozen'}, its weights: {config.weights}; {machine}",
        f"{data.found}: {len(data.class_names)} classes, {counts['training']:,} training, {counts['validation']:,} validation, "
        f"{counts['test']:,} test images at {config.image_size} x {config.image_size}",
        f"{config.epochs} epochs of {task.report_freq} steps of {config.train_batch_size} images"
        f"{', features cached' if task.caches_features else ''}, run folder {task.run}",
    ]
    if config.unfreeze_at_epoch:
        lines.append(
            f"after {config.unfreeze_at_epoch} epochs fine-tuning: the last {config.fine_tune_stages} stage(s) of the backbone train "
            "too, its batch norm stays in inference mode"
        )
    if may_cache_features(config) and not (task.caches_features or task.unfrozen):
        lines.append(
            f"note: cached features would take more than {LARGEST_FEATURES / 2**30:.0f} GiB of memory, so the backbone runs for every batch; "
            "--head=pool needs far less"
        )
    if data.leak_count is None and config.dataset == "folder" and config.find_leaks == "auto":
        lines.append(
            "images that are in two parts were not looked for: too many files are of equal size; use --find_leaks=on"
        )
    if data.leak_count:
        first = " = ".join(data.leaks[0])
        lines.append(
            f"leak: {data.leak_count} pair(s) of equal images are in two parts, so errors there look too small: {first}, ...; "
            f"the first {len(data.leaks)} are listed in {task.run.data}"
        )
    if not config.backbone_trainable and config.weights == "none":
        lines.append("note: the backbone is frozen with random weights; give --weights or use --backbone=trained")
    if (
        config.model in APPLICATIONS
        and config.dataset == "folder"
        and (side := _find_side(task.training.files)) <= _SMALL
    ):
        lines.append(
            f"note: the images have about {side} pixels a side: --model=resnet20 begins with weights for such images, and is far faster"
        )
    weighted = task.class_weights is not None or config.balanced_sampling
    lines += describe_balance(task.training.labels, data.class_names, weighted)
    return (
        "\n".join(lines)
        + note_large_batch(config.train_batch_size, counts["training"])
        + note_long_warmup(config.warmup_steps, task.stage_ends[0])
        + note_rates(config)
    )


def _find_side(files) -> int:
    """The median of the shorter sides of some images, in pixels."""
    sides = [_SMALL + 1]
    for file in files[:: max(1, len(files) // _ASKED)][:_ASKED]:
        with contextlib.suppress(Exception):  # what cannot be read is told when it is read
            sides.append(min(PIL.Image.open(io.BytesIO(read_content(Path(file)))).size))
    return int(statistics.median(sides))


def _count_images(task):
    return {"training": len(task.training), "validation": len(task.validation), "test": len(task.data.test or ())}
