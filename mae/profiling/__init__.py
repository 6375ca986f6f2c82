"""What a masked autoencoder costs: parameters, operations, memory, and time, before anyone pays for it.

Everything but ``mae.profiling.measuring`` is arithmetic on a config and loads no torch.
"""
