"""What all settings have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Seed = Annotated[int, Field(ge=0, le=10**9)]  # NumPy takes no negative ones, torch none beyond 64 bits


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused, text never taken for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
