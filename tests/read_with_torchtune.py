"""Run by test_other_tools.py in an environment with torchtune: logits of its models with our weights.

The argument is a JSON object: folder with ``weights.pt`` and ``tokens.pt`` -> name of torchtune's builder,
and what it is to build.
"""

import json
import sys
from pathlib import Path

import torch
import torchtune.models.llama3
import torchtune.models.llama3_1
import torchtune.models.llama3_2
from torchtune.training import MODEL_KEY, FullModelMetaCheckpointer

for name, (builder, arguments) in json.loads(sys.argv[1]).items():
    folder = Path(name)
    model = getattr(getattr(torchtune.models, builder), builder)(**arguments)
    checkpointer = FullModelMetaCheckpointer(
        checkpoint_dir=str(folder),
        checkpoint_files=["weights.pt"],
        model_type="LLAMA3_2" if builder == "llama3_2" else "LLAMA3",
        output_dir=str(folder.with_suffix(".torchtune")),
    )
    model.load_state_dict(checkpointer.load_checkpoint()[MODEL_KEY], strict=True)
    with torch.no_grad():
        torch.save(model.eval()(torch.load(folder / "tokens.pt", weights_only=True)), folder / "logits.pt")
