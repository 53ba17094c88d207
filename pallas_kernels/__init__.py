"""Pallas kernels. They run on TPU (Mosaic), on GPU (Pallas Triton) and, interpreted, on a CPU."""

from pallas_kernels.attention import flash_attention as flash_attention
