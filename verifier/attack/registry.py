"""The explicit table of attacks: name -> class with its default settings."""

from __future__ import annotations

from typing import Any

from verifier.attack.autoattack import AutoAttack, AutoAttackPlus
from verifier.attack.base import Attack, configured
from verifier.attack.blackbox.boundary_attack import Boundary
from verifier.attack.blackbox.hopskipjump import HopSkipJump
from verifier.attack.blackbox.onepixel import OnePixel
from verifier.attack.blackbox.signopt import OptAttack, SignOPT
from verifier.attack.blackbox.square import Square
from verifier.attack.blackbox.transfer import DiverseMomentum, Transfer
from verifier.attack.blackbox.zeroth_order import NES, SPSA, ZOAdaMM, ZOSignSGD
from verifier.attack.blackbox.zoo import ZOO, AutoZOOM
from verifier.attack.gradient.apgd import APGD, APGDT
from verifier.attack.gradient.cw import CW, CWL0, CWLinf
from verifier.attack.gradient.deepfool import DeepFool
from verifier.attack.gradient.ead import EAD, EADEN
from verifier.attack.gradient.fab import FAB, FABT
from verifier.attack.gradient.fmn import FMN
from verifier.attack.gradient.jsma import JSMA
from verifier.attack.gradient.pgd import BIM, FGSM, MIFGSM, PGD
from verifier.attack.gradient.sparsefool import SparseFool
from verifier.attack.guided.bab import BaB
from verifier.attack.semantic.composite import Composite
from verifier.attack.semantic.grid import GridSearch
from verifier.attack.universal.perturbation import UAP, UniversalPGD
from verifier.errors import SpecError

ATTACKS: dict[str, type[Attack]] = {
    "fgsm": FGSM,
    "bim": BIM,
    "pgd": PGD,
    "mifgsm": MIFGSM,
    "apgd": APGD,
    "apgd_t": APGDT,
    "fab": FAB,
    "fab_t": FABT,
    "deepfool": DeepFool,
    "cw": CW,
    "cw_linf": CWLinf,
    "cw_l0": CWL0,
    "ead_l1": EAD,
    "ead_en": EADEN,
    "jsma": JSMA,
    "sparsefool": SparseFool,
    "fmn": FMN,
    "bab": BaB,
    "standard": AutoAttack,
    "plus": AutoAttackPlus,
    "zoo": ZOO,
    "autozoom": AutoZOOM,
    "nes": NES,
    "spsa": SPSA,
    "zo_signsgd": ZOSignSGD,
    "zo_adamm": ZOAdaMM,
    "square": Square,
    "one_pixel": OnePixel,
    "boundary": Boundary,
    "hopskipjump": HopSkipJump,
    "opt": OptAttack,
    "sign_opt": SignOPT,
    "transfer": Transfer,
    "mi_di_ti": DiverseMomentum,
    "uap": UAP,
    "universal_pgd": UniversalPGD,
    "grid": GridSearch,
    "composite": Composite,
}


def build(name: str, **settings: Any) -> Attack:
    """The attack called `name`, with settings changed.

    Raises:
        SpecError: unknown attack or setting.
    """
    if name not in ATTACKS:
        raise SpecError(f"attack: no attack named {name!r}; there are {', '.join(ATTACKS)}")
    return configured(ATTACKS[name](), **settings)


def suitable(norm: float, *, minimise: bool | None = None) -> tuple[str, ...]:
    """Names of the attacks that work in a norm, by kind if `minimise` is given."""
    return tuple(
        name
        for name, kind in ATTACKS.items()
        if (not kind.norms or float(norm) in kind.norms) and (minimise is None or kind.minimise == minimise)
    )
