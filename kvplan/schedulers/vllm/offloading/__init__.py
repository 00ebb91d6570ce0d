"""KV beyond the GPU: vLLM's native offloading connector with its CPU tier, decision for decision. No clock.

`scheduler` decides what is loaded and stored, `manager` keeps the tier's slots, `policies` choose what leaves it,
`worker` hands jobs to whoever copies. vLLM: `distributed/kv_transfer/kv_connector/v1/offloading`, `v1/kv_offload`.
"""
