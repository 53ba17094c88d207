"""Losses as sums. The caller divides by the weight once, after the all-reduce."""

from jaxlm.losses.alignment import atspeed_r as atspeed_r
from jaxlm.losses.alignment import atspeed_s as atspeed_s
from jaxlm.losses.alignment import atspeed_s_clean as atspeed_s_clean
from jaxlm.losses.alignment import seq_kd as seq_kd
from jaxlm.losses.alignment import topk_alignment as topk_alignment
from jaxlm.losses.alignment import tvd_kd as tvd_kd
from jaxlm.losses.alignment import word_kd as word_kd
from jaxlm.losses.axe import axe as axe
from jaxlm.losses.cross_entropy import chunked_cross_entropy as chunked_cross_entropy
from jaxlm.losses.cross_entropy import cross_entropy as cross_entropy
from jaxlm.losses.cross_entropy import slice_logits as slice_logits
from jaxlm.losses.cross_entropy import token_nll as token_nll
from jaxlm.losses.ctc import ctc as ctc
from jaxlm.losses.divergence import agreement as agreement
from jaxlm.losses.divergence import divergence as divergence
from jaxlm.losses.ngram_oaxe import chunked_ngram_oaxe as chunked_ngram_oaxe
from jaxlm.losses.ngram_oaxe import ngram_oaxe as ngram_oaxe
from jaxlm.losses.oaxe import chunked_oaxe as chunked_oaxe
from jaxlm.losses.oaxe import joint_weight as joint_weight
from jaxlm.losses.oaxe import oaxe as oaxe
from jaxlm.losses.oaxe import truncation_margin as truncation_margin
