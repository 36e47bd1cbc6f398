"""The interface of a sweep's method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from verifier.certify.plan import Plan
from verifier.certify.rows import Row
from verifier.certify.victim import Classifier

Cancel = Callable[[], bool]


class Method(ABC):
    """Made once a process; settings out of range fail here rather than in every row.

    Attributes:
        plan, classifier: what to do, and with which network.
    """

    def __init__(self, plan: Plan, classifier: Classifier):
        self.plan, self.classifier = plan, classifier

    @abstractmethod
    def row(self, index: int, x: np.ndarray, label: int, cancel: Cancel | None) -> Row:
        """The result for one sample.

        Args:
            index: its row in the data set. x: flat [N_in]. label: its class. cancel: True stops the work.
        Raises:
            VerifierError: a sample that cannot be analysed.
        """
