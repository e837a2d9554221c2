"""Values of options that more than one command takes."""

from hydramix_dist.errors import UserError


def whole_numbers(option: str, text: str) -> list[int]:
    """Return the numbers in a text such as "5,10". Raises UserError naming the option."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"{option} '{text}' is not a list of whole numbers such as 5,10") from error
