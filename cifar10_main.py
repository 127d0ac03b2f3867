"""The command line of the CIFAR side: train, test, predict, export.

python cifar10_main.py --mode=train                          # CIFAR-10, ResNet-20, preset fast
python cifar10_main.py --mode=train --dataset=digits         # a minute, no download
python cifar10_main.py --mode=test --version=NAME
python cifar10_main.py --mode=predict --version=NAME --images PATH...
python cifar10_main.py --mode=export --version=NAME --format=litert,onnx --quantize=int8
python cifar10_main.py --mode=compare --models=resnet20,plain20 --datasets=digits --seeds=0,1,2
"""

import itertools
import sys
from pathlib import Path

import hyper_parameters
from resnet_study import devices, workers
from resnet_study.command_line import Parser, PrintCompletion, add_flags, list_of, parse_seeds
from resnet_study.command_settings import (
    check_read,
    find_command_settings,
    find_named,
    find_others,
    find_sources,
    with_data,
)
from resnet_study.errors import UsageError, run_command
from resnet_study.networks import registry
from resnet_study.presets import PRESETS
from resnet_study.reports.console import (
    add_explain_flags,
    add_export_flags,
    check_explain_flags,
    note_unfinished,
    print_exports,
    print_predictions,
    print_result,
    report_others,
)
from resnet_study.reports.run_list import print_runs
from resnet_study.run_changes import PLACES
from resnet_study.run_folder import RunFolder, run_folder_of

STUDIES = ("compare", "degradation", "robustness", "compress", "diagram")
# What each mode does, and which of the flags that are no settings it takes. A study goes on by itself, with --resume and without.
_MODES = {
    "train": ("train, test and draw", ("resume", "overwrite")),
    "test": ("test and draw a finished run", ()),
    "predict": ("classify --images", ("images", "explain", "explain_limit")),
    "export": ("write a model as files for phones, browsers and servers", ("format", "quantize", "pixels", "compare", "images")),
    "prune": ("make a trained network smaller, and train it on", ("macs", "resume", "overwrite")),
    "calibrate": ("mend the probabilities of a finished run", ("held_out",)),
    "models": ("list the networks: size, arithmetic, error, shipped weights", ()),
    "report": ("write report.html of a run or a study, or of --versions beside each other", ("versions",)),
    "serve": ("a page on this machine to try models: images in, probabilities, heat maps, nearest training images", ("versions", "port")),
    "runs": ("list the run folders: state, error, time, disk", ()),
    "publish": ("put a tested run or a study among the project's results", ("results_dir", "experiment")),
    "compare": ("networks against each other on several data sets", ("models", "datasets", "seeds", "resume")),
    "degradation": ("plain against residual networks at several depths", ("models", "depths", "short", "seeds", "resume")),
    "robustness": ("accuracy on corrupted test images", ("models", "datasets", "seeds", "resume")),
    "compress": ("trained networks as files of each format beside each other: error, size, speed", ("versions", "resume")),
    "diagram": ("draw networks and their blocks", ("models", "resume")),
}  # fmt: skip
# The flags of the short help.
_SHOWN = (
    "mode", "model", "dataset", "preset", "data_dir", "train_steps", "version", "resume", "images", "test_ckpt_path",
)  # fmt: skip


def make_parser() -> Parser:
    modes = "\n".join(f"  --mode={name:<12} {text}" for name, (text, _) in _MODES.items())
    presets = "\n".join(f"  {name:<13} {preset.summary}" for name, preset in PRESETS.items())
    parser = Parser(
        prog="cifar10_main.py",
        description=f"Trains and tests residual networks for small images, and classifies images with them.\n\nmodes:\n{modes}",
        shown=_SHOWN,
        examples=__doc__.partition("\n\n")[2],
        epilog=f"presets:\n{presets}",
    )
    parser.add_argument("--mode", choices=tuple(_MODES), required=True, metavar="MODE", help="what to do, see above")
    parser.add_argument(
        "--print-completion",
        action=PrintCompletion,
        const="cifar10",
        choices=("bash", "zsh", "tcsh", "fish"),
        metavar="SHELL",
        help="print what completes the flags of the command cifar10 in a shell, and end; see docs/training.md",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help="image files, folders or .zips, for --mode=predict and export",
    )
    add_explain_flags(parser)
    add_export_flags(parser)
    parser.add_argument(
        "--held_out",
        default="",
        metavar="RUN",
        help="run of the same recipe, its name or its folder, whose validation images --mode=calibrate uses, for a run on all images",
    )
    parser.add_argument(
        "--macs",
        type=float,
        default=1.0,
        metavar="FLOAT",
        help="share of the multiply-adds that --mode=prune leaves, such as 0.6; --sparsity is the share of weights that become 0 [1]",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start again in a folder that already holds a run")
    parser.add_argument(
        "--results_dir", default="results", metavar="DIR", help="the project's results, for --mode=publish [results]"
    )
    parser.add_argument(
        "--experiment",
        default="",
        metavar="NAME",
        help="list of results to add to, for --mode=publish [the data set; of a study its name]",
    )
    parser.add_argument(
        "--versions",
        type=list_of(str),
        metavar="NAME,...",
        help="run folders in --runs_dir to lay beside each other, for --mode=report, serve and compress; for serve and compress model files "
        "and cifar10, too; for compress names of networks with shipped weights, such as resnet9",
    )
    parser.add_argument("--port", type=int, default=8000, metavar="INT", help="of 127.0.0.1, for --mode=serve [8000]")
    studies = parser.add_argument_group(
        "studies of several runs",
        "They train what is missing, reuse what is finished, and go on where they were stopped.",
    )
    studies.add_argument(
        "--models",
        type=list_of(str),
        metavar="NAME,...",
        help="networks, each perhaps with a preset or seeds of its own: NAME:PRESET, NAME@0, NAME@0-2 [--model]",
    )
    studies.add_argument("--datasets", type=list_of(str), metavar="NAME,...", help="data sets [--dataset]")
    studies.add_argument("--seeds", type=parse_seeds, metavar="INT,...", help="seeds, such as 0,1,2 or 0-2 [--seed]")
    studies.add_argument(
        "--depths",
        type=list_of(int),
        metavar="INT,...",
        help="depths 6n+2 for --mode=degradation [20,32,44,56]",
    )
    studies.add_argument(
        "--short", action="store_true", help="--mode=degradation in about an hour on two cores: preset degradation"
    )
    add_flags(parser, hyper_parameters.HyperParameters)
    return parser


def main(argv=None) -> int:
    """Runs one command. Returns the exit code, see `resnet_study.errors.run_command`."""
    return run_command(lambda: _run(argv))


def _run(argv):
    parser = make_parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in _MODES:  # "cifar10 runs" means "cifar10 --mode=runs"
        argv[0] = f"--mode={argv[0]}"
    flags = vars(parser.parse_args(argv))
    fields = hyper_parameters.HyperParameters.__dataclass_fields__
    actions = {name: flags.pop(name) for name in list(flags) if name not in fields}
    _check_actions(actions, parser)
    if actions["mode"] != "serve":  # which looks at what its models are first
        check_read(flags, actions["mode"], [path] if (path := flags.get("test_ckpt_path")) else (), actions["versions"])
    if actions["mode"] == "models":
        from resnet_study.reports.model_list import list_models

        return print(list_models())
    if actions["mode"] == "runs":
        return print_runs(hyper_parameters.from_flags(flags).runs_dir)
    if actions["mode"] == "report":
        return _report(flags, actions["versions"])
    if actions["mode"] == "serve":
        return _serve(flags, actions["versions"], actions["port"])
    if actions["mode"] in STUDIES:
        try:
            return _study(flags, actions)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(str(stop) or "stopped; the same command again goes on with the study") from stop
    if actions["resume"] and actions["overwrite"]:
        raise UsageError("--resume and --overwrite exclude each other; give one of them")
    actions["others"] = find_others(flags) if actions["mode"] == "test" else None
    config = find_command_settings(flags, actions["mode"], actions["resume"])
    # A pruned run has a warm-up of its own, and is not yet what it will be.
    own = ("warmup_lr", "warmup_shape", "prune_by") if actions["mode"] == "prune" else ()
    config.check_given({name: value for name, value in flags.items() if name not in own})
    actions["given"] = flags
    devices.import_tensorflow()
    if actions["mode"] not in ("train", "prune"):
        devices.share_batches()
    {
        "train": _train,
        "test": _test,
        "predict": _predict,
        "calibrate": _calibrate,
        "export": _export,
        "prune": _prune,
        "publish": _publish,
    }[actions["mode"]](config, actions)


def _check_actions(actions, parser):
    """Raises UsageError for a flag that the mode would ignore."""
    mode = actions["mode"]
    if mode in STUDIES and actions["overwrite"]:
        raise UsageError("--overwrite is for single runs; a study keeps what is finished, delete run folders by hand")
    for name, value in actions.items():
        if name != "mode" and value != parser.get_default(name) and name not in _MODES[mode][1]:
            takers = " and ".join(other for other, (_, taken) in _MODES.items() if name in taken)
            raise UsageError(f"--mode={mode} has no --{name}, received one; leave it out, it is for {takers}")
    check_explain_flags(actions["explain"], actions["explain_limit"])


def _study(flags, actions):
    if actions["short"] and "preset" in flags:
        raise UsageError(
            f"--short is --preset=degradation, received it and --preset={flags['preset']}; give one of them"
        )
    if flags.get("strategy") == "multi_worker":
        raise UsageError(
            "studies train one run after the other on one machine, received --strategy=multi_worker; train the runs first, one by one"
        )
    if actions["depths"] and actions["models"]:
        raise UsageError("--depths and --models both name networks, received both; give one of them")
    for one, several in (("model", "models"), ("dataset", "datasets"), ("seed", "seeds")):
        if one in flags and actions[several]:
            raise UsageError(f"--{one} and --{several} exclude each other; give one of them")
    given = {name: value for name, value in flags.items() if name not in ("model", "seed")}
    # Alone: the others may be for networks and data sets of the plural flags, and are checked with these.
    named = {"preset", "model", "dataset", "data_dir", "seed"} & flags.keys()
    defaults = hyper_parameters.from_flags({name: flags[name] for name in named})
    seeds = actions["seeds"] or [defaults.seed]
    models = actions["models"] or [defaults.model]
    devices.import_tensorflow()
    if actions["mode"] == "diagram":
        from resnet_study.studies.diagrams import draw_study

        folder = draw_study(given, models)
    elif actions["mode"] == "compress":
        from resnet_study.studies.compress import compress

        # Here --model names no run, but the network of shipped weights; the command that repeats the study has it among --versions.
        kept = flags if actions["versions"] else {name: value for name, value in flags.items() if name != "model"}
        folder = compress(kept, find_sources(flags, actions["versions"] or [defaults.model]))
    else:
        from resnet_study.studies.compare import compare
        from resnet_study.studies.degradation import degrade
        from resnet_study.studies.robustness import measure_robustness

        if actions["mode"] == "degradation":
            folder = degrade(
                given, actions["depths"] or (20, 32, 44, 56), seeds, actions["short"], actions["models"] or ()
            )
        else:
            datasets = actions["datasets"] or [given.pop("dataset", defaults.dataset)]
            study = {"compare": compare, "robustness": measure_robustness}
            folder = study[actions["mode"]](given, models, datasets, seeds)
    from resnet_study.reports.comparison_page import print_study

    print_study(folder)


def _report(flags, versions):
    """Writes the page of the run or study that the flags name, of either program, or of several runs."""
    devices.import_tensorflow()
    from resnet_study.reports import comparison_page, run_page

    named = find_named(flags)
    if versions:
        runs = [RunFolder(named.path.parent / name) for name in dict.fromkeys(versions)]
        page = comparison_page.write_comparison(named.path.parent / (flags.get("version") or "comparison"), runs)
    elif (named.path / "study.json").is_file():
        page = comparison_page.write_study_page(named.path)
    else:
        page = run_page.write_run_page(
            named, run_page.find_tested_images(named, **{name: flags.get(name) for name in PLACES})
        )
    print(f"written: {page}")


def _tell_apart(paths: dict) -> dict[str, str]:
    """A name for each path: as much of its end as no other has (of runs/a/best.keras and runs/b/best.keras the folders too), or else a number."""
    parts = {name: Path(path).expanduser().resolve().parts for name, path in paths.items()}
    shown = {}
    for name, mine in parts.items():
        ends = [mine[-count:] for count in range(1, len(mine) + 1)]
        others = [theirs for other, theirs in parts.items() if other != name]
        own = (end for end in ends if all(theirs[-len(end) :] != end for theirs in others))
        short = "-".join(next(own, ends[0]))
        numbered = (f"{short}-{number}" for number in itertools.count(2))
        shown[name] = (
            short if short not in shown.values() else next(each for each in numbered if each not in shown.values())
        )
    return shown


def _serve(flags, versions, port):
    """Answers for runs of either program in `runs_dir`, model files and "cifar10", beside each other."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be 0 (any that is free) to 65535, received {port}")
    if flags.get("version") and flags.get("test_ckpt_path"):
        raise UsageError("--version and --test_ckpt_path both name a model; give one of them, or several by --versions")
    if versions and (named := {"version", "test_ckpt_path"} & flags.keys()):
        raise UsageError(f"--versions and --{min(named)} exclude each other; give one of them")
    config = hyper_parameters.from_flags(flags)
    runs = Path(config.runs_dir).expanduser()
    named = versions or [config.test_ckpt_path or config.run_name]
    paths = {name: str(runs / name) if (runs / name).is_dir() else name for name in named}
    check_read(flags, "serve", paths.values() if versions or {"version", "test_ckpt_path"} & flags.keys() else ())
    devices.import_tensorflow()
    try:
        from resnet_study.serving.app import listen, serve
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--mode=serve needs the package {error.name}, which is not installed; install the extra serve: pip install -e '.[serve]' in the clone"
        ) from error
    from resnet_study.serving.served_model import ServedModel

    # Shipped weights tell what they were trained on; other models have a run that does, or are told by flags.
    settings = {
        name: with_data(flags | {"test_ckpt_path": path}) if path in registry.SHIPPED else config
        for name, path in paths.items()
    }
    for path in paths.values():
        if path not in registry.SHIPPED and not Path(path).expanduser().exists():
            raise UsageError(
                f"expected a run folder, model file or one of {', '.join(registry.SHIPPED)}, received '{path}'; --mode=runs lists the runs"
            )
    shown, listening = _tell_apart(paths), listen(port)
    with listening:
        serve([ServedModel(shown[name], path, settings[name]) for name, path in paths.items()], listening)


def _train(config, actions):
    from cifar10_train import train

    if config.crosses:
        from resnet_study.studies.cross_validation import cross_validate

        return cross_validate(
            config, lambda fold: _train(fold, {"resume": True, "overwrite": False, "given": {}}), actions["overwrite"]
        )
    is_new = not (actions["resume"] and run_folder_of(config).holds_run())
    if config.dataset == "folder" and not config.folds and is_new:
        from resnet_study.data.folder_data import check_split_flags

        check_split_flags(config, actions["given"])
    train(config, resume=actions["resume"], overwrite=actions["overwrite"])
    if workers.is_chief(config.strategy):
        _test(config, actions)


def _prune(config, actions):
    from resnet_study.studies.prune import describe_size, plan

    config = plan(config, actions["given"], actions["macs"], actions["resume"], actions["overwrite"])
    _train(config, actions)
    print(describe_size(run_folder_of(config), config.sparsity))


def _test(config, actions):
    from cifar10_test import evaluate

    if (others := actions.get("others")) is not None:
        report_others(config, others)
        return
    result, run = evaluate(config)
    print_result(result)
    note_unfinished(config)
    if run.holds_run():
        from resnet_study.reports.figures import draw

        draw(run, **{name: getattr(config, name) for name in PLACES})
    print(f"written: {run.result}" + (f", figures in {run.figures}, all in {run.page}" if run.holds_run() else ""))


def _predict(config, actions):
    from cifar10_test import predict

    note_unfinished(config)
    print_predictions(predict(config, actions["images"], actions["explain_limit"] if actions["explain"] else 0))


def _calibrate(config, actions):
    from resnet_study.studies.calibrate import calibrate

    note_unfinished(config)
    facts, path = calibrate(config, actions["held_out"])
    before, after = facts["test_before"], facts["test_after"]
    print(
        f"temperature {facts['temperature']:.3f}, fitted on {facts['images']:,} held-out images\n"
        f"on the test images: calibration error {before['calibration_error']:.2f} -> {after['calibration_error']:.2f} points, loss "
        f"{before['loss']:.4f} -> {after['loss']:.4f}; no answer changes\nwritten: {path}; use it with --test_ckpt_path={path}"
    )
    if worse := [name for name in ("calibration_error", "loss") if after[name] > before[name]]:
        told = " and the ".join(worse).replace("_", " ")
        print(
            f"note: the {told} became worse; {facts['images']:,} held-out images may be too few, so leave it as it was"
        )


def _export(config, actions):
    from cifar10_test import export

    note_unfinished(config)
    options = {name: actions[name] for name in ("quantize", "pixels")}
    print_exports(export(config, actions["format"], **options, compared=actions["compare"], paths=actions["images"]))


def _publish(config, actions):
    from resnet_study.reports.results import publish, publish_study

    run, results = run_folder_of(config), Path(actions["results_dir"]).expanduser()
    if (run.path / "study.json").is_file():
        print(f"written: {publish_study(run.path, actions['experiment'] or run.path.name, results)}")
    else:
        print(f"written: {publish(run, actions['experiment'] or config.dataset_name, results)}")


if __name__ == "__main__":
    sys.exit(main())
