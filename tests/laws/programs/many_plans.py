"""Many plans of one target, each run in a process of its own that has torch imported already.

python many_plans.py REQUEST.json PLANS.json FOLDER      leaves FOLDER/0/rank0.json, FOLDER/1/rank0.json, ...
"""

import json
import os
import sys
import traceback
from pathlib import Path

from dnnmem.profilers import planned


def main(request, plans, folder):
    """Run them one after the other; none may have touched the GPU before it is forked."""
    for number, plan in enumerate(json.loads(Path(plans).read_text("utf-8"))):
        place = Path(folder, str(number))
        place.mkdir()
        (place / "plan.json").write_text(json.dumps(plan), "utf-8")
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        try:
            planned.main([request, str(place / "plan.json"), str(place)])
        except Exception:  # noqa: BLE001 - the next plan runs all the same
            traceback.print_exc()
        finally:
            os._exit(0)


main(*sys.argv[1:])
