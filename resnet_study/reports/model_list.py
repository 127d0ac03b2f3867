"""The table of all networks: `python cifar10_main.py --mode=models`."""

import pandas as pd

from resnet_study.networks.registry import MODELS


def list_models() -> str:
    """A line for each registered network, below what the columns mean."""
    kinds = [spec.summary for spec in MODELS.values()]
    width = max(map(len, kinds))
    table = pd.DataFrame(
        {
            "model": spec.name,
            "parameters": spec.trainable / 1e6,
            "multiply-adds": spec.multiply_adds / 1e6,
            "published": spec.cifar10_error,
            "shipped": spec.shipped_error,
            " ": kind.ljust(width),
        }
        for spec, kind in zip(MODELS.values(), kinds, strict=True)
    )
    return (
        "parameters: trainable, in millions; multiply-adds: of one image, in millions, at 32x32 pixels or at the size of the paper\n"
        "published: top-1 test error on CIFAR-10 in %, by the authors; shipped: that of the weights that come with the library\n"
        "Other depths 6n+2, such as resnet26, plain38 or resnet62_v2, are networks too.\n\n"
        + table.to_string(index=False, na_rep="", float_format=lambda number: f"{number:.2f}")
    )
