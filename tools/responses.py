"""Prints the table of docs/measures.md: how each measure responds to damage, on rendered / on real footage.

PYTHONPATH=src:tests .venv/bin/python tools/responses.py
"""

from __future__ import annotations

import numpy as np

from helpers.damages import DAMAGES, MEASURES, SIZE, Responses, rendered_footage, response, responses
from helpers.real_footage import real_windows


def main() -> None:
    print(f"| measure | undamaged | {' | '.join(DAMAGES)} |")
    print("|---" * (2 + len(DAMAGES)) + "|")
    footage = [responses(rendered_footage()), responses(real_windows(SIZE))]
    for measure in MEASURES:
        cells = zip(*(_cells(moved, measure) for moved in footage), strict=True)
        print(f"| `{measure}` | {' | '.join(' / '.join(pair) for pair in cells)} |")


def _cells(moved: Responses, measure: str) -> list[str]:
    """The undamaged mean, and what each damage at full strength moves, in shares of what moves the measure most."""
    undamaged = next(iter(moved.values()))[0, MEASURES.index(measure)]
    changes = np.array([response(moved, damage, measure) for damage in DAMAGES])
    shares = np.round(changes / np.abs(changes).max(), 2)
    return [f"{undamaged:.3g}", *(f"{share:+.2f}" if share else "0" for share in shares)]


if __name__ == "__main__":
    main()
