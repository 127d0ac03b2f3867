"""How fast this library trains and infers, measured beside stock Keras and PyTorch on the same machine in the same run.

python benchmarks/throughput.py                                     # an hour or more on two cores
python benchmarks/throughput.py --torch_python PYTHON               # PyTorch lives in another environment
python benchmarks/throughput.py --contenders ours,torch-compile-bfloat16 --models resnet20 --results_dir PART
python benchmarks/throughput.py --rounds 1 --steps 3 --models resnet20 --results_dir TRIAL      # does it work?

Contenders are measured in turn, A B C A B C ..., so that a machine that slows down slows all of them. Each measurement
is a process of its own: one contender with one network, inference or training. Ratios are formed within a round.
What is equal between the contenders and what is not stands in `benchmarks/README.md`.
"""

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from measuring import BATCH, CONTENDERS, MATRIX_SIZE, PARTS, PIPELINE_BATCHES, blocks_of, steps_for, training_flop
from rows import check_place, summarise

from resnet_study.devices import ONEDNN
from resnet_study.errors import UsageError, run_command
from resnet_study.networks import registry

# What is divided by what. Of several contenders below, the fastest of the round counts.
RATIOS = (
    ("ours", "stock"),
    ("ours", "stock-jit"),
    ("ours", "torch-float32"),
    ("ours", "torch-bfloat16"),
    ("ours", "torch-compile-bfloat16"),
    ("ours", "torch-ddp-bfloat16"),
    ("ours", "torch-compile-bfloat16", "torch-ddp-bfloat16"),
    ("ours", "ours-one-core"),
    ("ours-float32", "stock"),
    ("ours-float32", "stock-onednn"),
    ("ours-float32", "torch-float32"),
    ("ours-float32", "torch-compile-float32"),
    ("ours-float32", "torch-compile-float32", "torch-ddp-float32"),
)


def measure(job: dict) -> dict:
    """Measures one contender, or the machine, in this process.

    Args:
        job: contender (one of `CONTENDERS`, or "machine"), and for a contender model (registry name), steps and part (one of
            `PARTS`).

    Returns:
        For a contender, number_format and software, and of the part training_rate (images/s) and training_memory (peak resident
        MB of the process), or inference_rate, inference_memory and inference_batch; or only missing (why it cannot run). For
        the machine: see `measure_machine`.
    """
    # A process imports only what it measures: that decides its memory.
    if job["contender"].startswith("torch"):
        from torch_contenders import measure_torch

        return measure_torch(job)
    from tensorflow_contenders import measure_machine, measure_ours, measure_stock

    if job["contender"] == "machine":
        return measure_machine()
    return (measure_stock if CONTENDERS[job["contender"]].library == "stock" else measure_ours)(job)


def is_measured(contender: str, blocks: int, number: int) -> bool:
    """Whether a contender takes part in round `number` (0-based) with a network of so many blocks in a stage.

    Networks deeper than ResNet-56 take part in every second round.
    """
    contender = CONTENDERS[contender]
    if blocks > 9 and (number % 2 or not contender.is_for_deep):
        return False
    return number == 0 or not contender.once


def run_all(models, contenders, rounds: int, steps: int, torch_python: str) -> list[dict]:
    """Measures the machine and every contender with every network, `rounds` times in turn.

    Args:
        models: registry names.
        contenders: of `CONTENDERS`.
        rounds: how often.
        steps: timed steps of ResNet-20, see `steps_for`.
        torch_python: interpreter that has PyTorch.

    Returns:
        One dict per measurement: round, contender, model (None for the machine), steps and what `measure` returns for all parts.
    """
    jobs = [{"contender": "machine", "model": None, "steps": None}]
    jobs += [
        {"contender": contender, "model": model, "steps": steps_for(blocks_of(model), steps)}
        for model in models
        for contender in contenders
    ]
    records, missing = [], {}
    for number in range(rounds):
        for job in jobs:
            key = job["contender"], job["model"]
            if job["model"] and not is_measured(job["contender"], blocks_of(job["model"]), number):
                continue
            result = missing.get(key, {})
            if not result:
                interpreter = torch_python if job["contender"].startswith("torch") else sys.executable
                try:
                    for part in CONTENDERS[job["contender"]].parts if job["model"] else (None,):
                        result |= _start(job | {"part": part}, interpreter)
                    if "missing" in result:
                        result = missing[key] = {"missing": result["missing"]}
                except FailedError as error:  # it is tried again in the next round
                    if not job["model"]:  # without what the machine can do, the rows would tell nothing
                        raise
                    result = {"missing": str(error)}
            records.append({"round": number} | job | result)
            print(f"round {number + 1}/{rounds}  {_describe(records[-1])}", flush=True)
    return records


class FailedError(UsageError):
    """A measurement ended with an error; the others go on."""


def _start(job, interpreter):
    """Runs `measure(job)` in a process of its own."""
    command = [interpreter, __file__, "--measure", json.dumps(job)]
    # Contenders meet on the processor; and TensorFlow's greetings would hide its errors.
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"}
    contender = CONTENDERS.get(job["contender"])  # None = the machine
    if contender and contender.library == "stock":  # as TensorFlow chooses, whatever the user has set
        environment.pop(ONEDNN, None)
        environment |= {ONEDNN: "1"} if contender.onednn else {}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])
    except OSError as error:
        raise UsageError(f"expected a Python interpreter, received '{interpreter}' ({error.strerror})") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise FailedError(
            f"{' '.join(map(str, filter(None, job.values())))} ended with code {error.returncode}: {reason}"
        ) from error


def _describe(record):
    name = f"{record['model'] or '':<10} {record['contender']:<22}"
    if "missing" in record:
        return f"{name} NOT MEASURED: {record['missing']}"
    if record["contender"] == "machine":
        return (
            f"{name} matrix product float32 {record['float32']:,.0f}, bfloat16 {record['bfloat16']:,.0f} GFLOP/s; "
            f"augmented batches {record['input_rate']:,.0f} images/s"
        )
    text = f"{name} training {record['training_rate']:>7,.0f} images/s, {record['training_memory']:>5,.0f} MB"
    if "inference_rate" in record:
        text += f"; inference {record['inference_rate']:>7,.0f} images/s, {record['inference_memory']:>5,.0f} MB"
        text += f", batch {record['inference_batch']}"
    return text


def ratios(records, above: tuple, *below: tuple) -> list[float]:
    """Quotients of measured numbers, formed within each round in which all of them were measured.

    Args:
        records: what `run_all` returns.
        above: (contender, model, key of the number).
        below: one or more of these, of which the largest counts.
    """
    above, *below = (
        {
            record["round"]: record[key]
            for record in records
            if (record["contender"], record["model"]) == (contender, model) and key in record
        }
        for contender, model, key in (above, *below)
    )
    return [
        value / max(numbers[number] for numbers in below)
        for number, value in above.items()
        if all(number in numbers for numbers in below)
    ]


def make_rows(records, facts: dict) -> list[dict]:
    """The rows of `throughput.json`: medians over the rounds, ratios and shares formed round by round.

    Args:
        records: what `run_all` returns.
        facts: what all rows have in common: command, wall_seconds, processor, cores, commit.
    """
    missing = {(record["contender"], record["model"]): record["missing"] for record in records if "missing" in record}
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
        flop = training_flop(blocks_of(model))
        contenders = list(dict.fromkeys(record["contender"] for record in records if record["model"] == model))
        for contender in contenders:
            parts = CONTENDERS[contender].parts
            mine = [record for record in measured if (record["contender"], record["model"]) == (contender, model)]
            if not mine:
                for part in parts:
                    note = f"not measured: {missing[contender, model]}"
                    add(model, contender, f"{part}_rate", "images/s", [], note=note)
                continue
            number_format = mine[0]["number_format"]
            cores = "one core, " if CONTENDERS[contender].one_core else ""
            hardware = f"{machine}, {cores}{number_format}, {mine[0]['software']}"
            images = sum(record["steps"] for record in mine) * BATCH
            add_mine = functools.partial(add, model, contender, hardware=hardware)
            rates = [record["training_rate"] for record in mine]
            add_mine("training_rate", "images/s", rates, images=images, note=f"{cores}batch {BATCH}")
            if not cores:
                above = (contender, model, "training_rate")
                shares = [
                    100 * flop * ratio / 1e9 for ratio in ratios(measured, above, ("machine", None, number_format))
                ]
                note = f"{flop / 1e9:.4f} GFLOP per image, {number_format}"
                add_mine("training_share_of_matrix_product", "%", shares, images=images, note=note)
            add_mine("training_memory", "MB", [record["training_memory"] for record in mine], images=images)
            if "inference" in parts:
                batches = "/".join(str(size) for size in sorted({record["inference_batch"] for record in mine}))
                rates = [record["inference_rate"] for record in mine]
                add_mine("inference_rate", "images/s", rates, note=f"batch {batches}")
                add_mine("inference_memory", "MB", [record["inference_memory"] for record in mine])
        for above, *below in RATIOS:
            if not {above, *below} <= set(contenders):
                continue
            name = below[0] if len(below) == 1 else f"better of {' and '.join(below)}"
            for part in PARTS[::-1]:
                if all(part in CONTENDERS[contender].parts for contender in (above, *below)):
                    key = f"{part}_rate"
                    values = ratios(measured, (above, model, key), *((contender, model, key) for contender in below))
                    reasons = [
                        missing[contender, model] for contender in (above, *below) if (contender, model) in missing
                    ]
                    note = f"not measured{' in each round' if values else ''}: {reasons[0]}" if reasons else ""
                    add(model, f"{above} / {name}", f"{part}_ratio", "times", values, note=note)
        values = ratios(measured, ("machine", None, "input_rate"), ("ours", model, "training_rate"))
        if values:
            add(
                model, "input pipeline / ours", "input_ratio", "times", values, note="batches made / batches trained on"
            )
    return rows


def format_rows(rows) -> str:
    """The rows as lines: network, contender, metric, median, minimum and maximum."""
    lines = []
    for row in rows:
        name = f"{row['model']:<20} {row['preset']:<30} {row['metric']:<33}"
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
        "--models",
        nargs="+",
        default=["resnet20", "resnet110"],
        metavar="NAME",
        help="v1 networks [resnet20 resnet110]",
    )
    parser.add_argument(
        "--contenders", nargs="+", default=list(CONTENDERS), metavar="NAME", help=f"[all: {' '.join(CONTENDERS)}]"
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=5,
        help="times that everything is measured; networks deeper than ResNet-56 in every second round [%(default)s]",
    )
    parser.add_argument(
        "--steps", type=_positive, default=40, help="timed steps of ResNet-20; fewer for deeper networks [%(default)s]"
    )
    parser.add_argument(
        "--torch_python", default=sys.executable, metavar="PATH", help="interpreter with PyTorch [this one]"
    )
    parser.add_argument(
        "--results_dir", default="runs/bench", metavar="DIR", help="where throughput.json goes [%(default)s]"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # one job; how this program starts itself
    return parser


def main(arguments=None) -> int:
    """Measures, prints and writes. Returns the exit code: 0, or 2 for what the user can mend (one line on stderr)."""
    flags = _make_parser().parse_args(arguments)
    if flags.measure:
        print("\n" + json.dumps(measure(json.loads(flags.measure))))
        return 0
    for name in ("models", "contenders"):  # resnet20,resnet110 as well as resnet20 resnet110
        setattr(flags, name, ",".join(getattr(flags, name)).split(","))
    return run_command(lambda: _measure_and_write(flags))


def _measure_and_write(flags):
    for model in flags.models:
        if registry.find(model).options.get("form") != "v1":
            raise UsageError(f"--models must be v1 networks (resnet20, resnet110, ...), received '{model}'")
    for contender in flags.contenders:
        if contender not in CONTENDERS:
            raise UsageError(f"--contenders must be of {', '.join(CONTENDERS)}, received '{contender}'")
    path = Path(flags.results_dir).expanduser() / "throughput.json"
    check_place(path, command := _command(flags))
    start, load = time.monotonic(), os.getloadavg()[0]
    if load > 0.5:
        print(f"other programs are using this machine (load {load:.1f}): rates will be too low and ratios inexact")
    records = run_all(flags.models, flags.contenders, flags.rounds, flags.steps, flags.torch_python)
    facts = {name: records[0][name] for name in ("processor", "cores", "commit")}
    rows = make_rows(records, facts | {"command": command, "wall_seconds": time.monotonic() - start})
    print(f"\nmedians over {flags.rounds} round(s) [minimum .. maximum]\n{format_rows(rows)}")

    from resnet_study.files import write_json
    from resnet_study.reports.results import write_table

    write_json(path, rows)
    write_table(path.parent)
    print(f"written: {path}, after {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())
