"""Ranges that settings of several rooms share. pipeline.config enforces them; elsewhere they are plain numbers."""

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(gt=0, le=1_000_000)]
Natural = Annotated[int, Field(ge=0, le=1_000_000)]
Width = Annotated[int, Field(gt=0, le=65_536)]  # of layers, and rows of a batch
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy's legacy generator, which LIBERO uses, takes no other
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
