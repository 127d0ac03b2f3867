"""Diagrams of networks and blocks, drawn from the Keras model itself: what is in the diagram is in the network.

    draw_network(model)            one box per block or layer with its companions; arcs are shortcuts
    draw_blocks(models, block)     one block of each network side by side, layer by layer

`keras.utils.plot_model` needs the program `dot` of Graphviz, which pip does not install, and draws every layer of a network of 56 layers
below the other. So this is drawn with matplotlib. Figures 1 to 4 of Liang 2020, 1 and 2 of Lu & Song.
"""

import collections
import itertools
import re

import keras
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from resnet_study.errors import UsageError
from resnet_study.networks.graph import find_producers, inputs_of
from resnet_study.networks.multiply_adds import count_parameters
from resnet_study.reports.canvas import make_panels

_BLOCK = re.compile(r"(.+block\d+)_")  # layers of one block share this beginning of their names
BLOCKS = (
    "stage1_block2", "stage2_block1",  # with an identity shortcut, and where a stage begins
    "module_a1", "module_b1", "module_c1", "reduction_a", "reduction_b",  # Liang 2020, figures 2 and 3
)  # fmt: skip
_BOXES_PER_ROW = 6
# What a layer is -> the colour of its box; white for the rest.
_COLOURS = {
    "conv": "#BFD9EA",
    "norm": "#F5E3B5",
    "relu": "#CFE8D5",
    "pool": "#E8D3E2",
    "add": "#F3C9B0",
    "dense": "#D9D9D9",
    "block": "#DCE9F2",
}


def draw_blocks(models: list[keras.Model], block: str):
    """Draws one block of each network, layer by layer from top to bottom; what is beside the longest way stands to the right of it.

    A network whose block equals that of one before it is left out.

    Args:
        models: functional models.
        block: beginning of the names of the block's layers, such as "stage1_block2".

    Returns:
        matplotlib figure.

    Raises:
        UsageError: a model has no such block.
    """
    parts = {}
    for model in models:
        cut = _cut_block(model, block)
        if all(cut != other for other in parts.values()):
            parts[model.name] = cut
    columns = {name: _columns(edges, ranks) for name, (_, edges, ranks) in parts.items()}
    height = max(max(ranks.values()) for _, _, ranks in parts.values()) + 1
    right = max(2.3 * max(max(places.values()) for places in columns.values()) + 1.1, 1.7)
    figure, panels = make_panels(
        1, len(parts), figsize=(0.8 * (right + 1.2) * len(parts), 0.55 * height + 0.7), squeeze=False
    )
    for axes, (model_name, (labels, edges, ranks)) in zip(panels[0], parts.items(), strict=True):
        places = {name: (2.3 * columns[model_name][name], -ranks[name]) for name in ranks}
        for name, (x, y) in places.items():
            _box(axes, x, y, labels[name], 2.0, 0.62, fontsize=8)
        for source, target in edges:
            _arrow(axes, places[source], places[target], 0.31, jumps=ranks[target] - ranks[source] > 1)
        axes.set(xlim=(-1.2, right), ylim=(-height + 0.4, 0.6))
        axes.set_title(model_name)
        axes.axis("off")
    figure.suptitle(block.replace("_", ", "))
    return figure


def draw_network(model: keras.Model):
    """Draws a network from left to right: one box per block, or per layer with the weightless layers that follow it; equal blocks are counted.

    A block is what shares a name, or branches that meet again. So the boxes are a chain, whatever is in them.

    Args:
        model: functional model.

    Returns:
        matplotlib figure.

    Raises:
        UsageError: the model is not functional.

    Example:
        from resnet import build_resnet20
        from resnet_study.reports.diagrams import draw_network

        draw_network(build_resnet20()).savefig("resnet20.png")
    """
    boxes = _network_boxes(model)
    rows = -(-len(boxes) // _BOXES_PER_ROW)
    per_row = -(-len(boxes) // rows)
    figure, axes = make_panels(figsize=(1.75 * per_row, 1.6 * rows + 0.4))
    places = [(1.9 * (index % per_row), -1.8 * (index // per_row)) for index in range(len(boxes))]
    for (x, y), (lines, count, has_shortcut, kind) in zip(places, boxes, strict=True):
        # What a box is wide holds 22 characters of 8 points.
        _box(axes, x, y, "\n".join(lines), 1.6, 1.0, kind=kind, fontsize=min(8, 175 / max(map(len, lines))))
        if count > 1:
            axes.text(x, y - 0.64, f"{count} times", ha="center", va="center", fontsize=8)
        if has_shortcut:
            arc = FancyArrowPatch(
                (x - 0.7, y + 0.5),
                (x + 0.7, y + 0.5),
                connectionstyle="arc3,rad=-0.35",
                arrowstyle="-|>",
                mutation_scale=9,
            )
            axes.add_patch(arc)
    for (x, y), (next_x, next_y) in itertools.pairwise(places):
        if y == next_y:
            _straight(axes, (x + 0.8, y), (next_x - 0.8, y))
        else:
            points = [
                (x + 0.8, y),
                (x + 0.95, y),
                (x + 0.95, y - 0.85),
                (next_x - 0.95, y - 0.85),
                (next_x - 0.95, next_y),
            ]
            axes.plot(*zip(*points, strict=True), color="black", linewidth=1)
            _straight(axes, points[-1], (next_x - 0.8, next_y))
    axes.set(xlim=(-1.05, 1.9 * per_row - 0.85), ylim=(-1.8 * (rows - 1) - 0.8, 0.95))
    axes.axis("off")
    axes.set_title(f"{model.name}: {count_parameters(model.trainable_weights):,} trainable parameters")
    return figure


def _graph(model):
    """Layers in the order in which they are computed, and the edges between them, by name."""
    if not hasattr(model, "operations"):
        raise UsageError(f"expected a functional model, received {type(model).__name__} '{model.name}'")
    producers = find_producers(model)
    edges = [
        (producers[id(tensor)].name, each.name)
        for each in model.operations
        if not isinstance(each, keras.layers.InputLayer)
        for tensor in inputs_of(each)
    ]
    return {each.name: each for each in model.operations}, edges


def _segments(model) -> list[list]:
    """The layers in order, cut wherever all that follows depends on one layer alone: branches that meet again stay together."""
    layers, edges = _graph(model)
    order = list(layers)
    last_use = {name: index for index, name in enumerate(order)}
    for source, target in edges:
        last_use[source] = max(last_use[source], order.index(target))
    segments, needed_until = [[]], 0
    for index, name in enumerate(order):
        segments[-1].append(layers[name])
        if needed_until <= index:  # nothing before this layer is read after it
            segments.append([])
        needed_until = max(needed_until, last_use[name])
    return [segment for segment in segments if segment]


def _cut_block(model, block):
    """Labels, edges and ranks (longest way from the input) of one block, with an "x" before it and a "y" behind it."""
    layers, edges = _graph(model)
    inside = [name for name in layers if name.startswith(f"{block}_")]
    if not inside:
        raise UsageError(f"{model.name} has no layers named {block}_..., expected such as {', '.join(BLOCKS)}")
    labels = {name: _label(layers[name]) for name in inside}
    cut = []
    for source, target in edges:
        ends = [name if name in labels else end for name, end in ((source, "x"), (target, "y"))]
        if source in labels or target in labels:
            cut.append((ends[0], ends[1]))
    cut = list(dict.fromkeys(cut))
    shape = layers[next(source for source, target in edges if target in labels and source not in labels)].output.shape
    labels |= {"x": f"x\n{describe_shape(shape)}", "y": f"y\n{describe_shape(layers[inside[-1]].output.shape)}"}
    ranks = {"x": 0}
    for name in [*inside, "y"]:  # the order in which they are computed
        ranks[name] = 1 + max(ranks[source] for source, target in cut if target == name)
    return labels, cut, ranks


def _columns(edges, ranks) -> dict[str, int]:
    """0 for the layers of the longest way, 1, 2, ... for those beside it; a layer beside it stands just before it is needed."""
    longest, node = set(), max(ranks, key=ranks.get)
    while node is not None:
        longest.add(node)
        before = [source for source, target in edges if target == node]
        node = max(before, key=ranks.get) if before else None
    columns, taken = {}, collections.Counter()
    for name, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if name in longest:
            columns[name] = 0
        else:
            before = [columns[source] for source, target in edges if target == name and columns.get(source)]
            columns[name] = before[0] if before else taken[rank] + 1
            taken[rank] += 1
    return columns


def _network_boxes(model) -> list[tuple[list[str], int, bool, str]]:
    """(lines, count, has a shortcut, kind) of every box of a network, from input to output."""
    groups, blocks = {}, set()
    for segment in _segments(model):
        first, last = segment[0], next(reversed(groups), None)
        named = _BLOCK.match(first.name)
        begins = last is None or _BLOCK.match(f"{last}_") or isinstance(groups[last][0], keras.layers.InputLayer)
        if named or len(segment) > 1:
            key = named[1] if named else first.name
            blocks.add(key)
            groups.setdefault(key, []).extend(segment)
        # Normalisation, activation, dropout and flattening stand in the box of the layer that they follow.
        elif not begins and _kind(first) in ("norm", "relu", ""):
            groups[last].append(first)
        else:
            groups[first.name] = [first]
    boxes = []
    for name, members in groups.items():
        is_block = name in blocks
        joins = any(_kind(layer) == "add" for layer in members)
        texts = [_label(layer) for layer in members]
        if is_block:
            convolutions = [
                text.replace("conv", "shortcut") if "shortcut" in layer.name else text
                for layer, text in zip(members, texts, strict=True)
                if _kind(layer) == "conv"
            ]
            # That of a shortcut stands beside the others, and not among them.
            counts = collections.Counter(sorted(convolutions, key=lambda text: text.startswith("shortcut")))
            lines = [f"{count} x {text}" if count > 1 else text for text, count in counts.items()]
        else:
            lines = list(dict.fromkeys(text.replace("\n", " ") for text in texts))
        if _kind(members[0]) != "dense":  # its units say it
            lines.append(describe_shape(members[-1].output.shape))
        kind = "block" if is_block else _kind(members[0])
        if is_block and boxes and boxes[-1][0] == lines and boxes[-1][2] == joins:
            boxes[-1] = (lines, boxes[-1][1] + 1, joins, kind)
        else:
            boxes.append((lines, 1, joins, kind))
    return boxes


def _kind(layer) -> str:
    name = type(layer).__name__.lower()
    for word, kind in (("conv", "conv"), ("norm", "norm"), ("relu", "relu"), ("activation", "relu"), ("pool", "pool"), ("add", "add"), ("dense", "dense")):  # fmt: skip
        if word in name and "pad" not in name:
            return kind
    return ""


def _label(layer) -> str:
    """What a layer is, in one or two short lines."""
    name, kind = type(layer).__name__, _kind(layer)
    if kind == "conv":
        stride = f", stride {layer.strides[0]}" if max(layer.strides) > 1 else ""
        # Not every convolution has filters: a depthwise one keeps the channels.
        return f"conv {' x '.join(map(str, layer.kernel_size))}, {layer.output.shape[-1]}{stride}"
    if kind == "norm":
        return "batch norm" if "Batch" in name else "normalisation"
    if kind == "dense":
        return f"dense {layer.units}"
    if kind == "pool" and hasattr(layer, "pool_size"):
        if max(layer.pool_size) == 1:
            return "every second pixel"
        return f"{'max' if 'Max' in name else 'average'} pool {layer.pool_size[0]}, stride {layer.strides[0]}"
    words = {"GlobalAveragePooling2D": "global\naverage pool", "GlobalMaxPooling2D": "global\nmax pool", "ZeroPadChannels": "zero channels", "ZeroPadding2D": "zero padding"}  # fmt: skip
    words |= {"InputLayer": "image", "Add": "+", "ReLU": "ReLU"}
    if name == "Rescaling":
        return f"times {layer.scale:.3g}"
    if name == "Activation":
        return layer.activation.__name__
    return words.get(name, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def describe_shape(shape) -> str:
    return " x ".join(str(size) for size in shape[1:])


def _box(axes, x, y, text, width, height, *, kind=None, fontsize=9):
    first = text.split("\n")[0]
    kinds = (("conv", "conv"), ("norm", "norm"), ("ReLU", "relu"), ("pool", "pool"), ("every", "pool"), ("+", "add"), ("dense", "dense"))  # fmt: skip
    kind = kind if kind is not None else next((value for word, value in kinds if word in first), "")
    corner = (x - width / 2, y - height / 2)
    style = FancyBboxPatch(
        corner,
        width,
        height,
        "round,pad=0,rounding_size=0.08",
        facecolor=_COLOURS.get(kind, "white"),
        edgecolor="black",
        linewidth=0.8,
    )
    axes.add_patch(style)
    axes.text(x, y, text, ha="center", va="center", fontsize=fontsize, linespacing=1.25)


def _straight(axes, start, end):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=0))


def _arrow(axes, start, end, half, *, jumps):
    """From the box at `start` to the box at `end` below; what jumps over boxes of its own column goes round them."""
    (x, y), (end_x, end_y) = start, end
    if x == end_x and jumps:
        points = [(x + 1.0, y), (x + 1.15, y), (x + 1.15, end_y)]  # in the gap between two columns
        axes.plot(*zip(*points, strict=True), color="black", linewidth=1)
        _straight(axes, points[-1], (end_x + 1.0, end_y))
    elif x < end_x:
        axes.plot([x + 1.0, end_x], [y, y], color="black", linewidth=1)
        _straight(axes, (end_x, y), (end_x, end_y + half))
    elif x > end_x:
        axes.plot([x, x], [y - half, end_y], color="black", linewidth=1)
        _straight(axes, (x, end_y), (end_x + 1.0, end_y))
    else:
        _straight(axes, (x, y - half), (end_x, end_y + half))
