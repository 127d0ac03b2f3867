"""A transfer model as files that compute without this library: `python -m flowers.export --version=NAME --format=litert,onnx`."""

import dataclasses
import sys

from flowers.settings import FlowerParameters
from resnet_study.errors import run_command
from resnet_study.reports.console import add_export_flags, print_exports
from resnet_study.settings import Parser, add_flags


def export(config: FlowerParameters, formats, quantize="none", pixels="uint8", **options) -> list[dict]:
    """As `cifar10_test.export`, of a transfer model; without test images it is checked on validation images."""
    import cifar10_test

    return cifar10_test.export(config, formats, quantize, pixels, load=_list_parts, **options)


def _list_parts(config, path, model):
    from flowers.data import load_images
    from resnet_study.data.new_images import check_own_of
    from resnet_study.evaluation import LabelledParts, check_classes
    from resnet_study.run_folder import run_around

    config = dataclasses.replace(config, image_size=model.input_shape[1], find_leaks="off")
    data = load_images(config, run_around(path))
    check_own_of(path, config, data.fingerprint, data.found)
    advice = "the images and --classes it was trained with"
    check_classes(path, model, LabelledParts({}, {"": data.class_names}, data.found, advice, data.several))

    def describe(part):
        def take(places):
            images, labels = part.load(places)
            return images, {"": labels}

        return len(part), take

    tested = {"validation": data.validation} if data.test is None else {"test": data.test}
    return {name: describe(part) for name, part in ({"training": data.training} | tested).items()}


def main(argv=None) -> int:
    """Runs one command. Returns the exit code: 0, 2 for what the user can mend (one line on stderr), 130 for Ctrl-C."""
    return run_command(lambda: _run(argv))


def _run(argv):
    from flowers.evaluate import EVALUATE_READS, stored_settings

    parser = Parser(
        prog="python -m flowers.export",
        description="Writes a transfer model as files for phones, browsers and servers, and checks each.",
        usage="%(prog)s --version=NAME --format=NAME,... [flags]",
        shown=("version", "test_ckpt_path", "format", "quantize", "images"),
        examples="python -m flowers.export --version=NAME --format=litert,onnx",
    )
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="image files or folders to check with")
    add_export_flags(parser)
    add_flags(parser, FlowerParameters, EVALUATE_READS)
    flags = vars(parser.parse_args(argv))
    formats, quantize, pixels, compared, paths = (
        flags.pop(name) for name in ("format", "quantize", "pixels", "compare", "images")
    )
    config = stored_settings(flags)

    from resnet_study import devices

    devices.import_tensorflow()
    print_exports(export(config, formats, quantize, pixels, compared=compared, paths=paths))


if __name__ == "__main__":
    sys.exit(main())
