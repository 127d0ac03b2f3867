"""Transfer learning on a folder of images, in one command.

python -m flowers.train                                         # the experiment of the flower text: ten flowers, downloaded once
python -m flowers.train --data_dir=FOLDER                       # ResNet50, ImageNet weights, the values of the flower text
python -m flowers.train --data_dir=FOLDER --variants=8          # the backbone runs once per image and variant: far faster
python -m flowers.train --data_dir=FOLDER --folds=5             # cross-validation: five runs and their mean; again to go on
python -m flowers.train --version=NAME --resume                 # goes on where it was stopped
"""

import sys

from flowers.settings import FlowerParameters
from resnet_study.command_line import Parser, add_flags
from resnet_study.errors import UsageError, run_command
from resnet_study.run_folder import find_run

# Settings of how images are split; the first where there is neither a test nor a validation part, the others where there is none for validation.
_OF_SPLIT = ("test_fraction", "validation_fraction", "split_seed")


def make_parser() -> Parser:
    parser = Parser(
        prog="python -m flowers.train",
        description="Trains a network of keras.applications or of this library with a new head on images of your own, tests it and draws figures.",
        shown=(
            "data_dir",
            "model",
            "epochs",
            "base",
            "variants",
            "weights",
            "version",
            "resume",
            "overwrite",
        ),
        examples=__doc__.partition("\n\n")[2],
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run from its last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="start again in a folder that already holds a run")
    add_flags(parser, FlowerParameters)
    return parser


def main(argv=None) -> int:
    """Runs one command. Returns the exit code, see `resnet_study.errors.run_command`."""
    return run_command(lambda: _run(argv))


def _run(argv):
    from flowers.evaluate import NAMING, report, stored_settings

    flags = vars(make_parser().parse_args(argv))
    resume, overwrite = flags.pop("resume"), flags.pop("overwrite")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other; give one of them")
    if not {"dataset", "data_dir", "labels"} & flags.keys() and not (resume and "version" in flags):
        flags |= {"dataset": "oxford102"}
        # A run that goes on has its number of classes.
        if not resume or not find_run(lambda given: FlowerParameters(**given), flags, NAMING).holds_run():
            flags.setdefault("classes", 10)
    crosses = flags.get("folds", 0) and not flags.get("fold")
    config = stored_settings(flags, goes_on=resume and not crosses, begins=True)
    if config.dataset == "folder" and not config.folds and (asked := [name for name in _OF_SPLIT if flags.get(name)]):
        from resnet_study.data.labelled_files import find_labelled

        found = find_labelled(config.data_dir, config.labels, config.label_level, config.label_separator)
        if "validation" in found.parts or ("test" in found.parts and asked[0] == "test_fraction"):
            raise UsageError(
                f"--{asked[0]} is for images without a validation part, and without a test part where it draws one, received {found.place} with the parts "
                f"{', '.join(found.parts)}; leave it out"
            )
    if config.dataset == "oxford102" and not resume:
        print(
            f"images: Oxford 102 Flowers, {config.classes or 'all'} classes, in the parts of the flower text; --data_dir=FOLDER takes others"
        )

    from resnet_study import devices, workers

    devices.import_tensorflow()
    from flowers.transfer import train

    if crosses:
        from resnet_study.studies.cross_validation import cross_validate

        return cross_validate(config, lambda fold: (train(fold, resume=True), report(fold)), overwrite)
    train(config, resume=resume, overwrite=overwrite)
    if workers.is_chief(config.strategy):
        report(config)


if __name__ == "__main__":
    sys.exit(main())
