"""The report page: what was found, with plots, in one HTML file that needs nothing else."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    "collocated": "#7f7f7f",
    "full_disaggregation": "#d62728",
    "ampd_10": "#ff7f0e",
    "conserve": "#1f77b4",
}

Found = Mapping[str, Any]


def write_report(found: Found, path: Path) -> None:
    """Write the page."""
    parts = [
        _intro(found),
        _comparison(found),
        _picture("p95 TTFET over load", lambda f: _over_load(f, found, "p95_ttfet_x_alone", "x alone")),
        _picture(
            "Tokens per joule over load (modelled)",
            lambda f: _over_load(f, found, "tokens_per_joule", "tokens/J"),
        ),
        _picture("Tokens per joule and the range of the watts", lambda f: _energy(f, found)),
        _picture("p95 TTFT by turn", lambda f: _by_turn(f, found)),
        _picture("TTFET: share of conversations", lambda f: _cdf(f, found)),
        _picture("AMPD's wrong turns", lambda f: _errors(f, found)),
        *(_factor(name, rows) for name, rows in found["factors"].items()),
    ]
    path.write_text(_PAGE.format(body="\n".join(parts)))


# -- words and tables ------------------------------------------------------------------------------


def _intro(found: Found) -> str:
    return (
        "<h1>The ConServe experiment, reproduced</h1><p>255 conversations of 5 turns from the paper's "
        "trace, Qwen3-0.6B on 4 × A40, simulated with the served scheduler. <b>As published</b>: the "
        "paper's own way to measure. <b>As a user feels it</b>: the clock runs from arrival, every queue "
        "counts for everyone, every transfer happens. Ratios are to the same conversation alone on an idle "
        "engine; means over "
        f"{len(found['seeds'])} arrival seeds. All joules are modelled.</p>"
    )


def _comparison(found: Found) -> str:
    paper, rows = found["paper"], []
    for name in found["as_published"]["p95_ttfet_x_alone"]:
        rows.append(
            [
                name,
                paper["p95_ttfet_x_alone"][name],
                found["as_published"]["p95_ttfet_x_alone"][name],
                found["as_felt"]["p95_ttfet_x_alone"][name],
                paper["tokens_per_joule"][name],
                found["as_published"]["tokens_per_joule"][name],
                found["as_felt"]["tokens_per_joule"][name],
            ]
        )
    heads = [
        "policy",
        "paper: p95 TTFET",
        "as published",
        "as felt",
        "paper: tokens/J",
        "as published",
        "as felt",
    ]
    table = _table(heads, rows)
    heads = ["", "p95 TTFET against AMPD, %", "tokens/J against AMPD, %", "decoders at 200 W, %", "its range"]
    head_rows = [[name, *_headline(each)] for name, each in found["headline"].items()]
    return f"<h2>At 1.634 conversations a second</h2>{table}<h2>Headline</h2>{_table(heads, head_rows)}"


def _headline(each: Mapping[str, Any]) -> list[Any]:
    found = each.get("tiers_energy_efficiency_percent_range")
    return [
        each["p95_ttfet_percent"],
        each["energy_efficiency_percent"],
        each["tiers_energy_efficiency_percent"],
        " … ".join(f"{value:.1f}" for value in found) if found else "",
    ]


def _factor(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    heads = list(rows[0])
    table = _table(
        [head.replace("_", " ") for head in heads], [[row[head] for head in heads] for row in rows]
    )
    return f"<h2>Factor: {html.escape(name.replace('_', ' '))}</h2>{table}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else html.escape(str(value))


# -- pictures --------------------------------------------------------------------------------------


def _picture(title: str, draw: Callable[[Figure], None]) -> str:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    draw(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return f"<h2>{html.escape(title)}</h2>{svg[svg.index('<svg') :]}"


def _over_load(figure: Figure, found: Found, key: str, label: str) -> None:
    ways = ("as_published", "as_felt", "as_felt_decoders_at_200_w")
    for axes, way in zip(_row(figure, len(ways)), ways, strict=True):
        for name, rows in found["over_rates"].items():
            values = [row[way][key] for row in rows]
            axes.errorbar(
                [row["rate_per_s"] for row in rows],
                [value["mean"] for value in values],
                yerr=[value["plus_minus"] for value in values],
                label=name,
                color=COLOURS[name],
                marker="o",
                markersize=3,
            )
        axes.set(title=way.replace("_", " "), xlabel="conversations/s", ylabel=label)
        if key == "p95_ttfet_x_alone":
            axes.set_yscale("log")
            axes.axhline(5, color="black", linewidth=0.7, linestyle=":")
    _legend(figure)


def _energy(figure: Figure, found: Found) -> None:
    ways = (found["as_published"], found["as_felt"], found["decoders_at_200_w"]["as_felt"])
    titles = ("as published", "as felt", "as felt, decoders at 200 W")
    for axes, way, title in zip(_row(figure, 3), ways, titles, strict=True):
        for place, (name, cell) in enumerate(way["cells"].items()):
            low, high = cell["tokens_per_joule_range"]
            mean = cell["tokens_per_joule"]["mean"]
            axes.bar(place, mean, color=COLOURS[name], label=name)
            axes.errorbar(place, mean, yerr=[[mean - low], [high - mean]], color="black", capsize=4)
        axes.set(title=title, ylabel="tokens/J", xticks=[])
    _legend(figure)


def _by_turn(figure: Figure, found: Found) -> None:
    for axes, way in zip(_row(figure, 2), ("as_published", "as_felt"), strict=True):
        for name, cell in found[way]["cells"].items():
            turns = range(1, len(cell["ttft_by_turn_s"]) + 1)
            axes.plot(turns, cell["ttft_by_turn_s"], color=COLOURS[name], label=name, marker="o")
        axes.set(title=way.replace("_", " "), xlabel="turn", ylabel="seconds", yscale="log")
    _legend(figure)


def _cdf(figure: Figure, found: Found) -> None:
    for axes, way in zip(_row(figure, 2), ("as_published", "as_felt"), strict=True):
        for name, cell in found[way]["cells"].items():
            axes.plot(cell["ttfet_cdf"], range(len(cell["ttfet_cdf"])), color=COLOURS[name], label=name)
        axes.set(title=way.replace("_", " "), xlabel="TTFET, seconds", ylabel="%", xscale="log")
    _legend(figure)


def _errors(figure: Figure, found: Found) -> None:
    (axes,) = _row(figure, 1)
    rows = found["error_sweep"]
    shares = [100 * row["wrong_share"] for row in rows]
    axes.plot(
        shares, [row["paper_p95_ttfet_x_alone"] for row in rows], label="paper", color="black", marker="x"
    )
    for way in ("as_published", "as_felt"):
        values = [row[way]["p95_ttfet_x_alone"]["mean"] for row in rows]
        axes.plot(shares, values, label=way.replace("_", " "), marker="o")
    axes.set(xlabel="wrong turns, %", ylabel="p95 TTFET, x alone")
    axes.legend()


def _row(figure: Figure, count: int) -> list[Axes]:
    return [figure.add_subplot(1, count, place + 1) for place in range(count)]


def _legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>ConServe, reproduced</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }} svg {{ max-width: 100%; height: auto; }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .6rem; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
</style><body>{body}</body></html>
"""
