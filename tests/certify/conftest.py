"""What every test of this folder shares."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def one_thread():
    """Networks here are small: a second thread costs more than it brings, and far more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
