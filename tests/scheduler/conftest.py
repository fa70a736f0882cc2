"""The databases of the storage tests, and a job to count."""

from tests.storage.conftest import database as database
from tests.storage.conftest import migrated_url as migrated_url
from tests.storage.conftest import storage as storage
