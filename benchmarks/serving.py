"""How many images a second `--mode=serve` answers when all are asked about at once, and whether an answer is lost.

python benchmarks/serving.py                  # the shipped ResNet-20, 200 requests, three rounds: a minute
python benchmarks/serving.py --requests 20 --rounds 1 --results_dir TRIAL        # does it work?

The server is a process of its own and shares the machine with the one that asks. Each request sends examples/cat.jpg, 200 x 200 pixels; all of
a round are under way at the same time. Writes runs/bench/serving.json.
"""

import asyncio
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from rows import OF_NO_RUN, check_place, describe_measurement, summarise, write_rows

from resnet_study import devices
from resnet_study.command_line import Parser
from resnet_study.errors import UsageError, run_command

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"probabilities": "", "with heat map and nearest images": "?details=true"}


async def ask(address: str, content: bytes, count: int) -> tuple[float, float, int]:
    """Sends `count` requests at once. Returns (answers per second, seconds until half were answered, requests without an answer)."""
    import httpx

    ends = []
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=count)) as client:
        start = time.perf_counter()

        async def one():
            response = await client.post(address, content=content)
            if response.status_code == 200 and response.json()["answers"]:
                ends.append(time.perf_counter() - start)

        await asyncio.gather(*(one() for _ in range(count)), return_exceptions=True)
    if not ends:
        raise UsageError("expected answers, received none; see what the server says above")
    return len(ends) / ends[-1], ends[len(ends) // 2], count - len(ends)


def make_rows(measured: dict, facts: dict) -> list[dict]:
    """The rows of `serving.json`: medians over the rounds, and the lost requests of all rounds."""
    rows = []
    for kind, rounds in measured.items():
        rates, waits, lost = zip(*rounds, strict=True)
        for metric, unit, numbers in (("served_rate", "images/s", rates), ("half_answered", "s", waits), ("lost_requests", "requests", lost)):  # fmt: skip
            rows.append(
                facts
                | {"experiment": "serving", "model": "resnet20", "preset": kind, "metric": metric, "unit": unit}
                | {**summarise(numbers), **OF_NO_RUN}
            )  # fmt: skip
    return rows


def _measure(flags):
    told = f"python benchmarks/serving.py --requests {flags.requests} --rounds {flags.rounds}"
    told += " --data_dir FOLDER" * bool(flags.data_dir)
    check_place(flags.results_dir / "serving.json", told)
    if (load := os.getloadavg()[0]) > 0.5:
        print("other programs are using this machine: rates will be too low")
    start = time.monotonic()
    data = [f"--data_dir={flags.data_dir}"] if flags.data_dir else []
    command = [sys.executable, ROOT / "cifar10_main.py", "--mode=serve", "--test_ckpt_path=cifar10", "--port=0", *data]
    measured = {kind: [] for kind in KINDS}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        found = next((line for line in server.stdout if "http://" in line), None)
        if found is None:
            raise UsageError("expected a server, received none; see what it says above")
        address = f"{found[found.index('http://') :].split(',')[0]}/api/predict"
        content = (ROOT / "examples" / "cat.jpg").read_bytes()
        for number in range(flags.rounds + 1):
            for kind, parameters in KINDS.items():
                found = asyncio.run(ask(address + parameters, content, flags.requests))
                print(
                    f"round {number}, {kind}: {found[0]:.1f} images/s, half answered after {found[1]:.2f} s, {found[2]} lost"
                )
                if number:  # the first warms up
                    measured[kind].append(found)
    finally:
        server.terminate()
        server.wait()
    note = f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} at the end, the benchmark included"
    facts = describe_measurement(f"{flags.requests} requests at once", told, start, note)
    write_rows(make_rows(measured, facts), flags.results_dir)


def main(arguments=None) -> int:
    """Measures, prints and writes. Returns the exit code: 0, or 2 for what the user can mend (one line on stderr)."""
    parser = Parser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="under way at the same time [200]")
    parser.add_argument("--rounds", type=int, default=3, help="after one that warms up [3]")
    parser.add_argument(
        "--data_dir",
        default="",
        help="CIFAR-10, for nearest training images [Keras' cache; without it none are searched]",
    )
    parser.add_argument("--results_dir", type=Path, default=Path("runs", "bench"), help="[runs/bench]")

    def run():
        flags = parser.parse_args(arguments)
        if min(flags.rounds, flags.requests) < 1:
            raise UsageError("--rounds and --requests must be at least 1; received less")
        if importlib.util.find_spec("httpx") is None:
            raise UsageError(
                "this benchmark needs httpx; install the extra bench: pip install -e '.[bench]' in the clone"
            )
        devices.import_tensorflow()
        _measure(flags)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
