"""Customer-event processor: per customer in order, exactly once in effect, everything explained."""

__version__ = "0.1.0"
