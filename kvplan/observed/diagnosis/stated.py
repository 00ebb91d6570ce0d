"""Complaints whose words are the cause: one sentence each, with the flag that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from kvplan.observed.diagnosis.cause import Case, Cause, Fix, proven
from kvplan.observed.diagnosis.messages import Message

Told = Callable[[Case, Mapping[str, float]], Iterator[Cause]]


def stated(case: Case) -> Iterator[Cause]:
    """What each complaint says by itself."""
    for message in case.messages:
        if message.kind in _SAID:
            yield from _SAID[message.kind](case, message.figures)


def _occupied(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    """vLLM's check of free memory before it loads."""
    free, total, share, budget = (said[name] for name in ("free", "total", "share", "budget"))
    used = total - free
    lower = int(100 * free / total) / 100
    words = (
        f"{used:.2f} of {total:.2f} GiB are in use before the engine loads anything, by another process or a desktop: "
        f"{free:.2f} GiB are free, --gpu-memory-utilization {share:g} asks for {budget:.2f}"
    )
    fits = proven(case.plan, gpu_memory_utilization=lower)
    fix = fits or Fix(
        f"--gpu-memory-utilization {lower:g}", f"{budget - lower * total:.2f} GiB less asked", False
    )
    # a start-up takes a little of the card itself; nobody else needs to be there for a share beyond that
    near = used <= 0.04 * total
    ended = Fix("nvidia-smi; end the other process", f"{budget - free:.2f} GiB are missing", False)
    name = "utilization_too_high" if near else "occupied"
    yield Cause(name, words, 0.95, (fix,) if near else (ended, fix))


def _released(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    words = (
        "another process on the card gave memory back while vLLM measured its own (a server that was still ending, "
        "or another one starting): vLLM can count nothing then"
    )
    yield Cause(
        "released", words, 0.95, (Fix("start again when nothing else changes on the card", "", False),)
    )


def _derived(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    asked, derived = int(said["asked"]), int(said["derived"])
    words = f"--max-model-len {asked:,} is beyond what the config is made for, {derived:,}"
    fix = proven(case.plan, max_model_len=derived) or Fix(
        f"--max-model-len {derived}", "what the config says", False
    )
    longer = Fix(
        "--hf-overrides with rope scaling, as its model card says", "longer, if it was trained so", False
    )
    yield Cause("derived_length", words, 0.95, (fix, longer))


def _heads(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    heads, ranks = int(said["heads"]), int(said["ranks"])
    good = [
        n for n in range(1, heads + 1) if heads % n == 0 and n <= 2 * ranks and n in (1, 2, 4, 8, 16, 32, n)
    ]
    near = sorted(good, key=lambda n: (abs(n - ranks), n))[:2]
    fixes = tuple(
        proven(case.plan, tensor_parallel_size=n) or Fix(f"-tp {n}", f"{heads // n} heads a rank", False)
        for n in near
    )
    yield Cause("split", f"{heads} attention heads do not split over {ranks} ranks", 0.95, fixes)


def _experts(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    experts, ranks = int(said["experts"]), int(said["ranks"])
    good = [n for n in range(1, 2 * ranks + 1) if experts % n == 0]
    near = sorted(good, key=lambda n: (abs(n - ranks), n))[:2]
    fixes = tuple(Fix(f"{n} ranks (-tp times -dp)", f"{experts // n} experts a rank", False) for n in near)
    more = Fix(
        f"num_redundant_experts {-experts % ranks} (--eplb-config)",
        "the rest held twice, if load is balanced",
        False,
    )
    yield Cause("split", f"{experts} experts do not split over {ranks} ranks", 0.95, (*fixes, more))


def _uneven(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    words = "the cards of a node are no whole number of tensor-parallel groups"
    fix = Fix("CUDA_VISIBLE_DEVICES with as many cards as -tp, or a -tp that divides them", "", False)
    yield Cause("split", words, 0.95, (fix,))


def _shared_memory(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    size = f" ({said['size'] / 2**20:,.0f} MiB for one of NCCL's buffers)" if said.get("size") else ""
    words = (
        f"/dev/shm, through which ranks on one host talk, is full or too small{size}; containers get 64 MiB"
    )
    fix = Fix(
        "docker run --ipc=host, or --shm-size 10g (a pod: an emptyDir in memory at /dev/shm)", "", False
    )
    yield Cause("shared_memory", words, 0.9, (fix,))


def _batch(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    batch, asked = int(said["batch"]), int(said["asked"])
    words = (
        f"without chunked prefill a step must take a whole prompt: {batch:,} tokens a step, {asked:,} asked"
    )
    fixes = (
        Fix("--enable-chunked-prefill", "prompts in pieces", False),
        Fix(f"--max-num-batched-tokens {asked}", "whole prompts; a larger profile run", False),
    )
    yield Cause("batch", words, 0.9, fixes)


def _cards(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    ranks, cards = said.get("ranks"), said.get("cards")
    counts = f": {ranks:.0f} ranks, {cards:.0f} cards" if ranks and cards else ""
    words = (
        f"fewer cards are visible than there are ranks{counts} (CUDA_VISIBLE_DEVICES, docker's --gpus, Ray)"
    )
    fix = (
        Fix(f"-tp {cards:.0f}", "as many ranks as cards", False) if cards else Fix("a smaller -tp", "", False)
    )
    yield Cause("few_cards", words, 0.95, (fix,))


def _context(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    length, asked = said.get("length"), said.get("asked")
    asked = asked + said.get("answer", 0.0) if asked else None
    wanted = f"{asked:,.0f} tokens" if asked else "a request longer than that"
    served = f"{length:,.0f} tokens" if length else "its max_model_len"
    words = f"{wanted} asked of a server that serves {served} a request, prompt and answer together"
    longer = int(asked) if asked else None
    fix = proven(case.plan, max_model_len=longer) if longer else None
    unproven = Fix(
        f"--max-model-len {longer}" if longer else "--max-model-len", "if the pool holds it", False
    )
    over = f"by {asked - length:,.0f}" if asked and length and asked > length else ""
    shorter = Fix("a shorter prompt, or a smaller max_tokens in the request", over, False)
    yield Cause("context", words, 0.9, (fix or unproven, shorter))


def _bfloat16(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    words = f"the card has no bfloat16 (compute capability below {said['least']:g})"
    fix = proven(case.plan, dtype="float16") or Fix("--dtype half", "float16 instead", False)
    yield Cause("dtype", words, 0.95, (fix,))


def _swap(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    words = f"--swap-space asks for {said['asked']:.1f} of the host's {said['total']:.1f} GiB"
    yield Cause("host_memory", words, 0.95, (Fix("--swap-space 0", "V1 does not swap", False),))


def _killed(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    words = "the kernel ended the process (137, -9): host memory ran out, most often while weights were read"
    fix = Fix("a larger memory limit of the container, or --safetensors-load-strategy lazy", "", False)
    yield Cause("host_memory", words, 0.7, (fix,))


def _lost(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    words = (
        "the engine's own process failed; what it said stands above this line, and is not in the text given"
    )
    yield Cause(
        "unsaid", words, 0.05, (Fix("give the lines above 'Engine core initialization failed'", "", False),)
    )


def _fraction(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    share = said.get("share") or case.share()
    at = f" {share:g}" if share else ""
    words = (
        f"after loading, less is free than --mem-fraction-static{at} leaves to everything but weights and KV"
    )
    tried = [proven(case.plan, gpu_memory_utilization=n) for n in (0.85, 0.9, 0.95) if n > (share or 0)]
    flag = "--mem-fraction-static"
    fixes = tuple(f._replace(change=f"{flag} {f.change.split()[-1]}") for f in tried if f)
    yield Cause("utilization", words, 0.85, fixes[:1] or (Fix(f"{flag} 0.9", "more of the card", False),))


def _capture(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    share = case.share()
    at = f" {share:g}" if share else ""
    words = f"CUDA graphs are captured in what --mem-fraction-static{at} leaves free, and that is too little"
    lower = f"--mem-fraction-static {share - 0.05:.2f}" if share else "a smaller --mem-fraction-static"
    fixes = (
        Fix(lower, "less KV, more for graphs", False),
        Fix("--cuda-graph-max-bs 16", "fewer graphs", False),
    )
    yield Cause("graphs", words, 0.9, fixes)


def _unbalanced(case: Case, said: Mapping[str, float]) -> Iterator[Cause]:
    counts = f" ({said['least']:.1f} GiB where another has {said['here']:.1f})" if "least" in said else ""
    words = f"one card of the group has far less free than the others{counts}: another process is on it"
    yield Cause("occupied", words, 0.95, (Fix("nvidia-smi; end the other process", "", False),))


_SAID: dict[str, Told] = {
    "occupied": _occupied,
    "released": _released,
    "derived_len": _derived,
    "heads": _heads,
    "experts": _experts,
    "uneven_node": _uneven,
    "shared_memory": _shared_memory,
    "batch_below_length": _batch,
    "few_cards": _cards,
    "context": _context,
    "bfloat16": _bfloat16,
    "swap": _swap,
    "killed": _killed,
    "lost": _lost,
    "fraction_low": _fraction,
    "graph_capture": _capture,
    "unbalanced": _unbalanced,
}


def sampler(case: Case) -> Iterator[Cause]:
    """vLLM's own words for a sampler that does not fit."""
    told: Message | None = case.message("sampler")
    if told is None:
        return
    seqs = int(told.figures["seqs"])
    words = f"sampling {seqs:,} sequences at once needs more than is left beside the pool (rows of logits, sorted)"
    smaller = [proven(case.plan, max_num_seqs=n) for n in (seqs // 4, seqs // 8) if n]
    fix = next((f for f in smaller if f), None) or Fix(
        f"--max-num-seqs {max(1, seqs // 4)}", "a quarter of it", False
    )
    share = case.share()
    lower = (
        Fix(f"--gpu-memory-utilization {share - 0.05:.2f}", "more beside the pool", False) if share else None
    )
    yield Cause("sampler", words, 0.97, (fix, *((lower,) if lower else ())))
