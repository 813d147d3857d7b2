"""Units of memory, and whole numbers of them."""

MIB = 2**20
GIB = 2**30


def round_up(count: int, unit: int) -> int:
    """The smallest multiple of a unit that is not under a count."""
    return -(-count // unit) * unit
