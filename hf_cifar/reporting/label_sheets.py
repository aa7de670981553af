"""Contact sheets of pictures to label, numbered by their lines in labels.csv."""

from __future__ import annotations

from pathlib import Path

from hf_cifar.evaluation.label_order import LabelOrder
from hf_cifar.reporting.contact_sheet import ON_A_SHEET, draw_contact_sheet
from hf_cifar.reporting.plot_style import drawing, plot_labels, save_figure


def write_label_sheets(order: LabelOrder, folder: Path) -> list[Path]:
    """Write label_1.png, label_2.png, ... in place of those of an earlier call; return them."""
    folder.mkdir(parents=True, exist_ok=True)
    for sheet in folder.glob("label_[0-9]*.png"):
        sheet.unlink()
    names = order.label_names
    shown = dict(zip(names, plot_labels(names, most=11), strict=True))
    sheets: list[Path] = []
    for first in range(0, len(order.rows), ON_A_SHEET):
        cells = []
        for place in range(first, min(first + ON_A_SHEET, len(order.rows))):
            title = f"line {order.table.next_line + place}\n{shown[order.suggested[place]]}?"
            title += f" {order.confidence[place]:.2f}"
            cells.append((order.pictures.picture(order.rows[place]), title))
        sheets.append(folder / f"label_{len(sheets) + 1}.png")
        with drawing(names):
            save_figure(draw_contact_sheet(cells), sheets[-1])
    return sheets
