"""Streams, registry and actor states in SQLite or PostgreSQL, under one engine with two small adapters."""
