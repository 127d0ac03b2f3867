"""The table of all networks: `python cifar10_main.py --mode=models`."""

import numpy as np
import pandas as pd

from resnet_study.networks.registry import MODELS, SHIPPED

NOTES = (
    "parameters: trainable, in millions; multiply-adds: of one image, in millions, at 32x32 pixels or at the size of the paper",
    "published: top-1 test error on CIFAR-10 in %, by the authors; cifar10, cifar10_robust, cifar100: that of the weights of this name, "
    "which come with the library, on the data set that they were trained on",
    "Other depths 6n+2, such as resnet26, plain38 or resnet62_v2, are networks too.",
)


def tabulate_models() -> pd.DataFrame:
    """A row for each registered network; `NOTES` say what the columns mean."""
    return pd.DataFrame(
        {
            "model": spec.name,
            "parameters": spec.trainable / 1e6,
            "multiply-adds": spec.multiply_adds / 1e6,
            "published": spec.cifar10_error or np.nan,
            **{weights: spec.shipped_errors.get(weights, np.nan) for weights in SHIPPED},
            " ": spec.summary,
        }
        for spec in MODELS.values()
    )


def list_models() -> str:
    """The table as text, below the notes."""
    table = tabulate_models()
    table[" "] = table[" "].str.ljust(table[" "].str.len().max())
    return "\n".join([*NOTES, "", table.to_string(index=False, na_rep="", float_format=lambda number: f"{number:.2f}")])
