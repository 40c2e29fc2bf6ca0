"""Trains one step of each configuration, with the trainer's own Python: `start_side.py CONFIG…`.

Prepares and trains; the advice of the prepare phase is written beside the configuration as `advice.json`.
"""

import json
import sys
from pathlib import Path

from lora_dpo_trainer import prepare, settings, train

for word in sys.argv[1:]:
    config = settings.load(word, [])
    advice = {item.code: item.message for item in prepare.run(config).advice}
    Path(word).with_name("advice.json").write_text(json.dumps(advice))
    train.run(config)
