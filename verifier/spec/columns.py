"""The scalars a specification speaks about, numbered: inputs, outputs, hidden entries, products.

Both readers of property files turn every scalar into a column number, so that everything after
them (rows, normal form, query graph, replay) is the same for both formats.
"""

from __future__ import annotations

from dataclasses import dataclass

from verifier.errors import SpecError


@dataclass(frozen=True)
class Column:
    """How one scalar of the specification is obtained.

    Attributes:
        kind: "input", "output", "hidden" or "product".
        index: input: position in the flat query input; output: position in the concatenated flat
            outputs of all networks; hidden: position in the flat tensor; product: unused.
        network: name of the network (hidden only).
        tensor: name of the hidden tensor (hidden only).
        factors: columns whose product this is, with repetition (product only).
    """

    kind: str
    index: int = 0
    network: str = ""
    tensor: str = ""
    factors: tuple[Column, ...] = ()


class ColumnTable:
    """Numbers columns: inputs 0..n_inputs-1, then outputs, then whatever is registered.

    `notes` collects remarks about the reading (rounded coefficients, strict bounds).
    """

    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        self.n_inputs = n_inputs
        self.n_outputs = n_outputs
        self.first_extra = n_inputs + n_outputs
        self.notes: dict[str, None] = {}
        self._extras: list[Column] = []
        self._ids: dict[Column, int] = {}

    def __getitem__(self, number: int) -> Column:
        if number < self.n_inputs:
            return Column("input", number)
        if number < self.first_extra:
            return Column("output", number - self.n_inputs)
        return self._extras[number - self.first_extra]

    def register(self, column: Column) -> int:
        """The number of a hidden or product column, new or known."""
        if column not in self._ids:
            self._ids[column] = self.first_extra + len(self._extras)
            self._extras.append(column)
        return self._ids[column]

    def product(self, factors: tuple[int, ...]) -> int:
        """The number of a product of columns (at least two factors)."""
        return self.register(Column("product", factors=tuple(self[f] for f in sorted(factors))))

    def is_input(self, number: int) -> bool:
        """True for an entry of the flat query input."""
        return number < self.n_inputs

    def is_program_value(self, number: int) -> bool:
        """True where the deployed program holds a floating-point number; products are exact reals."""
        return number < self.first_extra or self[number].kind != "product"

    def note(self, text: str) -> None:
        """Remember a remark once."""
        self.notes[text] = None

    def check_degree(self, degree: int) -> None:
        """Raise for monomials so long that only a malformed file can hold them."""
        if degree > MAX_DEGREE:
            raise SpecError(f"a product of more than {MAX_DEGREE} variables is not supported")


MAX_DEGREE = 16
