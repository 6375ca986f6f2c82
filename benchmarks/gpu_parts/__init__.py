"""The parts of ``gpu.py``. Each runs in its own process, and reports its results at once."""
