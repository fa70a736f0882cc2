"""From a DATABASE_URL to a database."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg2
from psycopg2.extensions import parse_dsn

from customer_actors.errors import UsageError
from customer_actors.storage.database import Database
from customer_actors.storage.postgresql import PostgresDatabase
from customer_actors.storage.sqlite import SqliteDatabase


def open_database(url: str) -> Database:
    """Open the database of a DATABASE_URL: sqlite:///FILE or postgresql://USER@HOST/NAME. Connects on first use.

    Raises:
        UsageError: the URL names no supported database.
    """
    if urlsplit(url).scheme in ("postgres", "postgresql"):
        try:
            parse_dsn(url)
        except psycopg2.ProgrammingError:  # its text quotes the URL, which may hold a password
            raise UsageError(
                "DATABASE_URL is no PostgreSQL address; write postgresql://user:password@host:5432/database, with "
                "special characters of the password percent-encoded and only libpq's options behind the ?"
            ) from None
        # peewee knows this one of the two names only, and would take the other whole as a database's name.
        return PostgresDatabase("postgresql://" + url.partition("://")[2])
    path = sqlite_file(url)
    if path is None:
        raise UsageError("DATABASE_URL must start with postgresql:// or sqlite:///")
    if not path.parent.is_dir():
        raise UsageError(f"DATABASE_URL: folder {path.parent} does not exist; create it or name another file")
    return SqliteDatabase(str(path))


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite DATABASE_URL, whether it exists or not; None for another database.

    Raises:
        UsageError: the URL names no file.
    """
    parts = urlsplit(url)
    if parts.scheme != "sqlite" or parts.netloc:
        return None
    path = unquote(parts.path[1:])
    if not path or "\0" in path or parts.query or parts.fragment:
        raise UsageError(
            "DATABASE_URL names no file; write sqlite:///customer_actors.db (a ? in it as %3F, a # as %23)"
        )
    return Path(path).expanduser()
