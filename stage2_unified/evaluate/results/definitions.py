"""Definitions of the metrics on the evaluation pages. docs/evaluation.md gives the protocols and their sources."""

import re
from collections.abc import Iterable

_AUROC = "area under the ROC curve, from 0 to 1; chance is 0.5"
_LABELLER = (
    "F1 between the findings stated in the generated and in the reference report. micro pools all findings, macro "
    "averages the F1 of each. _5: over the five CheXpert competition findings instead of 14. Uncertain mentions "
    "count as positive, with _uncertain_negative as negative"
)

# (pattern of a metric's full name, its definition). Metrics of one pattern share one entry.
_DEFINITIONS = (
    (
        r"tokenizer\.psnr",
        "Peak signal-to-noise ratio of reconstructions, in dB; higher is better. Baseline: the mean training "
        "image as every reconstruction",
    ),
    (
        r"tokenizer\.(ms_)?ssim",
        "Structural similarity of original and reconstruction (ms_: at several scales); 1 is identical",
    ),
    (
        r"tokenizer\.lpips",
        "Perceptual distance of original and reconstruction in the named network; lower is better",
    ),
    (
        r"tokenizer\.radiograph_distance",
        "Distance of original and reconstruction in the features of a network for radiographs; lower is better",
    ),
    (
        r"tokenizer\.codebook_usage",
        "Fraction of the codebook's entries that occur in the evaluated images",
    ),
    (
        r"tokenizer\.perplexity",
        "Exponential of the entropy of the codes: the effective number of codebook entries in use",
    ),
    (
        r"tokenizer\.rfid",
        "Fréchet distance between originals and reconstructions in the named feature network; lower is better",
    ),
    (
        r"tokenizer\.label_auroc(_change|\.real)?",
        f"Macro AUROC ({_AUROC}) of a classifier trained on original training images, applied to reconstructions; "
        ".real: to the originals; _change: the difference, which is what encoding loses",
    ),
    (
        r"retrieval\.(reranked_)?(image_to_text|text_to_image)_r\d+",
        "Recall at k: fraction of queries whose report (or image) is among the k most similar candidates. "
        "Reports with the same words are one candidate. reranked: after the matching head ordered the first "
        "candidates",
    ),
    (
        r"retrieval\.(image_to_text|text_to_image)_p\d+",
        "Precision at k: fraction of the k most similar candidates that are of the query's class, among studies "
        "with exactly one of the classes; macro mean over classes",
    ),
    (
        r"matching\.(auroc|accuracy)",
        "Image-text matching: AUROC and accuracy of the matching head between a study's report and a "
        "different report. Chance is 0.5",
    ),
    (
        r"zero_shot\.auroc",
        f"Macro mean over findings of the AUROC ({_AUROC}) of the prompt scores",
    ),
    (
        r"zero_shot\.(f1_macro|accuracy)",
        "Macro F1 and accuracy when a finding is predicted where its positive prompt is more similar than its "
        "negative prompt. No threshold is tuned. Baseline: always positive (F1), the majority class (accuracy)",
    ),
    (
        r"zero_shot\.matching_auroc",
        f"Macro mean over findings of the AUROC ({_AUROC}) of the matching probability of the positive minus that of "
        "the negative prompts; of models trained with statements",
    ),
    (
        r"zero_shot\.match_(agreed|contradicted)",
        "Median matching probability of the prompts that are true (agreed) and false (contradicted) of an image",
    ),
    (
        r"zero_shot\.pointing",
        "Pointing game: fraction of the images with a mask of a finding in which the code that agrees most with the "
        "finding's prompt covers a part of the mask; macro mean over findings. Baseline: a code at random",
    ),
    (
        r"zero_shot\.accuracy_exclusive",
        "Accuracy among studies with exactly one of the findings: whether that finding has the highest "
        "standardised score",
    ),
    (
        r"reports\.bleu\d",
        "BLEU: n-gram precision of the corpus with brevity penalty, n up to the number; unsmoothed, one reference "
        "a study",
    ),
    (
        r"reports\.rouge_l",
        "ROUGE-L: F1 of the longest common subsequence of words",
    ),
    (
        r"reports\.cider",
        "CIDEr-D: tf-idf weighted n-gram similarity, from 0 to 10; comparable within one test set only",
    ),
    (
        r"reports\.meteor",
        "METEOR: word alignment with stems and synonyms",
    ),
    (
        r"reports\.bertscore",
        "BERTScore F1: similarity of contextual word embeddings, not rescaled",
    ),
    (
        r"reports\.clinical_f1_\w+",
        f"{_LABELLER}. Labels of the generated report are read by the rules of this package",
    ),
    (
        r"reports\.chexbert_f1_\w+",
        f"{_LABELLER}. Both reports are labelled by CheXbert",
    ),
    (
        r"reports\.radgraph_\w+",
        "RadGraph F1: agreement of entities (simple), with relations present (partial), with the same relations "
        "(complete)",
    ),
    (
        r"synthesis\.label_auroc(\.real|\.decoded)?",
        f"Macro AUROC ({_AUROC}) of a classifier trained on training images, applied to images generated from "
        "held-out reports; .real: to the held-out images, the ceiling; .decoded: to the held-out images after "
        "encoding and decoding by the tokenizer",
    ),
    (
        r"synthesis\.pixel_deviation",
        "Mean over pixels of the standard deviation over generated images. Baseline: of held-out images. Far "
        "below it the generated images are nearly identical",
    ),
    (
        r"synthesis\.(fid|kid)",
        "Fréchet and kernel distance between generated and held-out images in the named feature network; lower is "
        "better. Baseline: between two halves of the held-out images",
    ),
    (
        r"synthesis\.(precision|recall|density|coverage)",
        "Overlap of generated and held-out images in feature space by nearest neighbours. precision, density: "
        "generated images near held-out ones; recall, coverage: held-out images near generated ones. Low recall "
        "with high precision indicates mode collapse",
    ),
    (
        r"synthesis\.nearest_train",
        "Median distance in feature space from a generated image to the nearest training image. Baseline: from "
        "held-out images",
    ),
    (
        r"synthesis\.copied",
        "Fraction of generated images nearer to a training image than 1 % of the held-out images are",
    ),
    (
        r"synthesis\.ms_ssim_within",
        "Similarity (MS-SSIM) of several images generated from one prompt; lower is more varied. Baseline: of "
        "held-out images of different studies",
    ),
    (
        r"finetune\.(linear|full|scratch)_(auroc|accuracy)_\d+",
        "Macro AUROC and accuracy after training on the percentage of labels in the name. linear: logistic "
        "regression on the frozen embedding; full: all weights; scratch: all weights from random initialisation",
    ),
    (
        r"finetune\.(dice_)?gain_\d+",
        "Difference between full and scratch: the gain by pre-training (AUROC, or Dice)",
    ),
    (
        r"finetune\.(frozen|full|scratch)_dice(_all)?_\d+",
        "Dice overlap of predicted and reference masks over images with the finding; _all: over all images, where "
        "an image without the finding counts 1 if the predicted mask is empty",
    ),
)


def definition_of(metric: str) -> str | None:
    """Return the definition of a metric by its full name, without ``.baseline``; None for an unknown name."""
    return next((text for pattern, text in _DEFINITIONS if re.fullmatch(pattern, metric)), None)


def definitions_of(metrics: Iterable[str]) -> dict[str, str]:
    """Return the definitions of the metrics that have one; metrics of one definition share an entry.

    Returns:
        ``{"NAME, NAME, …": definition}`` in the order of the first name.
    """
    names: dict[str, list[str]] = {}
    for metric in metrics:
        if not metric.endswith(".baseline") and (text := definition_of(metric)) is not None:
            names.setdefault(text, []).append(metric)
    return {", ".join(found): f"{text}." for text, found in names.items()}
