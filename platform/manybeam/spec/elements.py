"""Names of the kinds of atom: the symbol of each element, and the element of each class."""

from collections.abc import Iterable, Sequence


def symbol_of(atomic_number: int) -> str:
    """Return the symbol of an element; "" for 0, an unknown one.

    Example:
        >>> symbol_of(42), symbol_of(0)
        ('Mo', '')
    """
    from ase.data import chemical_symbols  # takes a tenth of a second, so only where it is needed

    return str(chemical_symbols[atomic_number]) if atomic_number else ""


def atomic_number_of(symbol: str) -> int | None:
    """Return the atomic number of a symbol, in any case; None if it is not one.

    Example:
        >>> atomic_number_of("mo"), atomic_number_of("3")
        (42, None)
    """
    from ase.data import atomic_numbers

    number = atomic_numbers.get(symbol.strip().capitalize())
    return int(number) if number else None


def as_atomic_number(value: object) -> object:
    """Return the atomic number of a symbol in a YAML file; other values as they are.

    Raises:
        ValueError: the text is no symbol.

    Example:
        >>> as_atomic_number("Mo"), as_atomic_number(42)
        (42, 42)
    """
    if not isinstance(value, str):
        return value
    number = atomic_number_of(value)
    if number is None:
        raise ValueError("is no element; give a symbol such as Mo, or an atomic number")
    return number


def symbols_of(classes: Iterable[float], elements: Sequence[int]) -> tuple[str, ...]:
    """Return the symbol of each atom of an answer; "" where the members distinguish no elements.

    Args:
        classes: class of each atom; class k + 1 is `elements[k]`.
        elements: atomic number of each class; empty if there is one class for all atoms.

    Example:
        >>> symbols_of([1.0, 2.0], (42, 16)), symbols_of([0.0], ())
        (('Mo', 'S'), ('',))
    """
    names = ("", *(symbol_of(number) for number in elements))
    return tuple(names[int(kind)] if int(kind) < len(names) else "" for kind in classes)
