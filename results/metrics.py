"""metrics.csv, the losses of a run: a row each ten steps and each evaluation."""

import math
import os
from pathlib import Path

COLUMNS = ("step", "tokens", "seconds", "train_loss", "val_loss")


def read(folder):
    """The columns of a run's metrics.csv: lists of numbers, or None where no loss was measured. Raises ValueError."""
    path = Path(folder) / "metrics.csv"
    try:
        if not os.path.isfile(path):
            raise ValueError("it is not a file")
        return columns_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not the losses of a run ({error})") from None


def columns_of(text):
    """The columns of the text of a metrics.csv, without a last row that is still being written. Raises ValueError."""
    header, *rows = text[: text.rfind("\n") + 1].split("\n")[:-1] or [""]
    if header != ",".join(COLUMNS):
        raise ValueError(f"its first line is not {','.join(COLUMNS)}")
    columns = {name: [] for name in COLUMNS}
    for row in rows:
        for name, value in zip(COLUMNS, row.split(","), strict=True):
            number = float(value) if value or name != "val_loss" else None
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} is {number}")
            columns[name].append(number)
    return columns
