"""Numbered business rules [A10]: every event is folded with the rules it was stamped with."""

from customer_actors.domain.rules import Rules
from customer_actors.errors import UsageError
from customer_actors.storage.database import Database


class RulesBook(dict[int, Rules]):
    """Number -> rules, read from the database on first use. Rows never change, so nothing expires."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    def __missing__(self, number: int) -> Rules:
        rows = self._database.execute("SELECT content FROM rules WHERE number = ?", (number,)).fetchall()
        if not rows:
            raise LookupError(f"rules {number} are not in the database")
        rules = self[number] = Rules.model_validate_json(rows[0][0])
        return rules


def require_same_decimals(database: Database, rules: Rules) -> None:
    """Refuse another `currency_decimals` than this database was started with: every stored amount would change.

    Raises:
        UsageError: naming the variable and both values.
    """
    first = database.query("SELECT content FROM rules ORDER BY number LIMIT 1")
    if first and (stored := Rules.model_validate_json(first[0][0]).currency_decimals) != rules.currency_decimals:
        raise UsageError(
            f"CUSTOMER_ACTORS_CURRENCY_DECIMALS is {rules.currency_decimals}, but the amounts in this database have "
            f"{stored} decimals; set it to {stored}, or use another database"
        )


def number_of(database: Database, rules: Rules, now_us: int) -> int:
    """The number of these rules; rules never seen before get the next one.

    Raises:
        UsageError: their amounts have other decimals than those stored.
    """
    require_same_decimals(database, rules)
    content = rules.model_dump_json()
    known = database.query(_NUMBER, (content,))
    if not known:
        with database.transaction():
            database.execute(_INSERT, (content, now_us))
        known = database.query(_NUMBER, (content,))
    number: int = known[0][0]
    return number


_NUMBER = "SELECT number FROM rules WHERE content = ?"
_INSERT = "INSERT INTO rules (content, created_at_us) VALUES (?, ?) ON CONFLICT (content) DO NOTHING"
