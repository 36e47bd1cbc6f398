"""Data and models the training tests share, small and made once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from verifier.data.dataset import split
from verifier.data.packaged import packaged
from verifier.training.backdoor.stamp import Backdoor, stamp
from verifier.training.backdoor.trigger import corner_patch
from verifier.training.train import DIGITS_MLP, Recipe, train

torch.set_num_threads(1)

#: A second of training that reaches 90 % on the digits.
QUICK = replace(DIGITS_MLP, epochs=12)


@pytest.fixture(scope="session")
def digits():
    return split(packaged("digits"))


@pytest.fixture(scope="session")
def cancer():
    return split(packaged("breast_cancer"))


@pytest.fixture(scope="session")
def sentences():
    return split(packaged("sentences"))


@pytest.fixture(scope="session")
def clean_model(digits):
    return train(None, digits.train, QUICK).model


@pytest.fixture(scope="session")
def badnets(digits):
    """(attacked data, model trained on it): a patch backdoor towards class 3."""
    attacked = stamp(digits.train, Backdoor(corner_patch(digits.train), 3, 0.08))
    return attacked, train(None, attacked.data, Recipe("mlp", 64, epochs=20)).model


def weights(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])
