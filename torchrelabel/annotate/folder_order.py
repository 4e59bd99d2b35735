"""The order of class folders: torchvision sorts their names as text, timm sorts numbers in them by value."""

from __future__ import annotations

from collections.abc import Mapping

from timm.utils.misc import natural_key


def renumbered(class_to_idx: Mapping[str, int]) -> dict[int, int]:
    """Number class folders as the other of the two libraries would.

    Args:
        class_to_idx: Names to indices, in the order of one of them.

    Returns:
        Each index with the one that the other library gives the same folder; empty if both number them alike, or
        if the order is neither's.
    """
    as_text = sorted(class_to_idx)
    try:
        by_value = sorted(as_text, key=natural_key)
    except ValueError:  # timm takes some signs, such as ², for numbers, and could not read these folders either
        return {}
    ours = sorted(class_to_idx, key=class_to_idx.__getitem__)
    if as_text == by_value or ours not in (as_text, by_value):
        return {}
    other = as_text if ours == by_value else by_value
    return {class_to_idx[name]: index for index, name in enumerate(other)}
