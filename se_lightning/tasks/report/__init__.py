"""The HTML report on a network's gates."""
