"""`foveate report`: results as a page, figures and tables."""

from pathlib import Path
from typing import Annotated

import typer

from foveate.cli.console import say, show_table
from foveate.cli.outputs import JsonFile, file_option, spare, write_json, write_text, written


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULT...", help="Folders or JSON files that `foveate eval` wrote.")
    ],
    html: Annotated[
        Path | None, file_option("Write one HTML file: charts, tables, and the gallery beside it.")
    ] = None,
    png: Annotated[Path | None, file_option("Write the charts (PNG).")] = None,
    csv: Annotated[Path | None, file_option("Write every figure as CSV.")] = None,
    latex: Annotated[Path | None, file_option("Write a table for a paper (LaTeX, booktabs).")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Take two results, and give the paired differences, second minus first.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Make a page, figures and tables of evaluations; without a file to write, print the tables."""
    from foveate.measure.eval.tables import result_notes, result_tables
    from foveate.measure.report import charts, export
    from foveate.measure.report.compare import compare_results, comparison_table
    from foveate.measure.report.page import page
    from foveate.measure.report.read import ReportError, read_results

    # 1. everything is read before anything is written
    if compare and len(results) != 2:
        raise ReportError(f"--compare takes two results, got {len(results)}")
    if html or png:
        charts.need_matplotlib()
    found = read_results(results)
    spare([result.path for result in found], html, png, csv, latex, json_file)
    comparison = compare_results(*found) if compare else None
    table = None if comparison is None else comparison_table(comparison)
    # 2. print
    if table is not None:
        show_table(table.title, table.columns, table.rows, 2)
    elif not any((html, png, csv, latex, json_file)):
        for result in found:
            for one in result_tables(result.data):
                show_table(one.title, one.columns, one.rows, 1)
            for note in result_notes(result.data):
                say(note)
    # 3. write
    if html:
        write_text(html, page(found, comparison))
        say(f"page: {html}")
    if png:
        with written(png) as new:
            charts.draw_png(found, new)
        say(f"charts: {png}")
    if csv:
        write_text(csv, export.as_csv(found) if table is None else export.cells_csv(table))
        say(f"CSV: {csv}")
    if latex:
        write_text(latex, export.as_latex(found) if table is None else export.cells_latex(table, 2))
        say(f"LaTeX: {latex}")
    if json_file:
        write_json(json_file, [result.data for result in found] if comparison is None else comparison)
