"""A fixture for files whose networks are small; importing it switches it on."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks here are small: a second thread costs more than it brings, and far more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
