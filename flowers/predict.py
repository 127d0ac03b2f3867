"""What a transfer model says of images: `python -m flowers.predict PATH... --version=NAME`."""

import sys

from flowers.settings import FlowerParameters
from resnet_study.command_line import Parser, add_flags
from resnet_study.errors import run_command
from resnet_study.reports.console import add_explain_flags, check_explain_flags, note_unfinished, print_predictions


def main(argv=None) -> int:
    """Runs one command. Returns the exit code, see `resnet_study.errors.run_command`."""
    return run_command(lambda: _run(argv))


def _run(argv):
    from flowers.evaluate import PREDICT_READS, stored_settings

    parser = Parser(
        prog="python -m flowers.predict",
        description="Prints the three most likely classes of images, and writes them and all probabilities to the folder of the run.",
        usage="%(prog)s PATH... [flags]",
        shown=("images", "version", "test_ckpt_path", "explain"),
        examples="python -m flowers.predict photo.jpg folder/ --version=NAME",
    )
    parser.add_argument(
        "images", nargs="+", metavar="PATH", help="image files, folders with all images within, or .zips"
    )
    add_explain_flags(parser)
    add_flags(parser, FlowerParameters, PREDICT_READS)
    flags = vars(parser.parse_args(argv))
    images, explains, limit = (flags.pop(name) for name in ("images", "explain", "explain_limit"))
    check_explain_flags(explains, limit)
    config = stored_settings(flags)

    from resnet_study import devices

    devices.import_tensorflow()
    from cifar10_test import predict

    note_unfinished(config)
    print_predictions(predict(config, images, limit if explains else 0))


if __name__ == "__main__":
    sys.exit(main())
