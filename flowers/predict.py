"""What a transfer net says of pictures: `python -m flowers.predict PATH... --version=NAME`."""

import sys

from flowers.settings import FlowerParameters
from resnet_study.errors import run_command
from resnet_study.settings import Parser, add_flags


def main(argv=None) -> int:
    """Runs one command. Returns the exit code: 0, 2 for what the user can mend (one line on stderr), 130 for Ctrl-C."""
    return run_command(lambda: _run(argv))


def _run(argv):
    from flowers.evaluate import PREDICT_READS, stored_settings

    parser = Parser(
        prog="python -m flowers.predict",
        description="Prints the three most likely classes of pictures, and writes them to predictions.csv of the run.",
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="+", metavar="PATH", help="picture files, or folders of pictures")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="draw what speaks for each answer (Grad-CAM), in explanations/ of the run",
    )
    add_flags(parser, FlowerParameters, PREDICT_READS)
    flags = vars(parser.parse_args(argv))
    images, explains = flags.pop("images"), flags.pop("explain")
    config = stored_settings(flags, goes_on=not flags.get("test_ckpt_path"))

    from resnet_study import devices

    devices.import_tensorflow()
    import flowers.heads  # noqa: F401 - registers its layer
    from cifar10_test import explanations_of, predict
    from flowers.image_part import read_image

    def read(file, shape):
        return read_image(str(file), shape, config.faithful)

    table, path = predict(config, images, explains=explains, read=read)
    print(table.to_string(index=False), f"written to {path}", sep="\n")
    if explains:
        print(f"explanations: {explanations_of(path)}")


if __name__ == "__main__":
    sys.exit(main())
