"""Errors a user can act on: each message says what failed, expected, got, where, what to do."""


class VerifierError(Exception):
    """Bad input of any kind; the command line prints the message on one line and exits with 2."""


class SpecError(VerifierError):
    """A property file or an input set that cannot be read or makes no sense."""


class NetworkError(VerifierError):
    """A network file that cannot be read, or holds values (NaN, Inf) that no proof can rest on."""


class UnsupportedOperator(NetworkError):
    """An operator outside the supported set; names the operator and its node."""

    def __init__(self, operator: str, node: str, detail: str = ""):
        self.operator, self.node = operator, node
        reason = f": {detail}" if detail else ""
        super().__init__(
            f"operator {operator} at node '{node}' is not supported{reason}; "
            "`verifier info NET` lists the network's operators, CONTRIBUTING.md says how to add one"
        )


class ShapeError(VerifierError):
    """Arrays whose shapes do not fit; says expected and got, with the shape letters of the README."""


class SolverError(VerifierError):
    """A numerical solver that diverged or gave nothing a bound can be rebuilt from."""


class DeviceError(VerifierError):
    """A device or build feature that was requested and is not there; there is no silent fallback."""
