"""A transfer model as files that compute without this library: `python -m flowers.export --version=NAME --format=litert,onnx`."""

import sys

from flowers.evaluate import EVALUATE_READS, label_parts, load_as_trained, stored_settings
from flowers.settings import FlowerParameters
from resnet_study.command_line import Parser, add_flags
from resnet_study.errors import run_command
from resnet_study.reports.console import add_export_flags, note_unfinished, print_exports


def export(config: FlowerParameters, formats, quantize="none", pixels="uint8", **options) -> list[dict]:
    """As `cifar10_test.export`, of a transfer model; without test images it is checked on validation images."""
    import cifar10_test

    return cifar10_test.export(config, formats, quantize, pixels, load=_list_parts, **options)


def _list_parts(config, path, model):
    from resnet_study.evaluation import check_classes

    data = load_as_trained(config, path, model)
    check_classes(path, model, label_parts(data, {}))
    tested = {"validation": data.validation} if data.test is None else {"test": data.test}
    return {"training": data.training} | tested


def main(argv=None) -> int:
    """Runs one command. Returns the exit code, see `resnet_study.errors.run_command`."""
    return run_command(lambda: _run(argv))


def _run(argv):
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
    note_unfinished(config)
    print_exports(export(config, formats, quantize, pixels, compared=compared, paths=paths))


if __name__ == "__main__":
    sys.exit(main())
