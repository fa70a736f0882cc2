"""The words in which the schema of SQLite and that of PostgreSQL differ, for migrations."""

from typing import Final

import peewee

DIALECT: Final = {
    "sqlite": {
        "identity": "INTEGER PRIMARY KEY",
        "big": "INTEGER",
        "int": "INTEGER",
        "bool": "INTEGER",
        "bytes": "BLOB",
        "table": "STRICT",
        "keyed": "STRICT, WITHOUT ROWID",
        "hot": "STRICT, WITHOUT ROWID",
        "customer": "STRICT",
        "false": "0",
    },
    "postgresql": {
        "identity": "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "big": "bigint",
        "int": "integer",
        "bool": "boolean",
        "bytes": "bytea",
        "table": "",
        "keyed": "",
        # Room on the page, so that an update of a hot row stays on it and touches no index.
        "hot": "WITH (fillfactor = 60)",
        "customer": "WITH (fillfactor = 60)",
        "false": "false",
    },
}


def dialect_of(db: peewee.Database) -> str:
    """A key of `DIALECT`."""
    return "sqlite" if isinstance(db, peewee.SqliteDatabase) else "postgresql"


def run(db: peewee.Database, schema: str) -> None:
    """Run statements that end in `;`, with `{words}` of the dialect filled in; lines of comment are left out."""
    lines = (line for line in schema.splitlines() if not line.lstrip().startswith("--"))
    for statement in "\n".join(lines).format(**DIALECT[dialect_of(db)]).split(";"):
        if statement.strip():
            db.execute_sql(statement)
