"""Write the folder of ``medunifier export --format causal-lm``: a checkpoint without custom code."""

from pathlib import Path

from transformers.utils import logging

from medunifier.shared.artifacts import atomic_folder, read_json, write_json
from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.shared.report_page.notice import MODEL_LIMITS, research_notice
from medunifier.stage1_tokenizer.frozen import IMAGE_TOKENIZER
from medunifier.stage2_unified.export.causal_lm import add_special_and_code_tokens, generation_configs, to_causal_lm
from medunifier.stage2_unified.inference.pipeline import model_fingerprint
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import MedUnifierProcessor
from medunifier.stage2_unified.model.vocabulary import SPECIALS

ORIGIN = "medunifier.json"
IMAGE_GENERATION = "image_generation_config.json"


def export_causal_lm(source: Path, out: Path) -> bool:
    """Export the model folder ``source`` as a ``transformers`` causal LM.

    Returns:
        False if ``out`` already contains this export.

    Raises:
        UserError: if there is no model, or ``out`` contains something else.
    """
    processor = MedUnifierProcessor.from_pretrained(source)  # first: its error messages are clearer
    logging.disable_progress_bar()
    with checked_model_folder(source, "a model"):
        model = MedUnifierForConditionalGeneration.from_pretrained(source, local_files_only=True).eval()
    vocabulary = model.vocabulary
    origin = {
        "fingerprint": model_fingerprint(model),
        "image_tokenizer": model.config.tokenizer_fingerprint,
        "text_size": vocabulary.text_size,
        "first_code": vocabulary.offset,
        "codes": vocabulary.codebook_size,
        "grid": model.config.grid,
        "specials": {name: vocabulary[name] for name in SPECIALS},
    }
    if (out / ORIGIN).is_file() and read_json(out / ORIGIN, "an exported model") == origin:
        return False
    if out.exists():
        raise UserError(f"{out} exists and is not an export of this model: remove it or choose another --out")
    with atomic_folder(out) as partial:
        stock = to_causal_lm(model)
        report, image = generation_configs(model.config)
        stock.generation_config = report
        stock.save_pretrained(partial)
        image.save_pretrained(partial, config_file_name=IMAGE_GENERATION)
        add_special_and_code_tokens(processor.tokenizer, vocabulary)
        processor.tokenizer.save_pretrained(partial)
        processor.image_tokenizer.save(partial / IMAGE_TOKENIZER)
        write_json(partial / ORIGIN, origin)
        (partial / "README.md").write_text(_card(type(stock).__name__, origin), encoding="utf-8")
    return True


def _card(name: str, origin: dict[str, object]) -> str:
    return f"""---
library_name: transformers
tags: [chest-radiograph, report-generation, image-generation, research-only]
---
# A unified model of chest radiographs and reports, as a `{name}`

{research_notice(MODEL_LIMITS, markdown=True)}

Ids below {origin["first_code"]} are text and special tokens; code c is id {origin["first_code"]} + c (`<code:c>`).

    report generation   <bos> <view:pa> <boi> codes <eoi> <emb_img>                              -> text up to <eos>
    image generation    <bos> <findings> text <impression> text <emb_txt> <view:pa> <boi>        -> codes

After text only the logits of text were trained, within an image only those of codes. The others are suppressed
by `generation_config.json` (reports, the default) and by `{IMAGE_GENERATION}`:

    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = "<bos><findings> Small left pleural effusion.<emb_txt><view:pa><boi>"
    config = GenerationConfig.from_pretrained(folder, "{IMAGE_GENERATION}")
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    codes = model.generate(**ids, generation_config=config)[:, ids.input_ids.shape[1] :] - {origin["first_code"]}

For classifier-free guidance pass `guidance_scale`, and as `negative_prompt_ids` the same prompt with `<uncond>`
instead of the report. `{IMAGE_TOKENIZER}/` converts codes to radiographs and back (medunifier's `FrozenTokenizer`).
The contrastive embeddings and the matching head are not part of this format.
"""
