"""Forward-only schema steps, applied in numeric order by `storage.schema.migrate`."""
