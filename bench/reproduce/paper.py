"""The published figures (arXiv 2606.01839) at 1.634 conversations a second.

Read by eye in its plots, ±5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PAPER: Final[Mapping[str, Mapping[str, float]]] = {
    "p95_ttfet_x_alone": {"collocated": 5.6, "full_disaggregation": 105, "ampd_10": 8.35, "conserve": 4.1},
    "geometric_mean_ttfet_x_alone": {
        "collocated": 2.9,
        "full_disaggregation": 19,
        "ampd_10": 3.1,
        "conserve": 2.5,
    },
    "p95_last_tbt_x_alone": {"collocated": 7.6, "full_disaggregation": 2.0, "ampd_10": 4.3, "conserve": 4.4},
    "p95_e2e_x_alone": {"collocated": 5.6, "full_disaggregation": 66, "ampd_10": 6.8, "conserve": 4.2},
    "tokens_per_joule": {"collocated": 61.3, "full_disaggregation": 30.3, "ampd_10": 57.7, "conserve": 62.0},
    "tokens_per_joule_decoders_at_200_w": {
        "collocated": 70.8,
        "full_disaggregation": 30.9,
        "ampd_10": 71.9,
        "conserve": 76.1,
    },
}

WRONG_SHARES: Final = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
PAPER_ERROR_SWEEP: Final = (4.1, 6.1, 8.3, 9.1, 11.1, 12.9, 13.7)
"""AMPD's p95 TTFET, x alone, by the share of wrong turns."""
