"""How fast images are read and augmented: `--pipeline=tfdata` beside `--pipeline=generator` and Keras' own `flow_from_directory`.

python benchmarks/flowers_pipelines.py --data_dir FOLDER            # about two minutes
python benchmarks/flowers_pipelines.py --data_dir FOLDER --rounds 1 --batches 5 --image_size 64 --results_dir TRIAL    # does it work?

The three take turns, `--rounds` times, at each size. All give batches of 32 with rotation 30, shear .2, zoom .2 and flips. Ours keep
up to 1 GiB of images in memory and decode the others for each batch, as Keras does with all. Time runs from the end of a first
batch. Writes runs/bench/flowers_pipelines.json.
"""

import dataclasses
import itertools
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rows import OF_NO_RUN, check_place, describe_measurement, summarise, write_rows

from resnet_study import devices
from resnet_study.command_line import Parser
from resnet_study.errors import UsageError, run_command

CONTENDERS = ("tfdata", "generator", "flow_from_directory")
BATCH = 32


def make_batches(contender: str, config, data):
    """An endless iterator over the batches of a contender."""
    from flowers.batches import training_batches

    if contender != "flow_from_directory":
        return iter(training_batches(data.training, config, train_steps=10**6))
    from tensorflow.keras.preprocessing.image import ImageDataGenerator

    generator = ImageDataGenerator(
        rotation_range=config.rotation,
        shear_range=config.shear,
        zoom_range=config.zoom,
        horizontal_flip=config.horizontal_flip,
    )
    size = (config.image_size, config.image_size)
    flow = generator.flow_from_directory(Path(config.data_dir) / "train", target_size=size, batch_size=BATCH, seed=0)
    return (flow[index % len(flow)] for index in itertools.count())


def measure(batches, count: int) -> float:
    """Images per second over `count` batches, after a first one."""
    next(batches)
    start, seen = time.perf_counter(), 0
    for images, _ in itertools.islice(batches, count):
        seen += len(images)
    return seen / (time.perf_counter() - start)


def make_rows(rates: dict, facts: dict) -> list[dict]:
    """The rows of `flowers_pipelines.json`: medians over the rounds, and ratios formed round by round.

    Args:
        rates: {image size: {contender: list of images per second}}.
        facts: of `describe_measurement`.
    """
    rows = []
    for size, measured in rates.items():
        values = {name: ("input_rate", "images/s", numbers) for name, numbers in measured.items()}
        for other in CONTENDERS[1:]:
            ratios = [one / two for one, two in zip(measured["tfdata"], measured[other], strict=True)]
            values[f"tfdata / {other}"] = ("input_ratio", "times", ratios)
        for name, (metric, unit, numbers) in values.items():
            rows.append(
                facts
                | {"experiment": "flowers_pipelines", "model": f"{size} x {size} pixels", "preset": name, "metric": metric}
                | {"unit": unit, **summarise(numbers), **OF_NO_RUN}
            )  # fmt: skip
    return rows


def _measure_and_write(flags):
    from flowers.data import load_images
    from flowers.settings import FlowerParameters

    if not (flags.data_dir / "train").is_dir():
        raise UsageError(f"--data_dir must hold train/<class>/, received {flags.data_dir}; give another folder")
    name, sizes = flags.data_dir.resolve().name, " ".join(map(str, flags.image_size))
    command = f"python benchmarks/flowers_pipelines.py --data_dir {name} --rounds {flags.rounds} --batches {flags.batches} --image_size {sizes}"
    check_place(flags.results_dir / "flowers_pipelines.json", command)
    if os.getloadavg()[0] > 0.5:
        print("other programs are using this machine: rates will be too low and ratios inexact")
    start, rates = time.monotonic(), {}
    for size in flags.image_size:
        rates[size] = {name: [] for name in CONTENDERS}
        config = FlowerParameters(
            data_dir=str(flags.data_dir), image_size=size, train_batch_size=BATCH, weights="none", find_leaks="off"
        )
        data = load_images(config)
        for number, contender in itertools.product(range(flags.rounds), CONTENDERS):
            pipeline = {} if contender == "flow_from_directory" else {"pipeline": contender}
            settings = dataclasses.replace(config, **pipeline)
            rates[size][contender].append(measure(make_batches(contender, settings, data), flags.batches))
            print(f"{size} pixels, round {number + 1}, {contender}: {rates[size][contender][-1]:,.0f} images/s")
    write_rows(make_rows(rates, describe_measurement(name, command, start)), flags.results_dir)


def main(arguments=None) -> int:
    """Measures, prints and writes. Returns the exit code: 0, or 2 for what the user can mend (one line on stderr)."""
    parser = Parser(description=__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder with train/<class>/ and valid/<class>/")
    parser.add_argument("--image_size", type=int, nargs="+", default=[64, 224], help="pixels [64 224]")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender [3]")
    parser.add_argument("--batches", type=int, default=20, help="batches of 32 that are timed [20]")
    parser.add_argument("--results_dir", type=Path, default=Path("runs", "bench"), help="[runs/bench]")

    def run():
        flags = parser.parse_args(arguments)
        if min(flags.rounds, flags.batches, *flags.image_size) < 1:
            raise UsageError("--rounds, --batches and --image_size must be at least 1; received less")
        devices.import_tensorflow()
        _measure_and_write(flags)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
