"""What contenders let scenarios set."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Settings of a contender; every field has a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoSettings(Settings):
    """Nothing can be set."""
