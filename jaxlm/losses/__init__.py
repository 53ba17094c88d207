"""Losses as sums. The caller divides by the weight once, after the all-reduce."""

from jaxlm.losses.cross_entropy import chunked_cross_entropy as chunked_cross_entropy
from jaxlm.losses.cross_entropy import cross_entropy as cross_entropy
from jaxlm.losses.cross_entropy import slice_logits as slice_logits
from jaxlm.losses.cross_entropy import token_nll as token_nll
