"""Drawing by the names that diffusers has, and models with their cards on the hub."""
