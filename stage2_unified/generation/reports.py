"""Report generation: reports of studies by ``generate()`` after the image-first prefix."""

from typing import Any

import torch

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.model.modeling import MedUnifierForConditionalGeneration
from medunifier.stage2_unified.model.processing.report_codec import ReportCodec
from medunifier.stage2_unified.model.sequences import ImageSpans, left_padded
from medunifier.stage2_unified.model.vocabulary import EOS, NEVER_WRITTEN, PAD, SECTIONS


@torch.no_grad()
def generate_reports(
    model: MedUnifierForConditionalGeneration,
    codec: ReportCodec,
    images: ImageSpans,
    section: str | None = None,
    **generate: Any,
) -> list[dict[str, str]]:
    """Generate a report for each of B studies, as sections; greedy by default.

    Args:
        model: in eval mode.
        codec: of the model's processor.
        images: of B studies.
        section: generate only this section ("findings", "impression"); needs a model that was trained with
            ``data.section_dropout``.
        generate: arguments of ``transformers``' ``generate()``.

    Raises:
        UserError: for a section that the model was not trained on.
    """
    vocabulary = model.vocabulary
    ids, visible, _ = left_padded(model.sequences.image_first(images))
    prefix_length, ends = ids.shape[1], [EOS]
    if section is not None:
        if section not in codec.sections:
            raise UserError(f"the model writes {' and '.join(codec.sections)}, not {section!r}")
        ids = torch.cat([ids, torch.full_like(ids[:, :1], vocabulary.section(section))], dim=1)
        visible = torch.cat([visible, visible[:, -1:]], dim=1)
        ends += [f"<{name}>" for name in SECTIONS]  # the beginning of another section ends this one
    defaults = {"max_new_tokens": model.config.max_report_tokens + 1, "do_sample": False}
    output = model.generate(
        ids,
        attention_mask=visible.long(),
        suppress_tokens=[vocabulary[name] for name in NEVER_WRITTEN],
        eos_token_id=[vocabulary[name] for name in ends],
        pad_token_id=vocabulary[PAD],
        **{**defaults, **generate},
    )
    return [codec.decode(sequence) for sequence in output[:, prefix_length:].tolist()]
