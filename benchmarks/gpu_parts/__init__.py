"""The parts of ``gpu.py``. Each runs in a process of its own, and says at once what it has measured."""
