"""``python -m hub_release.commands.renew PACKAGE``: a package that ships with the project gets the code of this checkout."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from hub_release.card.render import write_card
from hub_release.check.integrity import hash_problems
from hub_release.package import HANDLER, LAYOUT, RefusedError, printable
from hub_release.shipped.bundle import bundle
from hub_release.shipped.requirements import project_version, requirements_of
from modeling.infer import VERSION_KEY, read_config


def renew(package: Path) -> None:
    """Write a package's code, requirements and card again, and seal it. Its weights and records stay as they are.

    Raises:
        RefusedError: a file that stays does not match the seal.
    """
    written = {LAYOUT.code, LAYOUT.handler, LAYOUT.requirements, LAYOUT.card}
    if damaged := [problem for problem in hash_problems(package) if problem.file not in written]:
        raise RefusedError(f"{package} is left as it is", [printable(problem) for problem in damaged])
    config = read_config(package)
    (package / LAYOUT.code).write_text(bundle(), encoding="utf-8")
    shutil.copyfile(HANDLER, package / LAYOUT.handler)
    requirements = requirements_of(config.model_name, config.encoder, config.quantization)
    (package / LAYOUT.requirements).write_text(requirements, encoding="utf-8")
    content = json.loads((package / LAYOUT.config).read_text(encoding="utf-8")) | {VERSION_KEY: project_version()}
    (package / LAYOUT.config).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_card(package)


if __name__ == "__main__":
    renew(Path(sys.argv[1]))
