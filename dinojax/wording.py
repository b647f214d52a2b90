"""Small parts of sentences."""


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, whose plural ends in s unless it is given.

    >>> counted(1, "image"), counted(1350000, "image")
    ('1 image', '1,350,000 images')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
