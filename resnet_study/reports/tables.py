"""Markdown tables."""


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


def _line(cells):
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"
