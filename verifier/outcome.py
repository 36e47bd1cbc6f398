"""What an analysis can answer, why it stopped, and how strong the answer is."""

from enum import Enum, IntEnum


class Verdict(Enum):
    """Answer to 'is there an input in the set whose outputs are unsafe?'."""

    SAT = "sat"
    UNSAT = "unsat"
    UNKNOWN = "unknown"
    TIMEOUT = "timeout"


class StopReason(Enum):
    """Why the analysis ended; the value is the sentence shown to people."""

    COUNTEREXAMPLE = "a counterexample was found and replayed in ONNX Runtime"
    EMPTY_INPUT = "the input set is empty, so the property holds vacuously"
    PROVED_BY_BOUNDS = "bounds of the whole input set prove the property"
    PROVED_BY_SEARCH = "branch and bound closed every subdomain"
    TIME_LIMIT = "the time limit was reached"
    INTERRUPTED = "interrupted by the user"
    NO_PROGRESS = "every open subdomain is too small to split further"
    NO_SEARCH = "bounds of the whole input set do not decide it, and no search was asked for"
    REPLAY_FAILED = "violations found by the analysis vanish in ONNX Runtime"
    UNSUPPORTED = "no engine can bound this network"
    GAP_REACHED = "proof and counterexample are as close as asked"
    MISCLASSIFIED = "the input itself is not given its class, so no radius is certified"
    WHOLE_RANGE = "the class holds on every valid input"


class Soundness(IntEnum):
    """What a proof rests on; a Report carries the weakest level of its parts."""

    HEURISTIC = 0
    REAL_ARITHMETIC = 1
    IEEE_FLOAT = 2

    @property
    def message(self) -> str:
        """The level in words."""
        return {
            Soundness.HEURISTIC: "an estimate, not a proof",
            Soundness.REAL_ARITHMETIC: "holds for the network evaluated in exact real arithmetic",
            Soundness.IEEE_FLOAT: "holds for the deployed floating-point program in any summation "
            "order, and for real arithmetic",
        }[self]
