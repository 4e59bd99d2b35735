"""``python -m torchrelabel`` is the command ``torchrelabel``, also under ``torchrun -m``."""

from torchrelabel.cli import main

if __name__ == "__main__":
    main(prog_name="torchrelabel")
