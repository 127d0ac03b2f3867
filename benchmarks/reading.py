"""How fast JPEG files become images of one size: this library beside plain TensorFlow, by processor time.

python benchmarks/reading.py                                        # half a minute
python benchmarks/reading.py --images 4 --rounds 1 --results_dir TRIAL      # does it work?

The files are drawn: smooth colours with some noise, 1024 x 768 pixels, quality 90, brought to 224 x 224. The contenders take turns. `area` is
what this library does too: each new pixel is the mean of those that it covers; new runs decode JPEG files at a smaller size where
that is enough, `whole images` is what runs of before do (`--jpeg_size=full`). `bilinear` is the default of tf.image.resize, which
looks at four of them and leaves the others out. Writes runs/bench/reading.json.
"""

import functools
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rows import OF_NO_RUN, check_place, describe_measurement, summarise, write_rows

from resnet_study import devices
from resnet_study.command_line import Parser
from resnet_study.errors import UsageError, run_command

SIZE = 224
CONTENDERS = ("this library", "this library, whole images", "TensorFlow, bilinear", "TensorFlow, area")


def write_images(folder: Path, count: int) -> list[str]:
    """Draws `count` JPEG files; returns their paths."""
    import cv2
    import numpy as np

    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        colours = cv2.resize(
            np.float32(rng.integers(256, size=(48, 64, 3))), (1024, 768), interpolation=cv2.INTER_CUBIC
        )
        image = np.uint8(np.clip(colours + rng.normal(0, 7, colours.shape), 0, 255))
        paths.append(str(folder / f"{number}.jpg"))
        cv2.imwrite(paths[-1], image, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def make_readers() -> dict:
    """{contender: function from a path to an image [224, 224, RGB]}."""
    import tensorflow as tf

    from resnet_study.data.image_files import read_image

    def read(path, method):
        return tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), (SIZE, SIZE), method=method)

    ours = functools.partial(read_image, shape=(SIZE, SIZE, 3), resize="stretch")
    readers = [functools.partial(ours, jpeg_size=size) for size in ("reduced", "full")]
    readers += [functools.partial(read, method=way) for way in ("bilinear", "area")]
    return dict(zip(CONTENDERS, readers, strict=True))


def measure(paths: list[str], rounds: int) -> dict:
    """{contender: images per second of processor time, one number a round}."""
    readers, rates = make_readers(), {name: [] for name in CONTENDERS}
    for number in range(rounds + 1):
        for name, reader in readers.items():
            start = time.process_time()
            for path in paths:
                reader(path)
            if number:  # the first warms up
                rates[name].append(len(paths) / (time.process_time() - start))
    return rates


def make_rows(rates: dict, facts: dict) -> list[dict]:
    """The rows of `reading.json`: medians over the rounds, and ratios formed round by round."""
    values = {name: ("reading_rate", "images per second of processor time", numbers) for name, numbers in rates.items()}
    for other in CONTENDERS[1:]:
        ratios = [one / two for one, two in zip(rates[CONTENDERS[0]], rates[other], strict=True)]
        values[f"{CONTENDERS[0]} / {other}"] = ("reading_ratio", "times", ratios)
    return [
        facts
        | {"experiment": "reading", "model": f"1024 x 768 -> {SIZE} x {SIZE} pixels", "preset": name, "metric": metric, "unit": unit}
        | {**summarise(numbers), **OF_NO_RUN}
        for name, (metric, unit, numbers) in values.items()
    ]  # fmt: skip


def _measure_and_write(flags):
    command, start = f"python benchmarks/reading.py --images {flags.images} --rounds {flags.rounds}", time.monotonic()
    check_place(flags.results_dir / "reading.json", command)
    with tempfile.TemporaryDirectory() as folder:
        rates = measure(write_images(Path(folder), flags.images), flags.rounds)
    rows = make_rows(rates, describe_measurement(f"{flags.images} JPEG files", command, start))
    for row in rows:
        print(f"{row['preset']}: {row['value']:.2f} {row['unit']} [{row['minimum']:.2f} .. {row['maximum']:.2f}]")
    write_rows(rows, flags.results_dir)


def main(arguments=None) -> int:
    """Measures, prints and writes. Returns the exit code: 0, or 2 for what the user can mend (one line on stderr)."""
    parser = Parser(description=__doc__)
    parser.add_argument("--images", type=int, default=50, help="files [50]")
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up [5]")
    parser.add_argument("--results_dir", type=Path, default=Path("runs", "bench"), help="[runs/bench]")

    def run():
        flags = parser.parse_args(arguments)
        if min(flags.rounds, flags.images) < 1:
            raise UsageError("--rounds and --images must be at least 1; received less")
        devices.import_tensorflow()
        devices.share_batches()  # one thread for each operation
        _measure_and_write(flags)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
