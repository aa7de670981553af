"""The report of an audit: contact sheets, and one page that a person scrolls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from hf_cifar.data.exclusions import write_exclusions
from hf_cifar.evaluation.audit import Audit
from hf_cifar.files import write_json, write_text
from hf_cifar.reporting.contact_sheet import ON_A_SHEET, draw_contact_sheet
from hf_cifar.reporting.plot_style import drawing, plot_labels, save_figure

SECTIONS = {
    "label": "Labels that are likely wrong: given → suggested, and how probable the given one is",
    "duplicate exact": "Exact duplicates, in pairs",
    "duplicate near": "Near duplicates, in pairs, and the cosine of their features",
    "outlier": "Outliers: mean distance to the ten nearest pictures",
    "blank": "Blank pictures: deviation of their pixels from their mean",
}
PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Audit of {{ facts.dataset }}</title>
<style>body{font:15px sans-serif;max-width:72em;margin:2em auto;padding:0 1em}
img{max-width:100%}table{border-collapse:collapse}td,th{padding:.15em .8em;text-align:left}</style>
<h1>Audit of {{ facts.dataset }}</h1>
<p>{{ "{:,}".format(facts.images) }} pictures. Everything that is listed here stands in
<code>audit.parquet</code>; <code>exclude: audit.parquet</code> in a recipe leaves out of training
what has <code>exclude</code> set there.</p>
<h2>Classes</h2>
<table><tr><th>class</th>{% for split in facts.classes %}<th>{{ split }}</th>{% endfor %}</tr>
{% for name in names %}<tr><td>{{ name }}</td>
{% for counts in facts.classes.values() %}<td>{{ counts[name] }}</td>{% endfor %}</tr>
{% endfor %}</table>
<h2>Sizes</h2>
{% for split, sizes in facts.sizes.items() %}<p>{{ split }}:
{% for size, count in sizes.items() %}{{ count }} of {{ size }} px{{ ", " if not loop.last }}
{% endfor %}</p>{% endfor %}
<h2>Broken pictures</h2>
{% for split, names in facts.broken.items() %}<p>{{ split }}: {{ names | join(", ") }}</p>
{% else %}<p>None.</p>{% endfor %}
{% for kind, title, count, sheet, rows in sections %}
<h2>{{ title }} ({{ count }})</h2>
{% if sheet %}<p><img src="{{ sheet }}" alt="{{ title }}"></p>
<table><tr><th>split</th><th>row</th><th>file</th><th>given</th><th>suggested</th><th>score</th>
<th>other</th></tr>
{% for row in rows %}<tr><td>{{ row.split }}</td><td>{{ row.row }}</td><td>{{ row.file or "" }}</td>
<td>{{ row.given }}</td><td>{{ row.suggested or "" }}</td><td>{{ "%.3f" % row.score }}</td>
<td>{% if row.other_split %}{{ row.other_split }} {{ row.other_row }}{% endif %}</td></tr>
{% endfor %}</table>
{% else %}<p>None.</p>{% endif %}
{% endfor %}
</html>
""")


def write_audit(audit: Audit, folder: Path) -> None:
    """Write audit.parquet, audit.json, index.html and the contact sheets of an audit."""
    folder.mkdir(parents=True, exist_ok=True)
    write_exclusions(folder / "audit.parquet", audit.rows, audit.fingerprints)
    write_json(folder / "audit.json", audit.facts)
    sections = []
    for kind, title in SECTIONS.items():
        rows = [row for row in audit.rows if row["kind"] == kind]
        sheet = f"{kind.replace(' ', '_')}.png"
        (folder / sheet).unlink(missing_ok=True)
        if rows:
            with drawing(audit.data.label_names):
                save_figure(contact_sheet(audit, rows), folder / sheet)
        sections.append((kind, title, len(rows), sheet if rows else None, rows[:ON_A_SHEET]))
    page = PAGE.render(facts=audit.facts, names=audit.data.label_names, sections=sections)
    write_text(folder / "index.html", page)


def contact_sheet(audit: Audit, rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the pictures of the first rows, each with its label and score; pairs side by side."""
    names = audit.data.label_names
    shown = dict(zip(names, plot_labels(names, most=11), strict=True))
    cells: list[tuple[np.ndarray, str]] = []
    for row in rows:
        if len(cells) >= ON_A_SHEET:
            break
        title = shown[row["given"]] + (f"\n→ {shown[row['suggested']]}" if row["suggested"] else "")
        picture = audit.picture(row["split"], row["row"])
        cells.append((picture, f"{title}\n{row['split']} {row['row']}: {row['score']:.2f}"))
        if row["other_split"]:
            other = audit.picture(row["other_split"], row["other_row"])
            cells.append((other, f"{row['other_split']} {row['other_row']}"))
    return draw_contact_sheet(cells)
