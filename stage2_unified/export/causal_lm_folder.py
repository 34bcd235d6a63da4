"""The folder of ``medunifier export --format causal-lm``: a checkpoint that needs no code of ours."""

from pathlib import Path

from transformers.utils import logging

from medunifier.shared.artifacts import atomic_folder, read_json, write_json
from medunifier.shared.errors import UserError
from medunifier.shared.files.model_folder import checked_model_folder
from medunifier.shared.report_page.notice import MODEL_LIMITS, research_notice
from medunifier.stage2_unified.export.causal_lm import add_special_and_code_tokens, generation_configs, to_causal_lm
from medunifier.stage2_unified.inference.pipeline import model_fingerprint
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.processor import IMAGE_TOKENIZER, MedUnifierProcessor
from medunifier.stage2_unified.model.vocabulary import SPECIALS

ORIGIN = "medunifier.json"
IMAGE_GENERATION = "image_generation_config.json"


def export_causal_lm(source: Path, out: Path) -> bool:
    """Write the model folder ``source`` as a stock causal language model.

    Returns:
        False if ``out`` holds it already.

    Raises:
        UserError: for no model, or a folder that holds something else.
    """
    processor = MedUnifierProcessor.from_pretrained(source)  # first: its errors speak to a user
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
        raise UserError(f"{out} exists and is not this model's export: remove it or give another --out")
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
# A unified model of chest radiographs and reports, as a plain `{name}`

{research_notice(MODEL_LIMITS, markdown=True)}

Ids below {origin["first_code"]} are words and specials, image code c is id {origin["first_code"]} + c (`<code:c>`).

    to write a report      <bos> <view:pa> <boi> codes <eoi> <emb_img>                then words up to <eos>
    to draw a radiograph   <bos> <findings> words <impression> words <emb_txt> <view:pa> <boi>   then codes

After a word only the logits of words were trained, within an image only those of codes: the other kind is
suppressed by `generation_config.json` (reports, the default) and by `{IMAGE_GENERATION}`:

    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = "<bos><findings> Small left pleural effusion.<emb_txt><view:pa><boi>"
    drawing = GenerationConfig.from_pretrained(folder, "{IMAGE_GENERATION}")
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
    codes = model.generate(**ids, generation_config=drawing)[:, ids.input_ids.shape[1] :] - {origin["first_code"]}

For guidance give `guidance_scale` and the same row with `<uncond>` in the report's place as
`negative_prompt_ids`. `{IMAGE_TOKENIZER}/` turns codes into radiographs and back (medunifier's `FrozenTokenizer`).
The contrast's embeddings and the matching head are not part of this format.
"""
