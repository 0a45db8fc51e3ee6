"""Byte pair encoding, one step: wherever a pair of tokens stands side by side, a new token takes its place."""


def merged(ids: list, pair: tuple, new: int) -> list:
    """The ids with each `pair`, from left to right, replaced by `new`."""
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out
