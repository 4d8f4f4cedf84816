"""Secure aggregation, as a run spec asks for it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedplat.spec.base import Section

MAX_SILOS = 64


class SecureAggregationSection(Section):
    """`enabled`: the server learns the sum over a round's silos, and no single update.

    `strong`: two thirds of a round's silos, not half of them, must agree to open a sum, which withstands more silos
    that side with the server and fewer that vanish. `clip_range`: coordinates of an update are cut off at plus and
    minus this, and are precise to about `clip_range * silos / 2^31`. `min_cohort`: no sum over fewer updates is
    opened; 2 hides from the server only. `max_examples`: no silo may have more training records; without it the
    server takes the largest number that silos state, so their policies have to share it.
    """

    enabled: bool = False
    strong: bool = False
    clip_range: Annotated[float, Field(gt=0, le=1e6)] = 8.0
    min_cohort: Annotated[int, Field(ge=2, le=MAX_SILOS)] = 3
    max_examples: Annotated[int, Field(ge=1, lt=2**53)] | None = None
