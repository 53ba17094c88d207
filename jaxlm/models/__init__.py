"""Models: attention, positions, the decoder-only transformer and how it is spread over devices."""
