"""What ends the writing of a bundle."""

__all__ = ["BundleError"]


class BundleError(Exception):
    """A bundle that cannot be written, or not there; its text is a sentence for a person."""
