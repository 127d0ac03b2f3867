"""The command line of the CIFAR side: train, test, predict.

python cifar10_main.py --mode=train                          # CIFAR-10, ResNet-20, preset fast
python cifar10_main.py --mode=train --dataset=digits         # a minute, no download
python cifar10_main.py --mode=test --version=NAME
python cifar10_main.py --mode=predict --version=NAME --images PATH...
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import device_placement
import hyper_parameters
from hyper_parameters import UsageError
from run_folder import RunFolder

MODES = ("train", "test", "predict", "publish")


def make_parser() -> argparse.ArgumentParser:
    presets = "\n".join(f"  {name:<13} {preset.summary}" for name, preset in hyper_parameters.PRESETS.items())
    parser = hyper_parameters.Parser(
        prog="cifar10_main.py",
        description="Trains, tests and runs residual networks for small pictures.",
        epilog=f"presets:\n{presets}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--mode",
        choices=MODES,
        required=True,
        help="train = train, test and draw; test = test and draw a finished run; predict = classify --images; "
        "publish = put a tested run among the project's results",
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="PATH", help="picture files or folders, for --mode=predict"
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="for --mode=predict: draw what speaks for each answer (Grad-CAM), in explanations/",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start again in a folder that already holds a run")
    parser.add_argument(
        "--results_dir", default="results", metavar="DIR", help="the project's results, for --mode=publish [results]"
    )
    parser.add_argument(
        "--experiment",
        default="cifar10",
        metavar="NAME",
        help="list of results to add to, for --mode=publish [cifar10]",
    )
    hyper_parameters.add_flags(parser)
    return parser


def main(argv=None) -> int:
    """Runs one command. Returns the exit code: 0, 2 for what the user can mend (one line on stderr), 130 for Ctrl-C."""
    return hyper_parameters.run_command(lambda: _run(argv))


def _run(argv):
    flags = vars(make_parser().parse_args(argv))
    actions = {
        name: flags.pop(name)
        for name in ("mode", "images", "explain", "resume", "overwrite", "results_dir", "experiment")
    }
    if actions["resume"] and actions["overwrite"]:
        raise UsageError("--resume and --overwrite exclude each other; give one of them")
    config = _settings(flags, actions)
    device_placement.import_tensorflow()
    {"train": _train, "test": _test, "predict": _predict, "publish": _publish}[actions["mode"]](config, actions)


def _settings(flags, actions):
    """The settings of the run: those it has stored, where it exists and goes on, changed by the flags that were given."""
    config = hyper_parameters.from_flags(flags)
    run = RunFolder(f"{config.runs_dir}/{config.run_name}")
    goes_on = actions["resume"] if actions["mode"] == "train" else not config.test_ckpt_path
    if goes_on and (run.holds_run() or actions["mode"] != "train"):
        # The folder may have been moved since, or come from a stranger: where to write is never taken from its settings.
        place = {"runs_dir": config.runs_dir, "version": run.path.name}
        return dataclasses.replace(run.read_config(), **flags | place)
    return config


def _train(config, actions):
    from cifar10_train import train

    train(config, resume=actions["resume"], overwrite=actions["overwrite"])
    if device_placement.is_chief(config.strategy):
        _test(config, actions)


def _test(config, _actions):
    from cifar10_test import evaluate

    result, run = evaluate(config)
    print(
        f"{result['model']} on {result['images']:,} test images of {config.dataset}: top-1 error {result['test_error']:.2f} %, "
        f"top-5 error {result['test_top5_error']:.2f} %, loss {result['test_loss']:.4f}; {run.result}"
    )
    if run.holds_run():
        from training_report import draw

        print(f"figures: {', '.join(str(path) for path in draw(run))}")


def _predict(config, actions):
    from cifar10_test import predict

    table, path = predict(config, actions["images"], explains=actions["explain"])
    print(table.to_string(index=False), f"written to {path}", sep="\n")
    if actions["explain"]:
        print(f"explanations: {path.parent / 'explanations'}")


def _publish(config, actions):
    from training_report import publish

    run = RunFolder(f"{config.runs_dir}/{config.run_name}")
    print(f"written: {publish(run, actions['experiment'], Path(actions['results_dir']))}")


if __name__ == "__main__":
    sys.exit(main())
