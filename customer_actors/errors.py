"""The errors a caller can tell apart. A class exists only where the caller acts differently.

CustomerActorsError
├── UsageError      the operator asked for something impossible: exit 2, nothing changed
├── RefusedError    a request was understood and refused: exit 1
├── Outage          database or broker is away or overloaded: roll back, try again, charge nobody
└── DataFault       the database refused the data (SQLSTATE class 22 or 23): one message or customer is at fault
    └── KeyTaken    a key is there already; who looked for it before looks again
"""


class CustomerActorsError(Exception):
    """Base class; the text says whose fault it is and what happens next."""


class UsageError(CustomerActorsError):
    """The operator asked for something impossible; the text names the fix. Nothing was changed."""


class RefusedError(CustomerActorsError):
    """A request was understood and refused by a rule; the text names the rule. Nothing was changed."""


class Outage(CustomerActorsError):
    """Database or broker is away. Never carries the driver's DETAIL, which holds key values."""


class DataFault(CustomerActorsError):
    """The database refused the data itself. Never carries the driver's DETAIL, which holds key values."""


class KeyTaken(DataFault):
    """PostgreSQL refused a key that is there already: if it was not, when this transaction looked, a race is lost."""

    def __init__(self, text: str, constraint: str | None) -> None:
        super().__init__(text)
        self.constraint = constraint
