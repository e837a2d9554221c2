"""Values of options that more than one command takes."""

from pathlib import Path

from hydramix_dist.config.load import configs_root
from hydramix_dist.errors import UserError, nearest


def settings_file(option: str, folder: str, name: str) -> Path:
    """Return the file of ready settings of that name in `configs/<folder>`, or the YAML file that is named.

    Raises UserError naming the option where there is no such name.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    ready = {file.stem: file for file in sorted((configs_root() / folder).glob("*.yaml"))}
    if name not in ready:
        raise UserError(
            f"{option} '{name}' is not known{nearest(name, ready)}; there are {', '.join(ready)}, or a .yaml file"
        )
    return ready[name]


def whole_numbers(option: str, text: str) -> list[int]:
    """Return the numbers in a text such as "5,10". Raises UserError naming the option."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UserError(f"{option} '{text}' is not a list of whole numbers such as 5,10") from error
