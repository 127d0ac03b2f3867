"""A transfer model as files that compute without this library: `python -m flowers.export --version=NAME --format=litert,onnx`."""

import dataclasses
import functools
import sys

from flowers.settings import FlowerParameters
from resnet_study.errors import UsageError, run_command
from resnet_study.reports.console import add_export_flags, print_exports
from resnet_study.settings import Parser, add_flags


def export(
    config: FlowerParameters, formats, quantize="none", pixels="uint8", *, compared: int = 1000, paths=()
) -> list[dict]:
    """As `cifar10_test.export`, of a transfer model; without test images it is checked on validation images."""
    from cifar10_test import make_reader
    from flowers.data import load_images
    from resnet_study.data.new_images import check_own_of
    from resnet_study.evaluation import LabelledParts, check_classes, find_model, read_as_trained
    from resnet_study.exporting.export import CALIBRATION_IMAGES, RealImages, choose_images, read_given
    from resnet_study.exporting.export import export as export_model
    from resnet_study.run_folder import run_around
    from resnet_study.saved_models import load_model

    path, run = find_model(config)
    model = load_model(path, config.shipped_name)
    config = read_as_trained(config, path, model)

    @functools.cache
    def load_data():
        data = load_images(dataclasses.replace(config, image_size=model.input_shape[1]), run_around(path))
        check_own_of(path, config, data.fingerprint, data.found)
        advice = "the images and --classes it was trained with"
        check_classes(path, model, LabelledParts({}, {"": data.class_names}, data.found, advice, data.several))
        return data

    def choose_training():
        part = load_data().training
        images, _ = part.load(choose_images(len(part), CALIBRATION_IMAGES, config.seed))
        return images, f"{len(images):,} training images of {config.dataset_name}"

    if paths:
        shape, read = model.input_shape[1:], make_reader(config, path, model)
        images = read_given(paths, read, shape, compared, config.seed)
        real = RealImages(images, None, f"{len(images):,} images that were given", choose_training)
    else:
        name = "validation" if load_data().test is None else "test"
        part = getattr(load_data(), name)
        images, labels = part.load(choose_images(len(part), compared, config.seed))
        if not len(images):
            raise UsageError(f"no {name} image of {load_data().found} can be read; mend some, or give --images=PATH")
        found = f"{len(images):,} {name} images of {config.dataset_name}"
        real = RealImages(images, {"": labels}, found, choose_training)
    return export_model(path, run, model, real, formats, quantize, pixels, batch_size=config.test_batch_size)


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
