"""Operations with Pallas kernels. All of them also run in XLA on any platform, and their kernels interpreted on any platform.

`flash_attention` and `column_mass` have kernels for TPU (Mosaic) and for GPU (Pallas Triton; NVIDIA's from Ampere on),
`decode_attention` and `linear_assignment` for TPU alone.
"""

from pallas_kernels.assignment import linear_assignment as linear_assignment
from pallas_kernels.attention import flash_attention as flash_attention
from pallas_kernels.column_mass import column_mass as column_mass
from pallas_kernels.decoding import decode_attention as decode_attention
