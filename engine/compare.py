"""Put several evaluations side by side: `hmsa compare`. Free of torch."""

from __future__ import annotations

import argparse

from hmsa.utils.files.writing import write_file
from hmsa.utils.report.comparison import as_text, differences, load_runs, rows
from hmsa.utils.report.comparison_page import as_page


def main(arguments: argparse.Namespace) -> int:
    """Print the table and, where it is asked for, write the page; returns the exit status."""
    runs = load_runs(arguments.runs, every_way=arguments.every_way)

    # The page is written before anything is printed.
    if arguments.html is not None:
        write_file(arguments.html, as_page(runs))
    print("\n".join([as_text(rows(runs)), *differences(runs)]), flush=True)
    return 0
