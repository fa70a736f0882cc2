"""The rules, as pure functions of (state, event). Imports the standard library and pydantic only."""
