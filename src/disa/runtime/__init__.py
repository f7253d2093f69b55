"""How tensors are computed here, never what: tiles and packing on a CPU, fused operators, devices, dtypes, the clock."""
