"""Builders under a name of their own, whose arguments `help` and completion show."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict, Unpack

import keras


class ResNetOptions(TypedDict, total=False):
    """The arguments of `resnet.build_resnet20` and its like for type checkers; `resnet.build_resnet` describes them."""

    weights: str | None
    include_top: bool
    input_shape: tuple[int, int, int]
    input_tensor: Any
    pooling: str | None
    classes: int | None
    classifier_activation: str | None
    shortcut: str | None
    squeeze_excitation: int
    block_dropout: float
    stochastic_depth: float
    zero_last_gamma: bool
    maxout: int
    widths: Sequence[int]
    preprocessing: keras.layers.Layer | None
    dtype: Any
    name: str | None


class ResNetBuilder(Protocol):
    """A builder of a residual network of one depth."""

    def __call__(self, **options: Unpack[ResNetOptions]) -> keras.Model: ...


def name_builder(
    general: Callable, name: str, summary: str, *, fixed=None, defaults=None
) -> Callable[..., keras.Model]:
    """A function that calls `general` with some arguments given.

    Unlike `functools.partial`, it has a name, a signature and a docstring of its own, and can be pickled.

    Args:
        general: builder with keyword arguments and a docstring with the parts "Args:", "Returns:", "Raises:" and "Example:".
        name: under which the module of `general` keeps the function.
        summary: first lines of the docstring.
        fixed: dict of arguments of `general` that the function does not have.
        defaults: dict of arguments of `general` that have another default in the function.

    Returns:
        The function. It raises TypeError for an argument that it does not have.
    """
    fixed, defaults = fixed or {}, defaults or {}
    signature = inspect.Signature(
        [
            parameter.replace(default=defaults.get(key, parameter.default))
            for key, parameter in inspect.signature(general).parameters.items()
            if key not in fixed
        ]
    )

    def build(*positional, **arguments):
        try:
            given = signature.bind(*positional, **arguments).arguments
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None
        return general(**fixed | defaults | given)

    build.__name__ = build.__qualname__ = name
    build.__module__ = general.__module__
    build.__signature__ = signature  # type: ignore[attr-defined]

    # The parts from "Args:" to "Raises:"; python -OO leaves none.
    text, described, is_described = general.__doc__ or "", [], True
    for line in text[text.find("    Args:\n") : text.find("    Example:\n")].splitlines():
        if not line.startswith(" " * 12):  # no further line of the same argument
            is_described = line.strip().split(":")[0] not in fixed
        if is_described:
            described.append(line)
    ending = "\n".join(described).rstrip()
    given = ", ".join(f"{key}={value!r}" for key, value in (fixed | defaults).items())
    build.__doc__ = f"""{summary}

    This is `{general.__name__}` with {given}{"; these are defaults" if defaults else ""}.

    Example:
        from {general.__module__} import {name}

        model = {name}(classes=10)

{ending}
    """
    return build
