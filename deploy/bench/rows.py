"""The figures of a bench: a row for each thing measured, as a table and as JSON."""
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True):
    """One figure over all windows, and its ratio to the reference of the same windows (1 when it has none).

    value: the median window. best: the best of them; p90: better than nine of ten. ratio: the median of value / reference
    over the pairs of windows; ratio_low, ratio_high: its extremes.
    """

    bench: str
    name: str
    value: float
    unit: str
    reference: str
    ratio: float
    ratio_low: float
    ratio_high: float
    windows: int
    best: float
    p90: float


@dataclass(slots=True)
class Measured:
    """What a bench found, and what it could not measure here, with the reason."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, other: "Measured") -> None:
        """What another bench found, too."""
        self.rows += other.rows
        self.left_out |= other.left_out


def row(
    name: str, unit: str, values: Sequence[float], reference: str = "", others: Sequence[float] = (), *, least: bool = False
) -> Row:
    """A row of a value for each window. others: the reference's, one for each. least: the smaller the better.

    The name's first word is the bench's.
    """
    ordered = sorted(values, reverse=least)
    ratios = [value / other for value, other in zip(values, others, strict=True)] if reference else [1.0]
    return Row(
        name.partition(" ")[0], name, statistics.median(values), unit, reference,
        statistics.median(ratios), min(ratios), max(ratios), len(values), ordered[-1], ordered[(len(ordered) - 1) * 9 // 10],
    )


def table(rows: Sequence[Row], console: Console) -> None:
    """Print them."""
    made = Table("What", "Unit", "Median", "Best", "p90", "Reference", "Ratio", "Spread")
    for each in rows:
        ratio = f"{each.ratio:.2f}" if each.reference else ""
        spread = f"{each.ratio_low:.2f}..{each.ratio_high:.2f}" if each.reference else ""
        figures = (f"{figure:.4g}" for figure in (each.value, each.best, each.p90))
        made.add_row(each.name, each.unit, *figures, each.reference, ratio, spread)
    console.print(made)


def to_json(machine: dict[str, str | int | float], found: Measured) -> bytes:
    """The whole as JSON."""
    content = {"machine": machine, "rows": found.rows, "left_out": found.left_out}
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
