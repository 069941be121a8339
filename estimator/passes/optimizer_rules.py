"""The optimizers that a plan can name: what each keeps, and what it makes while it updates P elements of parameters.

optimizer       states                      for_loop           foreach             fused
sgd             none                        in place           in place            in place
momentum        a buffer: P                 in place           in place            in place
adamw           exp_avg, exp_avg_sq: 2 P    two of a tensor    a root: P           in place, counters on the GPU
adafactor       rows + columns              two of a tensor    an estimate: P      -
adamw8bit       2 P bytes and scales        -                  -                   in place (one compiled kernel each)
adamw8bit_bnb   2 P bytes and scales        -                  -                   in place (bitsandbytes)
lion            P                           -                  signs: P            -
lamb            2 P                         -                  an update: P        -
lars            P                           -                  an update: P        -
muon        P of hidden matrices        four of a matrix, in 16 bits; 2 P of the others and a root of them: AdamW's
shampoo     2 (r r + c c) of a matrix   its eigenvectors, thrice; P of vectors
soap        2 P + 2 (r r + c c)         three of a matrix, its product, thrice
galore      (r + 2 c) k of a hidden matrix (r, c), of rank k; 2 P of the others and a root of them: AdamW's
"""

from __future__ import annotations

from collections.abc import Mapping

from dnnmem.estimator.passes.optimizer_adafactor import adafactor_foreach, adafactor_loop, adafactor_states
from dnnmem.estimator.passes.optimizer_galore import GALORE
from dnnmem.estimator.passes.optimizer_layerwise import LAMB, LARS
from dnnmem.estimator.passes.optimizer_lion import LION
from dnnmem.estimator.passes.optimizer_muon import MUON
from dnnmem.estimator.passes.optimizer_rule import Rule
from dnnmem.estimator.passes.optimizer_shampoo import SHAMPOO
from dnnmem.estimator.passes.optimizer_soap import SOAP
from dnnmem.estimator.passes.optimizer_torch import adamw, adamw_8bit, adamw_8bit_of_bitsandbytes, sgd

RULES: Mapping[str, Rule] = {
    "sgd": sgd(),
    "momentum": sgd(momentum=True),
    "adamw": adamw(),
    "adafactor": Rule(
        kernels={"for_loop": adafactor_loop, "foreach": adafactor_foreach},
        states=dict.fromkeys(("for_loop", "foreach"), adafactor_states),
        needs="rows and columns",
    ),
    "adamw8bit": adamw_8bit(),
    "adamw8bit_bnb": adamw_8bit_of_bitsandbytes(),
    "lion": LION,
    "lamb": LAMB,
    "lars": LARS,
    "muon": MUON,
    "shampoo": SHAMPOO,
    "soap": SOAP,
    "galore": GALORE,
}
"""By name in a plan."""
