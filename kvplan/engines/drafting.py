"""Which models vLLM lets draft for themselves (`method: mtp`, `dspark`), and how many tokens.

Source: vLLM 0.32 `config/speculative.py`, `SpeculativeConfig.hf_config_override`: it goes by the config's model type or
its first architecture, not by what layers a checkpoint holds. Other engines are not asked.
"""

from __future__ import annotations

from kvplan.engines.draft_kinds import FED, FEED_HEADS, READ_STATES, drafts_itself, method_of_draft
from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.speculative_config import MAY_HAVE_A_MODEL, speculation
from kvplan.formulas.draft_tiers import DraftTiers, drafts_by_batch
from kvplan.ground.errors import KvplanError
from kvplan.models.drafts import as_head
from kvplan.models.spec import ModelSpec

STEP_ENDS = (0, 19)
"""Since when Step's drafting class looks up types of layers that its config class cuts off (vLLM issue 40000)."""


def as_draft(target: ModelSpec, draft: ModelSpec, args: EngineArgs) -> tuple[str, ModelSpec | None]:
    """The method that vLLM makes of what drafts, and that model as the method builds it; None: the target itself.

    Method mtp, the default, and those without a model are taken as vLLM takes a model without a method.

    Raises:
        KvplanError: no head of that method, or of another width or vocabulary than the target's.
    """
    method, tokens = args.speculative_method, args.num_speculative_tokens
    stated = method if method in (*FED, "eagle", "medusa") else "draft_model"
    unsaid = method not in (*FED, "eagle", "medusa", "draft_model")
    try:
        found = draft.drafts_as if unsaid and draft.drafts_as else ""
        found = found or method_of_draft(stated, draft.name, draft)
    except ValueError as error:
        raise KvplanError(f"--speculative-config: {error}") from None
    if found == "dspark" and draft.dspark is not None:
        return found, None
    if found == "mtp" and not draft.backbone_hidden_size:
        _check_same_layers(target, draft)
        return found, None
    if found == "draft_model":
        if draft.drafts_as:
            raise KvplanError(
                f"--speculative-config: {draft.name} only drafts, by method {draft.drafts_as}; vLLM takes it for a"
                " model unless the method says so"
            )
        if not speculation(args.speculative_config).use_heterogeneous_vocab:
            _check_vocabulary(target, draft)
        return found, draft
    head = as_head(draft, found, tokens)
    if head is None:
        raise KvplanError(
            f"--speculative-config: {draft.name} is no head of method {found} that is planned: vLLM 0.32 makes"
            f" {named_by(found, draft.architecture)} of its architecture"
        )
    _check_width(target, head)
    return found, head


def named_by(method: str, architecture: str) -> str:
    """What vLLM calls the class that drafts (`transformers_utils/configs/eagle.py`).

    >>> named_by("eagle3", "LlamaForCausalLM"), named_by("dflash", "DFlashDraftModel")
    ('Eagle3LlamaForCausalLM', 'DFlashDraftModel')
    """
    begins = {"eagle": "Eagle", "eagle3": "Eagle3", "dflash": "DFlash"}.get(method, "")
    named = architecture.startswith(begins) or (method != "eagle" and architecture.endswith(begins))
    return architecture if named else begins + architecture


def _check_same_layers(target: ModelSpec, draft: ModelSpec) -> None:
    """vLLM takes a model of these types for its own multi-token-prediction layers, whatever the method is called."""
    if (draft.hidden_size, draft.mtp_layers) != (target.hidden_size, target.mtp_layers):
        raise KvplanError(
            f"--speculative-config: vLLM takes {draft.name} (model type {draft.model_type}) for its multi-token"
            f"-prediction layers, {draft.hidden_size:,} wide, not for a model that drafts; they are not those of"
            f" {target.name}, {target.hidden_size:,} wide"
        )


def _check_vocabulary(target: ModelSpec, draft: ModelSpec) -> None:
    if draft.vocab_size != target.vocab_size:
        raise KvplanError(
            f"target and draft model should have the same vocabulary size: {target.name} has {target.vocab_size:,}"
            f" tokens, {draft.name} {draft.vocab_size:,}; use_heterogeneous_vocab of --speculative-config allows it"
        )


def _check_width(target: ModelSpec, head: ModelSpec) -> None:
    """A head reads states of its target: of another width they cannot be multiplied with its matrices."""
    reads = head.backbone_hidden_size or head.reads_hidden_size
    if reads not in (0, target.hidden_size):
        raise KvplanError(
            f"{head.name} drafts for models {reads:,} wide; {target.name} is {target.hidden_size:,} wide"
        )


def check_drafting(
    model: ModelSpec, args: EngineArgs, engine: EngineVersion, draft: ModelSpec | None = None
) -> None:
    """Refuse what vLLM has no class for, numbers of tokens that do not go, and keys that contradict other flags.

    Raises:
        KvplanError: with the engine's reason; a model without such layers is told where layers are laid out.
    """
    if not args.num_speculative_tokens:
        return
    if args.speculative_method in ONLY_VLLMS and engine.engine != "vllm":
        raise KvplanError(f"method {args.speculative_method} is planned for vLLM alone, not for {engine}")
    if engine.engine != "vllm":
        return
    if args.speculative_method in FED and engine.is_vllm(0, 32) and model.architecture not in FEED_HEADS:
        raise KvplanError(
            f"method {args.speculative_method}: vLLM 0.32's {model.architecture} does not hand out its hidden states"
            " (Model does not support EAGLE3 interface)"
        )
    _check_keys(model, args, draft)
    _check_tiers(args, engine)
    _check_adaptive(args, engine)
    if args.speculative_method == "extract_hidden_states":
        _check_extracting(args)
    if args.speculative_method == "mtp" and model.num_mtp_modules and draft is None:
        _check_modules(model, args.num_speculative_tokens, engine)


ONLY_VLLMS = ("dspark", "dflash", "extract_hidden_states", "custom_class")


def _check_keys(model: ModelSpec, args: EngineArgs, draft: ModelSpec | None) -> None:
    """Keys of --speculative-config beside other flags and beside the draft."""
    flags, tokens, batched = (
        speculation(args.speculative_config),
        args.num_speculative_tokens,
        args.max_num_batched_tokens or NO_END,
    )
    models = args.speculative_method in MAY_HAVE_A_MODEL
    if models and flags.draft_tensor_parallel_size not in (None, 1, args.tensor_parallel_size):
        raise KvplanError(
            f"draft_tensor_parallel_size {flags.draft_tensor_parallel_size} must be 1 or the target's,"
            f" {args.tensor_parallel_size}"
        )
    served = args.max_model_len if (args.max_model_len or 0) > 0 else model.default_max_model_len
    longest = min((draft or model).max_model_len, served or NO_END)
    if longest < (flags.max_model_len or 0) and models:
        raise KvplanError(
            f"max_model_len {flags.max_model_len:,} of --speculative-config is longer than {longest:,}"
        )
    trained = draft.draft_block if draft and args.speculative_method != "dspark" else 0
    if draft and trained and tokens > trained and tokens % trained:
        raise KvplanError(
            f"num_speculative_tokens {tokens} must be divisible by the {trained} of {draft.name}"
        )
    if draft_slots(args) >= batched:
        raise KvplanError(
            f"--max-num-batched-tokens {batched:,} leaves no slot for a token beside {tokens} drafts; raise it"
        )
    if args.enable_lora and batched < (args.max_num_seqs or 0) * (1 + tokens):
        raise KvplanError(
            f"--max-num-batched-tokens {batched:,}: with --enable-lora every one of {args.max_num_seqs:,} sequences"
            f" must have room for {tokens} drafts; raise it"
        )


def _check_tiers(args: EngineArgs, engine: EngineVersion) -> None:
    """Methods whose code asserts that every step drafts as many.

    Source: vLLM 0.32 `v1/spec_decode`: `medusa.py`, `suffix_decoding.py`, `ngram_proposer_gpu.py`.
    """
    tiers, tokens = draft_tiers(args), args.num_speculative_tokens
    if tiers is None or args.speculative_method not in FIXED or not on_first_runner(args, engine):
        return
    made = drafts_by_batch(tiers, args.max_num_seqs or NO_MOST, tokens)
    if fewer := next((n for n, drafts in enumerate(made) if drafts != tokens), None):
        raise KvplanError(
            f"num_speculative_tokens_per_batch_size: with method {args.speculative_method} vLLM 0.32 stops at the first"
            f" step of {fewer} requests (AssertionError): it always drafts num_speculative_tokens, {tokens}"
        )


FIXED = ("medusa", "suffix", "ngram_gpu", "extract_hidden_states")
"""Methods that draft as many in every step of the first model runner."""


def _check_extracting(args: EngineArgs) -> None:
    """Source: vLLM 0.32 `v1/worker/gpu/spec_decode/extract_hidden_states.py`."""
    flags = speculation(args.speculative_config)
    told = flags.draft_model_config or {}
    if not (told.get("hf_config") or {}).get("eagle_aux_hidden_state_layer_ids"):
        raise KvplanError(
            "method extract_hidden_states: eagle_aux_hidden_state_layer_ids must be set in draft_model_config's"
            " hf_config"
        )
    if args.num_speculative_tokens != 1:
        raise KvplanError("method extract_hidden_states: num_speculative_tokens must be 1")
    if flags.draft_sample_method != "greedy" or flags.disable_padded_drafter_batch:
        raise KvplanError(
            "method extract_hidden_states takes neither draft_sample_method nor disable_padded_drafter_batch"
        )


NO_END = 1 << 40
"""Longer than any context."""


def draft_slots(args: EngineArgs) -> int:
    """Input slots of a step that drafting takes for each request, beside the one that it decodes by.

    Source: vLLM 0.32 `config/speculative.py: max_num_new_slots_for_drafting`.
    """
    tokens, method = args.num_speculative_tokens, args.speculative_method
    if method == "dflash":
        return tokens
    if drafts_at_once(args):
        return tokens if method == "draft_model" else tokens - 1
    return int(method == "draft_model")


def draft_tiers(args: EngineArgs) -> DraftTiers | None:
    """Drafts by the requests of a step; None: always as many, as over data-parallel ranks, whose steps must be alike.

    Source: vLLM 0.32 `config/vllm.py: _maybe_disable_dynamic_sd_for_data_parallel`.
    """
    if not args.num_speculative_tokens or args.data_parallel_size > 1:
        return None
    return speculation(args.speculative_config).num_speculative_tokens_per_batch_size


def verifies_adaptively(args: EngineArgs) -> bool:
    """Whether as many drafts are verified as their chances make worth it: of all that draft by a model.

    Source: vLLM 0.32 `v1/worker/gpu/spec_decode/speculator.py: DraftModelSpeculator`.
    """
    told = speculation(args.speculative_config)
    by_model = args.speculative_method in (*READ_STATES, "draft_model")
    return args.num_speculative_tokens > 0 and told.enable_adaptive_verification and by_model


def _check_adaptive(args: EngineArgs, engine: EngineVersion) -> None:
    """Source: vLLM 0.32 `config/vllm.py`: `_validate_adaptive_verification` and what it does not go with."""
    if not speculation(args.speculative_config).enable_adaptive_verification:
        return
    beside = {
        "--enable-lora": args.enable_lora,
        "--pipeline-parallel-size": args.pipeline_parallel_size > 1,
        "--enable-return-routed-experts": args.enable_return_routed_experts,
        "--return-sampling-mask": args.return_sampling_mask,
        "--enable-batch-sharded-sampling": bool(args.enable_batch_sharded_sampling),
        "vLLM's first model runner": on_first_runner(args, engine),
    }
    for what, told in beside.items():
        if told:
            raise KvplanError(f"enable_adaptive_verification of --speculative-config does not go with {what}")


def needs_first_runner(args: EngineArgs) -> bool:
    """Whether vLLM's second model runner has not got who drafts.

    Source: vLLM 0.32 `config/vllm.py: _get_v2_model_runner_unsupported_features`.
    """
    if not args.num_speculative_tokens:
        return False
    told = speculation(args.speculative_config)
    in_parallel = told.parallel_drafting and args.speculative_method not in ("dflash", "dspark")
    return args.speculative_method in ONLY_FIRST or in_parallel or told.use_heterogeneous_vocab


def on_first_runner(args: EngineArgs, engine: EngineVersion) -> bool:
    """Whether vLLM, from 0.32 on, serves by its first model runner: told to, or for who drafts."""
    if not engine.is_vllm(0, 32):
        return False
    told = args.environment.use_v2_model_runner
    return needs_first_runner(args) if told is None else not told


ONLY_FIRST = ("suffix", "medusa", "custom_class")
"""Methods of vLLM's first model runner alone."""


def drafting_passes(args: EngineArgs, second_runner: bool, modules: int = 1) -> tuple[int, ...]:
    """Passes of the drafter in a step, by the requests that it holds, from none on; empty: always as many.

    The first pass runs for its KV even where nothing is drafted. A draft model, several modules of the target's own and
    what drafts all tokens at once run as for all drafts in the second model runner, which then leaves the last out.
    Source: vLLM 0.32 `v1/worker/gpu/spec_decode`, `v1/spec_decode/llm_base_proposer.py: propose`.
    """
    tiers, tokens = draft_tiers(args), args.num_speculative_tokens
    several = args.speculative_method == "mtp" and min(modules, tokens) > 1
    whole = second_runner and (args.speculative_method == "draft_model" or several)
    if tiers is None or whole or drafts_at_once(args):
        return ()
    made = drafts_by_batch(tiers, args.max_num_seqs or NO_MOST, tokens)
    return tuple(max(1, drafts) for drafts in made)


NO_MOST = 1024
"""Requests that a step is taken to hold at most where nobody says."""


def drafts_at_once(args: EngineArgs) -> bool:
    """Whether one pass drafts all tokens."""
    return args.speculative_method in ("dflash", "dspark") or (
        speculation(args.speculative_config).parallel_drafting
    )


def _check_modules(model: ModelSpec, tokens: int, engine: EngineVersion) -> None:
    modules = model.num_mtp_modules
    if not drafts_itself(model):
        raise KvplanError(
            f"vLLM 0.32 has no class that drafts for model type {model.model_type[:60]!r} (Unsupported speculative"
            f" method: 'mtp'), though {model.name} has the layers; ngram or a model beside can draft"
        )
    if model.architecture.startswith("Step3p") and engine.is_vllm(*STEP_ENDS):
        raise KvplanError(
            f"{engine} does not start {model.name} with its drafting layers: IndexError in layer_types, which are cut"
            " to the layers before them (vLLM issue 40000); ngram can draft"
        )
    if tokens > modules and tokens % modules:
        raise KvplanError(
            f"num_speculative_tokens {tokens} must be at most {modules}, or a multiple: {model.name} drafts with"
            f" {modules} modules"
        )


def check_layers(model: ModelSpec, method: str) -> None:
    """Refuse a method that takes the model's own layers where it has none of that kind."""
    if method == "mtp" and not model.mtp_layers:
        other = (
            "its checkpoint ships DSpark's, method dspark"
            if model.dspark
            else "use another speculative method"
        )
        raise KvplanError(f"{model.name} has no multi-token-prediction layers; {other}")
    if method == "dspark" and model.dspark is None:
        raise KvplanError(
            f"{model.name} has no layers of DSpark (dspark_target_layer_ids); use another speculative method"
        )
