"""`--quantization-config`: what is quantised on load, linear layers and experts apart, as vLLM 0.32 reads it.

Source: `config/quantization.py: QuantizationConfigArgs`, `resolve_quantization_config`. Activations take no memory.
"""

from __future__ import annotations

import json

from kvplan.engines.flags import EngineArgs


def load_format(args: EngineArgs) -> str | None:
    """What `quantization_rule` quantises by: a name, or both flags together as JSON.

    >>> load_format(EngineArgs(quantization="fp8_per_block", quantization_config='{"ignore": ["lm_head"]}'))
    '{"base": "fp8_per_block", "ignore": ["lm_head"]}'
    """
    if args.quantization_config is None:
        return args.quantization
    return json.dumps({"base": args.quantization, **json.loads(args.quantization_config)})
