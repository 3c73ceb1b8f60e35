"""The report as one HTML file that opens from disk: pictures are inside it, and nothing is fetched."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from vggt_int8.scorecard.cache import Predictions
from vggt_int8.scorecard.data import DataSet, first_scenes
from vggt_int8.scorecard.pictures import cloud_picture, depth_picture, range_chart, sqnr_chart
from vggt_int8.scorecard.tables import LAYERS, RANGES, Table, all_tables, facts, heading

PICTURED_SCENES = 3

_STYLE = """
body { font: 15px/1.5 Helvetica, Arial, sans-serif; color: #222; max-width: 1200px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; border-bottom: 1px solid #ddd }
td + td, th + th { text-align: right } th { font-weight: 600 } div.wide { overflow-x: auto }
img { max-width: 100%; image-rendering: pixelated } p.note, ul.facts { color: #555 } code { font-size: 13px }
"""


def page(document: Mapping[str, Any], rows: Sequence[Predictions], data: DataSet) -> str:
    """The whole file: tables, SQNR and calibrated ranges of layers, and pictures of the first scenes."""
    title = escape(heading(dict(document)))
    parts = [f"<h1>{title}</h1>", '<ul class="facts">', *(f"<li>{_text(line)}</li>" for line in facts(dict(document)))]
    parts.append("</ul>")
    charts = {LAYERS: (sqnr_chart, "sqnr_db"), RANGES: (range_chart, "calibration")}
    for table in all_tables(dict(document)):
        parts.append(_table(table))
        if table.title in charts:
            draw, what = charts[table.title]
            measured = {row["label"]: row[what] for row in document["rows"] if row[what]}
            parts.append(f'<div class="wide">{draw(measured)}</div>')
    for index, truth in enumerate(first_scenes(data, PICTURED_SCENES)):
        outputs = {row.label: row.read(index) for row in rows}
        parts.append(f"<h2>{escape(truth.name)}</h2>")
        for words, picture in (("depth", depth_picture(truth, outputs)), ("points", cloud_picture(truth, outputs))):
            if picture is not None:
                parts.append(_image(picture, f"{truth.name}: {words}"))
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in table.lines)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table><tr>{head}</tr>\n{lines}</table></div>\n{note}'


def _text(line: str) -> str:
    """A line of facts, whose command stands between backticks."""
    before, tick, code = line.partition("`")
    return escape(before) + (f"<code>{escape(code.removesuffix('`'))}</code>" if tick else "")


def _image(picture: Image.Image, words: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<p><img alt="{escape(words, quote=True)}" src="data:image/png;base64,{data}"></p>'
