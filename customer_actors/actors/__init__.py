"""The Dramatiq edge: numbers in, `advance`, log the outcome. Messages carry internal numbers only, never state."""
