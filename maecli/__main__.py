"""``python -m maecli``, ``torchrun -m maecli``, and the entry point of the installed ``maecli``."""

import signal


def main() -> None:
    """Load the command line and run it; Ctrl-C before it is loaded ends without a message."""
    patient = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else SIGINT is ignored, as by nohup
    if patient:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from maecli.app import app

    if patient:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app(prog_name="maecli")


if __name__ == "__main__":
    main()
