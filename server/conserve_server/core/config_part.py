"""What every part of the configuration is: a frozen model that refuses unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0)]


class Part(BaseModel):
    """A table of the document. Defaults are in the class; types are strict."""

    # Inputs stay out of errors: they may be keys.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)
