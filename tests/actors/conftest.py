"""The databases of the storage tests."""

from tests.storage.conftest import database as database
from tests.storage.conftest import migrated_url as migrated_url
from tests.storage.conftest import postgres_storage as postgres_storage
from tests.storage.conftest import storage as storage
