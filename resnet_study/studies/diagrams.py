"""Drawings of networks and their blocks, as a study."""

from pathlib import Path

import matplotlib

from hyper_parameters import HyperParameters
from resnet_study.networks import registry
from resnet_study.networks.multiply_adds import count_parameters
from resnet_study.reports.canvas import STYLE, save_figure
from resnet_study.reports.diagrams import BLOCKS, describe_shape, draw_blocks, draw_network
from resnet_study.reports.tables import table_lines
from resnet_study.studies.runs import study_command, study_folder, write_study


def draw_study(given: dict, models) -> Path:
    """Draws networks, and those of their blocks that they share, into a folder as a study has it.

    Args:
        given: settings by name; `version` and `runs_dir` name the folder, "diagrams" if not given, and those of the networks, such
            as `shortcut`, hold for each of them.
        models: registry names.

    Returns:
        The folder: report.md, study.json and the figures.

    Raises:
        UsageError: an unknown network, a setting that a network does not have, or a folder that holds a run.
    """
    folder = study_folder(given, "diagrams", "diagram")
    built = {}
    for name in models:
        config = HyperParameters(**given | {"model": name})
        spec = registry.find(config.model_name)
        spec.check_options(config.network_options)
        built[config.model_name] = spec.build(classes=10, **config.network_options), config.network_options
    command = study_command("diagram", given, models=models)
    cells, rows = [], []
    drawn = []
    with matplotlib.rc_context(STYLE):
        for name, (model, options) in built.items():
            drawn.append(save_figure(draw_network(model), folder / f"{name}.png"))
            parameters = count_parameters(model.trainable_weights)
            cells.append([name, ", ".join(f"{key} {value}" for key, value in options.items()), f"{parameters:,}"])
            row = dict.fromkeys(("preset", "std", "published", "published_source", "hardware", "commit", "run"))
            row |= {"dataset": f"{describe_shape(model.input_shape)}, {model.output_shape[-1]} classes", "model": name}
            row |= {"options": options, "metric": "trainable parameters", "unit": "", "value": parameters, "runs": 1}
            rows.append(row | {"command": command, "images_seen": 0, "wall_seconds": 0})
        for block in BLOCKS:
            with_block = [
                model
                for model, _ in built.values()
                if any(layer.name.startswith(f"{block}_") for layer in model.layers)
            ]
            if with_block:
                figure = draw_blocks(with_block, block)
                drawn.append(save_figure(figure, folder / f"block-{block}.png"))
    report = table_lines(["model", "options", "trainable parameters"], "llr", cells)
    return write_study(folder, command, rows, "\n".join(report), drawn)
