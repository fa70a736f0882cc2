"""Business settings as one numbered, immutable value [A10]."""

from decimal import Decimal
from functools import cached_property
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Tier(BaseModel):
    """A loyalty tier: held from `threshold` lifetime points on, multiplying the points of the NEXT sale [L1, L2]."""

    model_config = ConfigDict(frozen=True)

    name: str
    threshold: int = Field(ge=0)
    multiplier: Decimal = Field(ge=0, le=1000)


DEFAULT_TIERS = (
    Tier(name="bronze", threshold=0, multiplier=Decimal("1.0")),
    Tier(name="silver", threshold=500, multiplier=Decimal("1.2")),
    Tier(name="gold", threshold=1000, multiplier=Decimal("1.5")),
    Tier(name="platinum", threshold=5000, multiplier=Decimal("2.0")),
)


class Rules(BaseModel):
    """What the folds need besides state and event. Stored as canonical JSON in the `rules` table and numbered there."""

    model_config = ConfigDict(frozen=True, ignored_types=(cached_property,))

    currency_decimals: int = Field(default=2, ge=0, le=4)
    timezone: str = "UTC"
    """Business time zone: business dates are taken in it [A7]."""
    points_per_unit: Decimal = Field(default=Decimal("1"), ge=0, le=1_000_000)
    """Points for one unit (not minor unit) of currency [L1]."""
    tiers: tuple[Tier, ...] = DEFAULT_TIERS
    default_terms_days: int = Field(default=30, ge=0, le=3650)
    """Payment terms of a credit sale without an account [C4]."""
    suspend_after_days: int = Field(default=30, ge=0, le=3650)

    @model_validator(mode="after")
    def _tiers_ascend_from_zero(self) -> "Rules":
        thresholds = [tier.threshold for tier in self.tiers]
        if not thresholds or thresholds[0] != 0 or thresholds != sorted(set(thresholds)):
            raise ValueError("tiers must start at threshold 0 and ascend")
        return self

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)
