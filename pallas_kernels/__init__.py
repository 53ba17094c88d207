"""Pallas kernels. They run on TPU (Mosaic), on GPU (Pallas Triton) and on a CPU (interpreted)."""

from pallas_kernels.assignment import linear_assignment as linear_assignment
from pallas_kernels.attention import flash_attention as flash_attention
from pallas_kernels.column_mass import column_mass as column_mass
from pallas_kernels.decoding import decode_attention as decode_attention
