"""stub"""


def markdown() -> str:
    """x"""
    return ""
