"""One file for each way to keep a leaf of the state: see `rmsprop_jax._storage`."""
