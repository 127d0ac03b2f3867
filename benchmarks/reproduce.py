"""The tables and figures of He, Liang and Lu & Song on CIFAR and MNIST, one command after the other: `make reproduce`.

python benchmarks/reproduce.py --list                # what there is, and how long each took the last time
python benchmarks/reproduce.py                       # all that is not finished; Ctrl-C and kills cost the steps since the last report
python benchmarks/reproduce.py --only compare        # those whose name contains a word
python benchmarks/reproduce.py --data_dir=FOLDER     # where the data sets lie

A finished experiment is skipped; `runs/reproduce.json` knows which are, and for how long each was computed, over all its
starts. Delete its entry to make it again. An experiment that fails is reported, and the next one begins.
"""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the library, also where it is not installed

from cifar10_main import make_parser
from hyper_parameters import HyperParameters, from_flags
from resnet_study.command_line import Parser
from resnet_study.errors import UsageError, run_command
from resnet_study.files import read_json, write_json
from resnet_study.run_folder import run_folder_of

ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is made: a name, what it shows and of which text, the commands without where things lie, and minutes on two cores."""

    name: str
    shows: str
    commands: tuple[str, ...]
    minutes: int


def _run(name: str, shows: str, flags: str, version: str, minutes: int, lists=("cifar10",)) -> Experiment:
    """Trains one network and publishes its run in each of the `lists` of results."""
    train = f"cifar10_main.py --mode=train --resume --version={version} {flags}"
    publish = (f"cifar10_main.py --mode=publish --version={version} --experiment={each}" for each in lists)
    return Experiment(name, shows, (train, *publish), minutes)


_OPTIONS = ("squeeze_excitation=4", "block_dropout=0.1", "stochastic_depth=0.2", "zero_last_gamma", "maxout=2")
_SHORT = "--preset=fast --warmup_steps=352"


def _study(name: str, shows: str, flags: str, minutes: int) -> Experiment:
    """Makes a study and publishes it."""
    command = f"cifar10_main.py --mode={flags} --version={name}"
    return Experiment(name, shows, (command, f"cifar10_main.py --mode=publish --version={name}"), minutes)


EXPERIMENTS = (
    _study(
        "diagrams",
        "Liang figures 1 to 4, Lu & Song figures 1 and 2: networks and blocks",
        "diagram --models=resnet20,plain20,resnet20_preact,resnet164_v2,resnet9,lenet5,lenet5_1998,alexnet,alexnet_b,alexnet_c,"
        "plain_cnn,inception_resnet_v1",
        1,
    ),
    _run(
        "liang",
        "Liang figures 5, 6, 7 and the numbers of section 6",
        "--preset=liang --num_residual_blocks=3 --watch_test",
        "resnet20_preact-cifar10-liang-seed0",
        27,
    ),
    _run("fast", "ResNet-20 of He et al. 2015, table 6, in less time", "", "resnet20-cifar10-fast-seed0", 54),
    *(
        _run(
            f"fast-all-{seed}",
            "the same on all training images, three seeds",
            f"--preset=fast --validation_fraction=0 --test_flip --seed={seed}",
            f"resnet20-cifar10-fast-all-seed{seed}",
            58,
        )
        for seed in range(3)
    ),
    *(
        _run(
            f"resnet9-hour-{seed}",
            "the number of ResNet-110, He et al. 2015, table 6, in an hour, three seeds",
            f"--preset=resnet9_hour --test_flip --seed={seed}",
            f"resnet9-cifar10-resnet9_hour-all-seed{seed}",
            30,
        )
        for seed in range(3)
    ),
    *(
        _run(
            f"ten-minutes-{seed}",
            "the 94 % of Jordan 2024, airbench94, for 0.40 PFLOP, five seeds",
            f"--preset=ten_minutes --seed={seed}",
            f"airbench-cifar10-ten_minutes-all-seed{seed}",
            20,
        )
        for seed in range(5)
    ),
    *(
        _run(
            f"zoo-{dataset}-{depth}" + (f"-{seed}" if seed else ""),
            f"error against depth on {dataset}, after a whole training: {source}",
            f"--preset=zoo --dataset={dataset} --model=resnet{depth} --seed={seed}",
            f"resnet{depth}-{dataset}-zoo-seed{seed}",
            minutes,
            (dataset,),
        )
        for dataset, depth, seed, minutes, source in (
            ("cifar10", 20, 0, 27, "He et al. 2015, table 6"),
            ("cifar10", 20, 1, 27, "a second seed"),
            ("cifar10", 20, 2, 27, "a third seed"),
            ("cifar10", 32, 0, 45, "He et al. 2015, table 6"),
            ("cifar10", 44, 0, 63, "He et al. 2015, table 6"),
            ("cifar10", 56, 0, 77, "He et al. 2015, table 6"),
            ("cifar10", 110, 0, 155, "He et al. 2015, table 6, and Liang, section 6"),
            ("cifar100", 20, 0, 27, "beside the public weights of chenyaofo"),
            ("cifar100", 32, 0, 45, "beside the public weights of chenyaofo"),
            ("cifar100", 56, 0, 77, "beside the public weights of chenyaofo"),
        )
    ),
    *(
        _run(
            f"zoo-cifar10-plain{depth}",
            f"the plain network of {depth} layers by the same recipe, He et al. 2015, figure 6",
            f"--preset=zoo --model=plain{depth}",
            f"plain{depth}-cifar10-zoo-seed0",
            minutes,
        )
        for depth, minutes in ((20, 27), (56, 79))
    ),
    _run(
        "resnet9-cifar100",
        "ResNet-9 on CIFAR-100, beside the residual networks",
        "--preset=resnet9_hour --dataset=cifar100 --validation_fraction=0.02 --label_smoothing=0.1 --test_flip",
        "resnet9-cifar100-resnet9_hour-seed0",
        53,
        ("cifar100",),
    ),
    _run(
        "zoo-cifar10-taught",
        "distillation (Hinton et al. 2015): ResNet-20 taught by the shipped ResNet-9, at equal steps",
        "--preset=zoo --teacher=resnet9 --teacher_temperature=4 --teacher_share=0.9",
        "resnet20-cifar10-zoo-taught-seed0",
        51,
    ),
    *(
        _run(
            f"zoo-cifar100-{name}",
            "fine and coarse classes on one trunk, and each alone, CIFAR-100 (Lu & Song, conclusions)",
            f"--preset=zoo {flags}",
            f"resnet20-{version}-zoo-seed0",
            27,
            ("multi_task",),
        )
        for name, flags, version in (
            ("coarse", "--dataset=cifar100_coarse", "cifar100_coarse"),
            ("both", "--dataset=cifar100 --heads=fine,coarse", "cifar100-fine_coarse"),
        )
    ),
    _run(
        "night",
        "the 96 % of Jordan 2024, airbench96, for 3.13 PFLOP",
        "--preset=night",
        "airbench96-cifar10-night-all-seed0",
        144,
    ),
    _run(
        "robust",
        "the resistance to noise that Liang, section 7, claims, by training on worse images",
        "--preset=robust",
        "resnet9-cifar10-robust-seed0",
        60,
    ),
    _study(
        "compare-mnist",
        "Lu & Song table 1 and figures 3 and 4: MNIST, three seeds",
        "compare --models=resnet9,alexnet_b,lenet5 --datasets=mnist --seeds=0-2",
        95,
    ),
    _study(
        "compare-cifar10",
        "Lu & Song table 1 and figures 5 and 6: CIFAR-10, three seeds of LeNet",
        "compare --models=resnet9,alexnet_b,lenet5@0-2 --datasets=cifar10 --seeds=0",
        125,
    ),
    _study(
        "degradation",
        "He et al. 2015 figure 6, told by all four texts: plain against residual",
        "degradation --preset=zoo --models=resnet20@0-2,resnet32,resnet44,resnet56,resnet110,plain20,plain56",
        3,
    ),
    _study(
        "robustness",
        "the resistance to noise that Liang, section 7, claims: CIFAR-10",
        "robustness --models=resnet20,resnet9,alexnet_b,lenet5 --datasets=cifar10 --seeds=0",
        10,
    ),
    _study(
        "robustness-mnist",
        "the same on MNIST",
        "robustness --models=resnet9,alexnet_b,lenet5 --datasets=mnist --seeds=0",
        10,
    ),
    _run(
        "inception",
        "Liang sections 3 and 4: Inception-ResNet v1, reduced for 32 x 32",
        f"--model=inception_resnet_v1_small {_SHORT} --train_steps=1408",
        "inception_small",
        9,
    ),
    _run(
        "options-none",
        "what the options and the second task are held against",
        f"{_SHORT} --train_steps=2112",
        "options-none",
        4,
        ("block_options", "multi_task"),
    ),
    *(
        _run(
            f"options-{option.split('=')[0]}",
            "options: dropout and maxout (named by Liang), attention (Waghmode et al., conclusions), and two later ones",
            f"{_SHORT} --train_steps=2112 --{option}",
            f"options-{option.split('=')[0]}",
            4,
            ("block_options",),
        )
        for option in _OPTIONS
    ),
    *(
        _run(
            name,
            "several tasks on one trunk (Lu & Song, conclusions)",
            f"{_SHORT} --train_steps=2112 --heads={heads}",
            name,
            4,
            ("multi_task",),
        )
        for name, heads in (("task_kind", "kind"), ("task_both", "class,kind"))
    ),
)


def main(argv=None) -> int:
    return run_command(lambda: _reproduce(argv))


def _reproduce(argv):
    parser = Parser(
        description="Makes every published table and figure; goes on where it was stopped.",
        shown=("list", "only", "data_dir", "runs_dir", "results_dir"),
    )
    parser.add_argument("--list", action="store_true", help="say what there is, and do nothing")
    parser.add_argument("--only", default="", metavar="WORD", help="experiments whose name contains a word")
    parser.add_argument(
        "--data_dir", default="", metavar="DIR", help="where the data sets lie; '' = Keras' cache, then download"
    )
    parser.add_argument("--runs_dir", default="runs", metavar="DIR", help="folder of all run folders [runs]")
    parser.add_argument("--results_dir", default="results", metavar="DIR", help="the project's results [results]")
    flags = parser.parse_args(argv)
    chosen = [each for each in EXPERIMENTS if flags.only in each.name]
    if not chosen:
        raise UsageError(
            f"--only must be part of a name, received '{flags.only}'; the names are {', '.join(each.name for each in EXPERIMENTS)}"
        )
    path = Path(flags.runs_dir).expanduser() / "reproduce.json"
    known = _read_known(path)
    for each in chosen:
        print(f"{_state(known, each):<34}  {each.name:<16} {each.shows}")
    if flags.list:
        return
    failed = []
    for each in chosen:
        if not _is_finished(known, each) and not _make(each, flags, path, known):
            failed.append(each.name)
    if failed:
        raise UsageError(f"failed: {', '.join(failed)}; see above, then repeat the command")


def _read_known(path) -> dict:
    return read_json(path, dict) if path.exists() else {}


def _state(known, experiment) -> str:
    spent = known.get(experiment.name, {}).get("seconds", 0) / 60
    if _is_finished(known, experiment):
        return f"finished, took {spent:.0f} min"
    of_runs = any(f"--mode={mode} " in experiment.commands[0] for mode in ("degradation", "robustness"))
    return f"about {experiment.minutes} min{' without its runs' if of_runs else ''}" + (
        f", {spent:.0f} min spent" if spent else ""
    )


def _is_finished(known, experiment) -> bool:
    """Whether it was finished with these very commands."""
    entry = known.get(experiment.name, {})
    return entry.get("finished") is True and entry.get("commands") == list(experiment.commands)


def _make(experiment, flags, path, known) -> bool:
    """Runs the commands of one experiment; returns whether all went well. The time is kept also when it is stopped."""
    print(f"\n== {experiment.name}: {experiment.shows}; {_state(known, experiment)}", flush=True)
    before, started = known.get(experiment.name, {}).get("seconds", 0), time.monotonic()
    finished = False
    places = [f"--runs_dir={flags.runs_dir}"] + ([f"--data_dir={flags.data_dir}"] if flags.data_dir else [])
    results = [f"--results_dir={flags.results_dir}"]
    try:
        for command in experiment.commands:
            program, *arguments = command.split()
            print(f"python {command}", flush=True)
            if "--resume" in arguments:
                try:
                    _check_run(experiment.name, arguments, flags.runs_dir)
                except UsageError as error:
                    print(f"error: {error}", file=sys.stderr)
                    return False
            publishes = results if "--mode=publish" in arguments else []
            if _run_to_its_end([sys.executable, str(ROOT / program), *arguments, *places, *publishes]):
                return False
        finished = True
        return True
    finally:
        seconds = round(before + time.monotonic() - started, 1)
        # Another process, with another --only, may have written its own meanwhile.
        known.clear()
        known.update(_read_known(path))
        known[experiment.name] = {"commands": list(experiment.commands), "seconds": seconds, "finished": finished}
        write_json(path, known)


def _check_run(name, arguments, runs_dir):
    """Raises UsageError where the folder of a run holds another one, such as a trial, which --resume would go on with."""
    given = vars(make_parser().parse_args([*arguments, f"--runs_dir={runs_dir}"]))
    wanted = from_flags({key: given[key] for key in HyperParameters.__dataclass_fields__ if key in given})
    run = run_folder_of(wanted)
    if run.holds_run() and (others := run.read_config(HyperParameters).flags_beside(wanted)):
        raise UsageError(
            f"{name} would go on with the run in {run}, which has {' '.join(others)}; move it away, or give another --runs_dir"
        )


def _run_to_its_end(command) -> int:
    """Runs a command and returns its exit code; Ctrl-C, SIGTERM and a closed terminal are passed on, and it gets the time to write its checkpoint.

    Raises:
        KeyboardInterrupt: it was stopped.
    """
    caught = []
    # In a session of its own it gets Ctrl-C from here only: a second one would end it at once.
    process = subprocess.Popen(command, start_new_session=True)

    def pass_on(number, _frame):
        caught.append(number)
        process.send_signal(number if number == signal.SIGINT else signal.SIGTERM)

    numbers = [signal.SIGINT, signal.SIGTERM]
    # A terminal that is closed ends what runs in it, but for what `nohup` began.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught or code == 130:
        raise KeyboardInterrupt("stopped; the same command goes on")
    return code


if __name__ == "__main__":
    sys.exit(main())
