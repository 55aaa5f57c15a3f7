def reason_against() -> str:
    """x."""
    return "not yet"
