"""``python -m maecli``, and so ``torchrun -m maecli``."""

from maecli.app import app

if __name__ == "__main__":
    app(prog_name="maecli")
