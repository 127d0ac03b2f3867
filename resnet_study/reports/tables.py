"""Markdown tables."""

import re


def table_lines(header, align: str, rows) -> list[str]:
    """The lines of a Markdown table.

    Args:
        header: names of the columns.
        align: a letter for each column: l = left, for text; r = right, for numbers.
        rows: the cells of each row; None leaves its cell empty.

    Example:
        from resnet_study.reports.tables import table_lines

        print(table_lines(["model", "error"], "lr", [["resnet20", 8.4]]))  # ['| model | error |', '|---|---:|', '| resnet20 | 8.4 |']
    """
    rule = "".join({"l": "---|", "r": "---:|"}[letter] for letter in align)
    return [_line(header), f"|{rule}", *map(_line, rows)]


def escape(text: str) -> str:
    """A name of strangers, such as that of a class, as a cell of a table: without what Markdown reads as a table, a link or an emphasis."""
    return re.sub(r"([\\|\[\]*_`])", r"\\\1", text)


def _line(cells):
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


def describe_layers(model) -> str:
    """A Markdown table of the layers of a model: output shape, trainable and non-trainable parameters, MB of float32 weights."""
    from resnet_study.networks.multiply_adds import count_parameters

    rows = []
    for layer in model.layers:
        trainable, fixed = map(count_parameters, (layer.trainable_weights, layer.non_trainable_weights))
        shape = " x ".join(str(size) for size in layer.output.shape[1:])
        rows.append((layer.name, type(layer).__name__, shape, trainable, fixed))
    total = ("total", "", "", sum(row[3] for row in rows), sum(row[4] for row in rows))
    cells = [
        [name, kind, shape, f"{trainable:,}", f"{fixed:,}", f"{(trainable + fixed) * 4 / 2**20:.3f}"]
        for name, kind, shape, trainable, fixed in [*rows, total]
    ]
    header = ["layer", "type", "output", "trainable", "non-trainable", "MB"]
    return "\n".join(table_lines(header, "lllrrr", cells)) + "\n"
