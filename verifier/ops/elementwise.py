"""The rule of every elementwise operator of the grammar."""

from __future__ import annotations

from verifier.ops.base import Elementwise
from verifier.ops.bent import Abs, LeakyRelu, PRelu, Relu
from verifier.ops.bumpy import Gelu, HardSwish, Silu
from verifier.ops.convex import Exp, Log, Pow, Reciprocal, Softplus, Sqrt
from verifier.ops.elu import Celu, Elu, Selu
from verifier.ops.ramp import Clip, HardSigmoid
from verifier.ops.sshaped import Atan, Erf, Sigmoid, Softsign, Tanh
from verifier.ops.steps import Ceil, Floor, Greater, GreaterEqual, Round, Sign
from verifier.ops.waves import Cos, Sin

ELEMENTWISE: dict[str, Elementwise] = {
    "Relu": Relu(),
    "LeakyRelu": LeakyRelu(),
    "PRelu": PRelu(),
    "Abs": Abs(),
    "Clip": Clip(),
    "HardSigmoid": HardSigmoid(),
    "HardSwish": HardSwish(),
    "Sigmoid": Sigmoid(),
    "Tanh": Tanh(),
    "Atan": Atan(),
    "Erf": Erf(),
    "Softsign": Softsign(),
    "Exp": Exp(),
    "Log": Log(),
    "Sqrt": Sqrt(),
    "Reciprocal": Reciprocal(),
    "Softplus": Softplus(),
    "Pow": Pow(),
    "Elu": Elu(),
    "Selu": Selu(),
    "Celu": Celu(),
    "Gelu": Gelu(),
    "Silu": Silu(),
    "Sin": Sin(),
    "Cos": Cos(),
    "Sign": Sign(),
    "Floor": Floor(),
    "Ceil": Ceil(),
    "Round": Round(),
    "Greater": Greater(),
    "GreaterEqual": GreaterEqual(),
}
