"""Models: blocks, the decoder-only transformer built of them, and how parameters are spread over devices."""
