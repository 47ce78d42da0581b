"""Type aliases that every room uses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Document = dict[str, Any]  # a JSON or YAML file's content
FloatArray = NDArray[np.float64]
