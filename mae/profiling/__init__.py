"""Cost of a masked autoencoder: parameters, FLOPs, memory and time.

Everything but ``mae.profiling.measuring`` is arithmetic on a config and loads no torch.
"""
