"""How tensors are computed here, never what: tiles, packing, fused operators, devices, dtypes, the clock."""
