"""How many roundings of the deployed program a fused node stands for.

The promise of every linear node, whatever was fused into it: let n be the number of products
behind one result (Dense: in; Conv: in/groups * kernel; Scale: 1), R = n + rounding_terms, u the
unit round-off of the graph's dtype, gamma_R = R u / (1 - R u), x the node's exact inputs. Then the
program that was deployed, in any summation order and with or without the usual fusions, gives

    |deployed - (W x + b)| <= gamma_R * (|W| |x| + bias_magnitude).

Why it composes. Write each result as a sum of terms; every rounding on the way multiplies the
terms it meets by some 1 + d, |d| <= u. If y has at most R1 roundings on any term, and z = V y + c
adds at most R2 more, each term of z has met at most R1 + R2, and
gamma_R1 + gamma_R2 + gamma_R1 gamma_R2 <= gamma_(R1+R2) (Higham 2002, Lemma 3.3). The magnitudes
multiply along: |V| (|W||x| + m1) + m2 bounds the sum of |terms| before any of them cancel, which is
why bias_magnitude is carried apart from the bias: the fused bias V b + c may be small while its
terms are not.

Fusing computes V W, V b + c and |V| m1 + m2 in float64. Each such operation is a rounding of at
most 2^-53 <= u on some terms, and is simply counted as one more rounding, so that the promise also
holds for u = 2^-53: an engine that certifies the real-arithmetic network must widen by
gamma_R(2^-53) * (|W||x| + bias_magnitude) where rounding_terms > 0, since W and b are then
themselves rounded. Nodes nothing was fused into keep the file's arrays.

A node with deployed_error = 0 is a helper the program does not run: it adds no rounding.
Underflow is outside this model; engines add their own smallest-number term.
"""

from __future__ import annotations

import numpy as np

from verifier.graph.ir import Node

#: operator -> attribute that is added
SHIFT = {"Scale": "shift", "Dense": "bias", "Conv": "bias", "ConvTranspose": "bias"}
#: operator -> attribute that multiplies
FACTOR = {"Scale": "scale", "Dense": "weight", "Conv": "weight", "ConvTranspose": "weight"}


def products(node: Node) -> int:
    """n: products (at most) behind one result of a Scale, Dense, Conv or ConvTranspose."""
    if node.op == "Scale":
        return 1
    weight = node.attrs["weight"]
    if node.op == "Dense":
        return int(weight.shape[0])
    kernel = int(np.prod(weight.shape[2:], dtype=np.int64))
    return kernel * int(weight.shape[1] if node.op == "Conv" else weight.shape[0] // node.attrs["groups"])


def roundings(node: Node) -> int:
    """R: deployed roundings any term of the result has met inside this node."""
    if node.attrs.get("deployed_error") == 0.0:
        return 0
    terms = int(node.attrs.get("rounding_terms", 0))
    if node.op == "Scale" and terms == 0 and is_exact(node):
        return 0
    return products(node) + terms


def magnitude(node: Node) -> np.ndarray:
    """bias_magnitude, by default the size of the bias."""
    given = node.attrs.get("bias_magnitude")
    return np.abs(node.attrs[SHIFT[node.op]]) if given is None else given


def is_exact(node: Node) -> bool:
    """True for a Scale by 1 or -1 plus 0, which no program rounds."""
    return bool(np.all(np.abs(node.attrs["scale"]) == 1) and not np.any(node.attrs["shift"]))


def fused_attrs(node: Node, total: int, bias_magnitude: np.ndarray) -> dict[str, object]:
    """The two rounding attributes of a node with `total` roundings a term."""
    terms = max(0, total - products(node))
    return {"rounding_terms": terms, "bias_magnitude": bias_magnitude}
