"""How tensors are computed here, never what: tiles and packing on a CPU, devices, dtypes, the clock."""
