"""The command `hydramix doctor`."""

import json
from dataclasses import asdict

from hydramix_dist.orchestration.doctor import examine


def doctor_command(folder: str, store: str | None, json_: bool) -> int:
    """Show the findings; return 0, or 1 where something is broken."""
    checks = examine(folder, store)
    if json_:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            print(f"{check.name:<{width}}  {check.state:<8} {check.detail}")
            if check.mend:
                print(f"{'':<{width}}           to mend: {check.mend}")
    return 1 if any(check.state == "broken" for check in checks) else 0
