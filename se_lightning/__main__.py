"""``python -m se_lightning``."""

from se_lightning.cli.main import main

if __name__ == "__main__":
    main()
