"""How fast this library trains and infers, measured beside stock Keras and PyTorch on the same machine in the same run.

python benchmarks/throughput.py                                     # about a quarter of an hour on two cores
python benchmarks/throughput.py --torch_python PYTHON               # PyTorch lives in another environment
python benchmarks/throughput.py --rounds 1 --steps 3 --models resnet20      # does it work?

Contenders are measured in turn, A B C A B C ..., so that a machine that slows down slows all of them. Each measurement
is a process of its own: one contender with one net, inference or training. Ratios are formed within a round.
What is equal between the contenders and what is not stands in `benchmarks/README.md`.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the library, also where it is not installed

# Nothing here may import TensorFlow: a PyTorch process runs this file too, possibly without TensorFlow, and the peak
# memory that Linux reports of a process begins at that of the one that started it.
from hyper_parameters import from_preset
from resnet_study import devices
from resnet_study.errors import UsageError
from resnet_study.networks import registry

CONTENDERS = ("stock", "ours", "torch-float32", "torch-bfloat16")
PARTS = ("inference", "training")
RATIOS = (("ours", "stock"), ("ours", "torch-float32"), ("ours", "torch-bfloat16"))
BATCH = 128  # images per training step
INFERENCE_BATCHES = (128, 512)  # each contender is measured with both, and the faster counts
MATRIX_SIZE = 4096
PIPELINE_BATCHES = 100


def training_flop(blocks: int) -> int:
    """Floating-point operations to train one 32x32x3 image with the net of depth 6*blocks+2, ten classes.

    A multiply-add is two operations; the gradients by the inputs and by the weights cost as much as the way forward, each.
    Convolutions and the dense layer only, which leaves out less than 2 %.
    """
    multiply_adds = 32 * 32 * 9 * 3 * 16 + 64 * 10
    channels = 16
    for stage, filters in enumerate((16, 32, 64)):
        pixels = (32 >> stage) ** 2
        multiply_adds += pixels * 9 * filters * (channels + (2 * blocks - 1) * filters)
        channels = filters
    return 3 * 2 * multiply_adds


def steps_for(blocks: int, steps: int) -> int:
    """Timed steps of a net, at least 3: `steps` for ResNet-20, fewer for deeper nets, so that all take about as long."""
    return max(3, min(steps, round(steps * training_flop(3) / training_flop(blocks))))


def is_measured(blocks: int, number: int) -> bool:
    """Whether a net is measured in round `number` (0-based): nets deeper than ResNet-56 take part in every second round."""
    return blocks <= 9 or number % 2 == 0


# What a measuring process does


def measure(job: dict) -> dict:
    """Measures one contender, or the machine, in this process.

    Args:
        job: contender (one of `CONTENDERS`, or "machine"), and for a contender model (registry name), steps and part (one of
            `PARTS`).

    Returns:
        For a contender, number_format and software, and of the part training_rate (images/s) and training_memory (peak resident
        MB of the process), or inference_rate, inference_memory and inference_batch; or only missing (why it cannot run). For
        the machine: see `_measure_machine`.
    """
    if job["contender"] == "machine":
        return _measure_machine(job)
    return {"stock": _measure_stock, "ours": _measure_ours}.get(job["contender"], _measure_torch)(job)


def _measure_stock(job):
    """Keras as users write it: `fit` and `predict` with stock layers in float32."""
    import keras

    images, labels = _draw_images(job)
    images = (images / 255 - 0.5).astype("float32")
    model = build_stock(_blocks(job["model"]))
    _check_parameters(model.trainable_variables, job)
    facts = {"number_format": "float32", "software": _software("keras")}
    if job["part"] == "inference":
        return facts | _time_inference(lambda part, size: model.predict(part, batch_size=size, verbose=0), images)

    model.compile(
        keras.optimizers.SGD(0.04, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    timer = _make_timer()
    model.fit(images, labels, batch_size=BATCH, verbose=0, callbacks=[timer])
    return facts | _training_result(timer.ends, job)


def _measure_ours(job):
    """This library: its training loop with normalisation and augmentation, and its folded net for inference."""

    import cifar10_input

    devices.import_tensorflow()
    from cifar10_train import Train
    from resnet_study.networks.fold_batch_norm import fold_batch_norm
    from resnet_study.run_folder import RunFolder

    images, labels = _draw_images(job)
    config = _our_config(job)
    policy = devices.choose_policy(config.precision, config.strategy)
    everything = cifar10_input.Split(images, labels)
    facts = {"number_format": policy.removeprefix("mixed_"), "software": _software("keras")}
    if job["part"] == "inference":
        normalization = cifar10_input.make_normalization(config.normalization, images)
        model = fold_batch_norm(registry.find(job["model"]).build(preprocessing=normalization), policy)
        return facts | _time_inference(lambda part, size: model.predict(part, batch_size=size, verbose=0), images)

    data = cifar10_input.ImageData(everything, everything.take(range(10)), tuple("0123456789"), "drawn")
    timer = _make_timer()
    with tempfile.TemporaryDirectory() as folder:
        training = Train(config, RunFolder(Path(folder) / "run"), data)
        _check_parameters(training.model.trainable_variables, job)
        training.train(callbacks=[timer])
    return facts | _training_result(timer.ends, job)


def _measure_torch(job):
    """PyTorch as users write it for a CPU: channels last, eager, bfloat16 by autocast."""
    try:
        import torch
    except ImportError as error:
        return {"missing": str(error)}
    number_format = job["contender"].removeprefix("torch-")
    images, labels = _draw_images(job)
    pictures = torch.from_numpy((images / 255 - 0.5).astype("float32")).permute(0, 3, 1, 2)  # a channels-last view
    targets = torch.from_numpy(labels).long()
    net = build_torch(_blocks(job["model"])).to(memory_format=torch.channels_last)
    _check_parameters(net.parameters(), job)

    def autocast():
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=number_format == "bfloat16")

    def infer(part, size):
        with torch.inference_mode(), autocast():
            return torch.cat([net(batch).float() for batch in part.split(size)]).numpy()

    facts = {"number_format": number_format, "software": _software("torch")}
    if job["part"] == "inference":
        net.eval()
        return facts | _time_inference(infer, pictures)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.04, momentum=0.9, nesterov=True)
    batches = list(zip(pictures.split(BATCH), targets.split(BATCH), strict=True))
    ends = []
    for batch, target in batches:
        optimizer.zero_grad()
        with autocast():
            loss = torch.nn.functional.cross_entropy(net(batch), target)
        loss.backward()
        optimizer.step()
        loss.item()  # the others know their loss after every step too
        ends.append(time.perf_counter())
    return facts | _training_result(ends, job)


def _measure_machine(job):
    """What bounds the contenders.

    Returns:
        float32 and bfloat16 (GFLOP/s of the best of five products of square matrices), input_rate (images/s of the library's
        augmented batches while nothing is trained), import_seconds (of `import resnet` after `import keras`), build_seconds (of
        ResNet-110), processor, cores, commit.
    """

    devices.import_tensorflow()
    import keras  # noqa: F401 - so that its time is not in that of resnet
    import tensorflow as tf

    start = time.perf_counter()
    import resnet

    imported = time.perf_counter()
    resnet.build_resnet110()
    built = time.perf_counter()

    import cifar10_input

    environment = devices.describe_environment("")
    result = {name: environment[name] for name in ("processor", "cores", "commit")}
    result |= {"import_seconds": imported - start, "build_seconds": built - imported}
    for number_format in ("float32", "bfloat16"):
        matrix = tf.cast(tf.random.normal((MATRIX_SIZE, MATRIX_SIZE)), number_format)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            tf.matmul(matrix, matrix)[0, 0].numpy()
            seconds.append(time.perf_counter() - start)
        result[number_format] = 2 * MATRIX_SIZE**3 / min(seconds) / 1e9

    job = job | {"model": "resnet20", "steps": PIPELINE_BATCHES}
    config = _our_config(job)
    split = cifar10_input.Split(*_draw_images(job))
    normalization = cifar10_input.make_normalization(config.normalization, split.images)
    ends = []
    for _ in cifar10_input.training_batches(split, normalization, config):
        ends.append(time.perf_counter())
    return result | {"input_rate": _rate(ends, job)}


def build_stock(blocks: int):
    """The v1 net of depth 6*blocks+2 in stock Keras layers, logits out; its shortcut is a strided slice and zero channels."""
    import keras
    from keras import layers

    def convolve(x, filters, stride=1):
        x = layers.Conv2D(
            filters, 3, stride, padding="same", use_bias=False, kernel_initializer="he_normal", dtype="float32"
        )(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype="float32")(x)

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(convolve(inputs, 16))
    for filters in (16, 32, 64):
        for _ in range(blocks):
            missing = filters - x.shape[-1]
            residual = layers.ReLU()(convolve(x, filters, 2 if missing else 1))
            residual = convolve(residual, filters)
            if missing:
                x = keras.ops.pad(x[:, ::2, ::2, :], ((0, 0), (0, 0), (0, 0), (missing // 2, missing // 2)))
            x = layers.ReLU()(layers.Add()([x, residual]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def build_torch(blocks: int):
    """The same net as a PyTorch module; input [batch, 3, 32, 32]."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, channels, filters):
            super().__init__()
            self.missing = filters - channels
            self.conv1 = nn.Conv2d(channels, filters, 3, 2 if self.missing else 1, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(filters)
            self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(filters)

        def forward(self, x):
            residual = functional.relu(self.norm1(self.conv1(x)), inplace=True)
            residual = self.norm2(self.conv2(residual))
            if self.missing:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing // 2, self.missing // 2))
            return functional.relu(x + residual, inplace=True)

    widths = [filters for filters in (16, 32, 64) for _ in range(blocks)]
    parts = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    parts += [Block(channels, filters) for channels, filters in zip([16, *widths], widths, strict=False)]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return net


def _blocks(model):
    return registry.find(model).options["num_residual_blocks"]


def _all_steps(job):
    """Steps to train: the timed ones, and as many before the clock starts, which are slower in every contender."""
    return 2 * job["steps"]


def _draw_images(job):
    """Random pixels uint8 [n, 32, 32, 3] and labels int32 [n] in 0..9 for all steps, warm-up included."""
    import numpy as np

    count = _all_steps(job) * BATCH
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.permutation(count).astype(np.int32) % 10


def _our_config(job):
    """The default recipe, with one report before and one after the timed steps, and next to nothing to validate."""
    steps = _all_steps(job)
    return from_preset(
        "fast",
        model=job["model"],
        train_batch_size=BATCH,
        train_steps=steps,
        report_freq=steps,
        validation_fraction=0.001,
        tensorboard=False,
    )


def _check_parameters(variables, job):
    """Raises AssertionError unless the net has the registered number of trainable parameters."""
    received = 0
    for variable in variables:
        count = 1
        for size in variable.shape:
            count *= size
        received += count
    expected = registry.find(job["model"]).trainable
    if received != expected:
        raise AssertionError(f"{job['contender']} {job['model']} must have {expected} parameters, received {received}")


def _make_timer():
    """A Keras callback that notes when each training batch ended; `fit` and this library's loop both call it."""
    import keras

    class Timer(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.ends = []

        def on_train_batch_end(self, batch, logs=None):
            self.ends.append(time.perf_counter())

    return Timer()


def _rate(ends, job):
    """Images/s of the last `steps` of the steps that ended at `ends`."""
    return job["steps"] * BATCH / (ends[-1] - ends[-1 - job["steps"]])


def _training_result(ends, job):
    return {"training_rate": _rate(ends, job), "training_memory": _peak_memory()}


def _time_inference(infer, images):
    """Times `infer(images, batch size)` for each batch size, once before the clock starts and once with it."""
    largest = max(INFERENCE_BATCHES)
    images = images[: len(images) // largest * largest]  # whole batches: a last, smaller one would be compiled anew
    rates = {}
    for size in INFERENCE_BATCHES:
        infer(images[: 2 * size], size)
        start = time.perf_counter()
        infer(images, size)
        rates[size] = len(images) / (time.perf_counter() - start)
    best = max(rates, key=rates.get)
    return {"inference_rate": rates[best], "inference_batch": best, "inference_memory": _peak_memory()}


def _peak_memory():
    """Largest resident memory of this process so far, MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes on macOS, KiB elsewhere


def _software(name):
    if name == "torch":
        import torch

        return f"PyTorch {torch.__version__}"
    import keras
    import tensorflow

    return f"TensorFlow {tensorflow.__version__}, Keras {keras.__version__}"


# What the measuring processes are started for, and what their numbers are made into


def run_all(models, rounds: int, steps: int, torch_python: str) -> list[dict]:
    """Measures the machine and every contender with every net, `rounds` times in turn.

    Args:
        models: registry names.
        rounds: how often.
        steps: timed steps of ResNet-20, see `steps_for`.
        torch_python: interpreter that has PyTorch.

    Returns:
        One dict per measurement: round, contender, model (None for the machine) and what `measure` returns.
    """
    jobs = [{"contender": "machine"}]
    jobs += [
        {"contender": contender, "model": model, "steps": steps_for(_blocks(model), steps)}
        for model in models
        for contender in CONTENDERS
    ]
    records = []
    for number in range(rounds):
        for job in jobs:
            if "model" in job and not is_measured(_blocks(job["model"]), number):
                continue
            interpreter = torch_python if job["contender"].startswith("torch") else sys.executable
            key = {"round": number, "contender": job["contender"], "model": job.get("model"), "steps": job.get("steps")}
            before = [record for record in records if record["contender"] == key["contender"] and "missing" in record]
            if before:
                records.append(key | {"missing": before[0]["missing"]})
            else:
                result = {}
                for part in PARTS if "model" in job else (None,):
                    result |= _start(job | {"part": part}, interpreter)
                records.append(key | result)
                print(f"round {number + 1}/{rounds}  {_describe(records[-1])}", flush=True)
    return records


def _start(job, interpreter):
    """Runs `measure(job)` in a process of its own."""
    command = [interpreter, __file__, "--measure", json.dumps(job)]
    # Contenders meet on the processor; and TensorFlow's greetings would hide its errors.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except OSError as error:
        raise UsageError(f"expected a Python interpreter, received '{interpreter}' ({error.strerror})") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{' '.join(map(str, job.values()))} ended with code {error.returncode}: {reason}") from error


def _describe(record):
    name = f"{record['model'] or '':<10} {record['contender']:<15}"
    if "missing" in record:
        return f"{name} NOT MEASURED: {record['missing']}"
    if record["contender"] == "machine":
        return (
            f"{name} matrix product float32 {record['float32']:,.0f}, bfloat16 {record['bfloat16']:,.0f} GFLOP/s; "
            f"augmented batches {record['input_rate']:,.0f} images/s"
        )
    return (
        f"{name} training {record['training_rate']:>7,.0f} images/s, {record['training_memory']:>5,.0f} MB; "
        f"inference {record['inference_rate']:>7,.0f} images/s, {record['inference_memory']:>5,.0f} MB, batch {record['inference_batch']}"
    )


def summarise(values) -> dict:
    """Median as `value`, minimum, maximum, sample standard deviation `std` (None for one value) and number `runs`."""
    values = list(values)
    return {
        "value": round(statistics.median(values), 4),
        "minimum": round(min(values), 4),
        "maximum": round(max(values), 4),
        "std": round(statistics.stdev(values), 4) if len(values) > 1 else None,
        "runs": len(values),
    }


def ratios(records, above: tuple, below: tuple) -> list[float]:
    """Quotients of two measured numbers, formed within each round.

    Args:
        records: what `run_all` returns.
        above, below: (contender, model, key of the number).
    """
    numbers = [
        {
            record["round"]: record[key]
            for record in records
            if (record["contender"], record["model"]) == (contender, model)
        }
        for contender, model, key in (above, below)
    ]
    return [value / numbers[1][number] for number, value in numbers[0].items() if number in numbers[1]]


def make_rows(records, facts: dict) -> list[dict]:
    """The rows of `throughput.json`: medians over the rounds, ratios and shares formed round by round.

    Args:
        records: what `run_all` returns.
        facts: what all rows have in common: command, wall_seconds, processor, cores, commit.
    """
    missing = {record["contender"]: record["missing"] for record in records if "missing" in record}
    measured = [record for record in records if "missing" not in record]
    machine = f"{facts['processor']}, {facts['cores']} cores"
    rows = []

    def add(model, preset, metric, unit, values, *, images=0, hardware=machine, note=""):
        numbers = summarise(values) if values else dict.fromkeys(("value", "minimum", "maximum", "std")) | {"runs": 0}
        rows.append(
            {
                "experiment": "throughput",
                "dataset": "random pixels",
                "model": model,
                "preset": preset,
                "metric": metric,
                "unit": unit,
                **numbers,
                "published": None,
                "published_source": None,
                "command": facts["command"],
                "images_seen": images,
                "wall_seconds": round(facts["wall_seconds"]),
                "hardware": hardware,
                "commit": facts["commit"],
                "run": None,
                "note": note,
            }
        )

    for number_format in ("float32", "bfloat16"):
        values = [record[number_format] for record in measured if record["contender"] == "machine"]
        add(f"matrix product {MATRIX_SIZE}", number_format, "speed", "GFLOP/s", values)
    values = [record["input_rate"] for record in measured if record["contender"] == "machine"]
    add("input pipeline", "ours", "input_rate", "images/s", values, images=len(values) * PIPELINE_BATCHES * BATCH)

    for model, key in (("import resnet, after keras", "import_seconds"), ("build_resnet110()", "build_seconds")):
        values = [record[key] for record in measured if record["contender"] == "machine"]
        add(model, "ours", "time", "s", values)

    for model in dict.fromkeys(record["model"] for record in records if record["model"]):
        flop = training_flop(_blocks(model))
        for contender in CONTENDERS:
            mine = [record for record in measured if (record["contender"], record["model"]) == (contender, model)]
            if not mine:
                note = f"not measured: {missing.get(contender, 'no measurement')}"
                for metric in ("training_rate", "inference_rate"):
                    add(model, contender, metric, "images/s", [], note=note)
                continue
            number_format = mine[0]["number_format"]
            hardware = f"{machine}, {number_format}, {mine[0]['software']}"
            images = sum(record["steps"] for record in mine) * BATCH
            shares = [
                100 * flop * ratio / 1e9
                for ratio in ratios(measured, (contender, model, "training_rate"), ("machine", None, number_format))
            ]
            batches = "/".join(str(size) for size in sorted({record["inference_batch"] for record in mine}))
            for metric, unit, values, note in (
                ("training_rate", "images/s", [record["training_rate"] for record in mine], f"batch {BATCH}"),
                ("training_share_of_matrix_product", "%", shares, f"{flop / 1e9:.4f} GFLOP per image, {number_format}"),
                ("training_memory", "MB", [record["training_memory"] for record in mine], ""),
                ("inference_rate", "images/s", [record["inference_rate"] for record in mine], f"batch {batches}"),
                ("inference_memory", "MB", [record["inference_memory"] for record in mine], ""),
            ):
                seen = images if metric.startswith("training") else 0
                add(model, contender, metric, unit, values, images=seen, hardware=hardware, note=note)
        for above, below in RATIOS:
            for part in ("training", "inference"):
                values = ratios(measured, (above, model, f"{part}_rate"), (below, model, f"{part}_rate"))
                note = "" if values else f"not measured: {missing.get(below, 'no measurement')}"
                add(model, f"{above} / {below}", f"{part}_ratio", "times", values, note=note)
        values = ratios(measured, ("machine", None, "input_rate"), ("ours", model, "training_rate"))
        add(model, "input pipeline / ours", "input_ratio", "times", values, note="batches made / batches trained on")
    return rows


def format_rows(rows) -> str:
    """The rows as lines: net, contender, metric, median, minimum and maximum."""
    lines = []
    for row in rows:
        name = f"{row['model']:<20} {row['preset']:<22} {row['metric']:<33}"
        if row["value"] is None:
            lines.append(f"{name} {row['note']}")
            continue
        digits = 2 if row["unit"] in ("times", "%", "s") else 0
        value, low, high = (f"{row[key]:,.{digits}f}" for key in ("value", "minimum", "maximum"))
        lines.append(f"{name} {value:>9} {row['unit']:<8} [{low} .. {high}]  {row['note']}".rstrip())
    return "\n".join(lines)


def _command(flags):
    """The command with the flags that differ from their defaults; the place of an interpreter means nothing elsewhere."""
    words = ["python benchmarks/throughput.py"]
    for name, default in vars(_make_parser().parse_args([])).items():
        value = getattr(flags, name)
        if value != default and name != "results_dir":
            value = "PYTHON" if name == "torch_python" else value
            words.append(f"--{name} {' '.join(value) if isinstance(value, list) else value}")
    return " ".join(words)


def _positive(text):
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, received '{text}'")
    return int(text)


def _make_parser():
    parser = argparse.ArgumentParser(
        description="Measures images/s beside stock Keras and PyTorch.", allow_abbrev=False
    )
    parser.add_argument(
        "--models", nargs="+", default=["resnet20", "resnet110"], metavar="NAME", help="v1 nets [resnet20 resnet110]"
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=5,
        help="times that everything is measured; nets deeper than ResNet-56 in every second round [%(default)s]",
    )
    parser.add_argument(
        "--steps", type=_positive, default=40, help="timed steps of ResNet-20; fewer for deeper nets [%(default)s]"
    )
    parser.add_argument(
        "--torch_python", default=sys.executable, metavar="PATH", help="interpreter with PyTorch [this one]"
    )
    parser.add_argument(
        "--results_dir", default="results", metavar="DIR", help="where throughput.json goes [%(default)s]"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one job; how this program starts itself
    return parser


def main(arguments=None) -> int:
    """Measures, prints and writes. Returns the exit code: 0, or 2 for what the user can mend (one line on stderr)."""
    flags = _make_parser().parse_args(arguments)
    if flags.measure:
        print("\n" + json.dumps(measure(json.loads(flags.measure))))
        return 0
    try:
        for model in flags.models:
            if registry.find(model).options.get("form") != "v1":
                raise UsageError(f"--models must be v1 nets (resnet20, resnet110, ...), received '{model}'")
        _measure_and_write(flags)
    except UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _measure_and_write(flags):
    start, load = time.monotonic(), os.getloadavg()[0]
    if load > 0.5:
        print(f"other programs are using this machine (load {load:.1f}): rates will be too low and ratios inexact")
    records = run_all(flags.models, flags.rounds, flags.steps, flags.torch_python)
    facts = {name: records[0][name] for name in ("processor", "cores", "commit")}
    rows = make_rows(records, facts | {"command": _command(flags), "wall_seconds": time.monotonic() - start})
    print(f"\nmedians over {flags.rounds} round(s) [minimum .. maximum]\n{format_rows(rows)}")

    from resnet_study.files import write_json
    from resnet_study.reports.results import write_table

    path = Path(flags.results_dir) / "throughput.json"
    write_json(path, rows)
    write_table(path.parent)
    print(f"written: {path}, after {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())
